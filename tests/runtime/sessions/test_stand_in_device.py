"""The stand-in is strict where a real GPU would be silent, and has only names that exist."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import pytest

from stand_in_device import Device, TensorRTModule, Violation
from stand_in_device import tensorrt_module as ours
from stand_in_device.cuda_runtime import CudaRuntime
from stand_in_device.execution import ExecutionContext
from xclip_deploy import Bundle
from xclip_deploy.runtime.cuda.runtime_api import Cuda, Stream
from xclip_deploy.runtime.engine_set import Flavour
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.sessions.native.backend import EngineLoader


@pytest.fixture
def lenient() -> Device:
    """A device whose violations are the test's purpose."""
    return Device()


@pytest.fixture
def cuda(lenient: Device) -> Cuda:
    cuda = Cuda(CudaRuntime(lenient))
    cuda.select()
    return cuda


def filled(cuda: Cuda, nbytes: int, stream: Stream) -> int:
    """Device memory with something in it."""
    address, pinned = cuda.allocate(nbytes), cuda.allocate_pinned(nbytes)
    ctypes.memset(pinned, 0, nbytes)
    cuda.copy_to_device(address, pinned, nbytes, stream)
    cuda.synchronize(stream)
    cuda.free_pinned(pinned)
    return address


# Memory


def test_memory_is_there_once(cuda: Cuda) -> None:
    address = cuda.allocate(100)
    cuda.free(address)
    with pytest.raises(Violation, match="freed twice"):
        cuda.free(address)
    pinned = cuda.allocate_pinned(100)
    cuda.free_pinned(pinned)
    with pytest.raises(Violation, match="freed twice"):
        cuda.free_pinned(pinned)


def test_copies_stay_within_their_memory(cuda: Cuda) -> None:
    stream, address, pinned = cuda.create_stream(), cuda.allocate(100), cuda.allocate_pinned(200)
    with pytest.raises(Violation, match="101 bytes where there are 100"):
        cuda.copy_to_device(address, pinned, 101, stream)
    with pytest.raises(Violation, match="not pinned, too small, or freed"):
        cuda.copy_to_device(address, pinned + 150, 100, stream)
    ordinary = np.zeros(100, np.uint8)
    with pytest.raises(Violation, match="not pinned"):
        cuda.copy_to_device(address, ordinary.ctypes.data, 100, stream)
    cuda.free(address)
    with pytest.raises(Violation, match="no device memory, or no more"):
        cuda.copy_to_device(address, pinned, 100, stream)


def test_what_nothing_wrote_is_not_read(cuda: Cuda) -> None:
    stream, address, pinned = cuda.create_stream(), cuda.allocate(100), cuda.allocate_pinned(100)
    cuda.copy_to_device(address, pinned, 99, stream)
    cuda.copy_to_host(pinned, address, 100, stream)
    with pytest.raises(Violation, match="memory is read that nothing has written"):
        cuda.synchronize(stream)


def test_nothing_happens_before_it_is_waited_for(cuda: Cuda) -> None:
    from xclip_deploy.runtime.cuda.memory import PinnedBuffer

    stream, pinned = cuda.create_stream(), PinnedBuffer(cuda)
    pinned.hold(4)
    view = pinned.view((4,), "uint8")
    view[:] = [1, 2, 3, 4]
    address = cuda.allocate(4)
    cuda.copy_to_device(address, pinned.address, 4, stream)
    view[:] = 9  # too early: the copy has not run
    cuda.synchronize(stream)
    cuda.copy_to_host(pinned.address, address, 4, stream)
    assert view.tolist() == [0xCB] * 4  # too early to be read
    cuda.synchronize(stream)
    assert view.tolist() == [9] * 4


def test_what_is_in_use_is_not_freed(cuda: Cuda) -> None:
    stream = cuda.create_stream()
    address, pinned = cuda.allocate(4), cuda.allocate_pinned(4)
    cuda.copy_to_device(address, pinned, 4, stream)
    with pytest.raises(Violation, match="freed while enqueued work uses it"):
        cuda.free(address)
    with pytest.raises(Violation, match="freed while enqueued work uses it"):
        cuda.free_pinned(pinned)
    with pytest.raises(Violation, match="destroyed before it was waited for"):
        cuda.destroy_stream(stream)


def test_a_thread_selects_its_device(lenient: Device, cuda: Cuda) -> None:
    cuda.free(cuda.allocate(1))
    found: list[str] = []

    def work() -> None:
        try:
            cuda.allocate(1)
        except Violation as violation:
            found.append(str(violation))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["cudaMalloc in a thread that has selected no device"]


def test_streams_that_are_gone(cuda: Cuda) -> None:
    stream = cuda.create_stream()
    cuda.destroy_stream(stream)
    with pytest.raises(Violation, match="no such stream"):
        cuda.synchronize(stream)


def test_leaks_are_seen(lenient: Device, cuda: Cuda) -> None:
    lenient.check_nothing_left()
    address, pinned, stream = cuda.allocate(1), cuda.allocate_pinned(1), cuda.create_stream()
    expected = "1 pieces of device memory not given back; 1 pieces of pinned memory not given"
    with pytest.raises(Violation, match=f"{expected} back; 1 streams not given back"):
        lenient.check_nothing_left()
    cuda.free(address)
    cuda.free_pinned(pinned)
    cuda.destroy_stream(stream)
    lenient.check_nothing_left()


def test_a_violation_is_not_forgotten(lenient: Device, cuda: Cuda) -> None:
    """Even where the code under test has swallowed it."""
    with pytest.raises(Violation):
        cuda.free(1)
    with pytest.raises(Violation, match="freed twice, or never allocated"):
        lenient.check_nothing_left()


# Execution


@pytest.fixture
def context(
    lenient: Device, cuda: Cuda, engine_bundle: Bundle
) -> tuple[Any, Stream, dict[str, int]]:
    """A text encoder, ready to run on one text: context, stream, addresses."""
    module = TensorRTModule(lenient, "10.16.1.11", is_rtx=False)
    (file,) = engine_bundle.path.glob("engines/tensorrt-*/text_encoder.engine")
    engine = module.Runtime(Log()).deserialize_cuda_engine(file.read_bytes())
    assert engine is not None
    context = engine.create_execution_context(ours.ExecutionContextAllocationStrategy.USER_MANAGED)
    assert context is not None
    stream = cuda.create_stream()
    context.set_device_memory(cuda.allocate(1 << 16), 1 << 16)
    assert context.set_optimization_profile_async(1, int(stream))
    assert context.set_input_shape("token_ids", (2, 32))
    addresses = {
        "token_ids": filled(cuda, 2 * 32 * 4, stream),
        "sentence_features": cuda.allocate(2 * 64 * 4),
        "word_features": cuda.allocate(2 * 32 * 64 * 4),
    }
    for name, address in addresses.items():
        assert context.set_tensor_address(name, address)
    return context, stream, addresses


class Log(ours.ILogger):
    def log(self, severity: Any, message: str) -> None:
        pass


def test_shapes_outside_the_profile(context: Any) -> None:
    it = context[0]
    assert not it.set_input_shape("token_ids", (9, 32))
    assert not it.set_input_shape("token_ids", (2, 31))
    assert not it.set_input_shape("token_id", (2, 32))
    assert not it.set_optimization_profile_async(2, int(context[1]))


def test_what_was_not_set(context: Any) -> None:
    it, stream, _ = context
    it.set_optimization_profile_async(0, int(stream))
    assert it.infer_shapes() == ["token_ids"]
    assert not it.execute_async_v3(int(stream))
    it.set_input_shape("token_ids", (1, 32))
    it._addresses.pop("word_features")
    assert not it.execute_async_v3(int(stream))


def test_addresses(context: Any, cuda: Cuda) -> None:
    it, stream, addresses = context
    with pytest.raises(Violation, match="not a multiple of 256"):
        it.set_tensor_address("token_ids", addresses["token_ids"] + 4)
    it.set_tensor_address("word_features", addresses["sentence_features"])
    with pytest.raises(Violation, match="word_features: 16384 bytes where there are 512"):
        it.execute_async_v3(int(stream))
    cuda.free(addresses["word_features"])
    it.set_tensor_address("word_features", addresses["word_features"])
    with pytest.raises(Violation, match=r"word_features: .* is no device memory, or no more"):
        it.execute_async_v3(int(stream))


def test_inputs_that_nothing_wrote(context: Any, cuda: Cuda) -> None:
    it, stream, _ = context
    it.set_tensor_address("token_ids", cuda.allocate(2 * 32 * 4))
    it.execute_async_v3(int(stream))
    with pytest.raises(Violation, match="token_ids: memory is read that nothing has written"):
        cuda.synchronize(stream)


def test_scratch_is_of_one_stream_at_a_time(context: Any, cuda: Cuda) -> None:
    it, stream, _ = context
    other = cuda.create_stream()
    it.execute_async_v3(int(stream))
    with pytest.raises(Violation, match="scratch memory used on two streams at once"):
        it.execute_async_v3(int(other))
    it._scratch = None
    with pytest.raises(Violation, match="without scratch memory"):
        it.execute_async_v3(int(stream))
    with pytest.raises(Violation, match="too little scratch"):
        it.set_device_memory(1, 10)


def test_graphs_and_their_contexts(context: Any, cuda: Cuda) -> None:
    it, stream, _ = context
    cuda.begin_capture(stream)
    assert not it.execute_async_v3(int(stream))  # it has not run before
    with pytest.raises(Exception, match="cudaErrorStreamCaptureInvalidated"):
        cuda.end_capture(stream)
    it.execute_async_v3(int(stream))
    cuda.synchronize(stream)
    cuda.begin_capture(stream)
    with pytest.raises(Exception, match="cudaErrorStreamCaptureUnsupported"):
        cuda.allocate(1)
    assert it.execute_async_v3(int(stream))
    graph = cuda.end_capture(stream)
    cuda.launch(graph, stream)
    cuda.synchronize(stream)
    it.set_input_shape("token_ids", (1, 32))
    with pytest.raises(Violation, match="a graph was launched whose context has changed"):
        cuda.launch(graph, stream)
    cuda.destroy_graph(graph)
    with pytest.raises(Violation, match="a graph was destroyed twice"):
        cuda.destroy_graph(graph)


def test_a_version_that_is_not_the_plans(
    lenient: Device, cuda: Cuda, engine_bundle: Bundle
) -> None:
    (file,) = engine_bundle.path.glob("engines/tensorrt-*/scorer.engine")
    runtime = TensorRTModule(lenient, "11.4.0.1", is_rtx=False).Runtime(Log())
    assert runtime.deserialize_cuda_engine(file.read_bytes()) is None


# Names


@pytest.mark.parametrize(
    ("stand_in", "name"),
    [
        (ours.Runtime, "Runtime"),
        (ours.RtxRuntime, "Runtime"),
        (ours.Engine, "ICudaEngine"),
        (ours.RtxEngine, "ICudaEngine"),
        (ExecutionContext, "IExecutionContext"),
        (ours.RuntimeConfig, "IRuntimeConfig"),
        (ours.RuntimeCache, "IRuntimeCache"),
        (ours.ILogger, "ILogger"),
    ],
)
def test_methods_are_those_of_the_real_library(stand_in: type, name: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    found = {
        member
        for kind in stand_in.__mro__[:-1]
        for member, value in vars(kind).items()
        if not member.startswith("_")
    }
    assert found
    assert {member for member in found if not hasattr(getattr(trt, name), member)} == set()


@pytest.mark.parametrize(
    "name",
    [
        "CudaGraphStrategy",
        "DataType",
        "EngineInvalidityDiagnostics",
        "EngineValidity",
        "ExecutionContextAllocationStrategy",
        "TensorIOMode",
    ],
)
def test_enums_are_those_of_the_real_library(name: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    theirs = {member: int(value) for member, value in getattr(trt, name).__members__.items()}
    for member in getattr(ours, name):
        assert theirs[member.name] == member.value


def test_all_of_it_is_used(device: Device, engine_bundle: Bundle) -> None:
    """It is installed where the product looks for the real thing."""
    for flavour in Flavour:
        with EngineLoader(engine_bundle, flavour).open(Graph.TEXT_ENCODER) as session:
            session.run({"token_ids": np.zeros((1, 32))})
    assert device.executions == 2
