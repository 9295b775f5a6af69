"""Runs on a stream of ours: pieces, replays, threads and failures, on the stand-in device.

The stand-in reads and writes memory when a stream is waited for. So a buffer that is filled again
too early shows as a wrong result. Whatever is not given back fails the test.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from stand_in_device import Device, OnnxRuntimeModule
from xclip_deploy import Bundle
from xclip_deploy.errors import DeviceMemoryError, SessionError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.cuda.gate import CAPTURES
from xclip_deploy.runtime.manifest import AnyGraph, Graph, VideoPart
from xclip_deploy.runtime.sessions import Placement, device_lanes
from xclip_deploy.runtime.sessions.device_lanes import DeviceLink
from xclip_deploy.runtime.sessions.device_runs import DeviceRuns
from xclip_deploy.runtime.sessions.onnx_session import FP32, BoundSession, OnnxRuntimeSession

FP32_CPU, FP32_CUDA = (Placement("onnxruntime", device, FP32) for device in ("cpu", "cuda"))
Feeds = dict[str, AnyArray]


def token_ids(count: int, seed: int = 0) -> Feeds:
    rng = np.random.default_rng(seed)
    ids = np.zeros((count, 32), dtype=np.int32)
    ids[:, 0], ids[:, 5] = 49406, 49407
    ids[:, 1:5] = rng.integers(1, 49000, (count, 4))
    return {"token_ids": ids}


def frames(bundle: Bundle, count: int, seed: int = 0) -> Feeds:
    size = bundle.manifest.model.vision.image_size
    rng = np.random.default_rng(seed)
    return {"frames": rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)}


def same(found: Feeds, expected: Feeds) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-6)


class Opener:
    """Opens sessions on the stand-in, and the plain ones whose results are expected."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.reports: list[str] = []

    def __call__(self, graph: AnyGraph = Graph.TEXT_ENCODER, **options: Any) -> BoundSession:
        link = DeviceLink.open(0)
        given = (self.bundle, graph, FP32_CUDA, 1)
        return BoundSession(*given, link=link, report=self.reports.append, **options)

    def plain(self, graph: AnyGraph = Graph.TEXT_ENCODER) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(self.bundle, graph, FP32_CPU, 1)


@pytest.fixture
def opened(bundle: Bundle, onnxruntime_module: OnnxRuntimeModule) -> Opener:
    return Opener(bundle)


def test_pieces_make_up_the_batch(
    opened: Opener, onnxruntime_module: OnnxRuntimeModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the length: no row is lost, run twice or in another place."""
    plain, session = opened.plain(VideoPart.FRAME_ENCODER), opened(VideoPart.FRAME_ENCODER)
    one = frames(opened.bundle, 1)["frames"].nbytes
    session._runs._piece_bytes = 2 * one
    monkeypatch.setattr(device_lanes, "_SLICE_BYTES", one // 3)
    for count, pieces in ((1, 1), (2, 1), (7, 4), (8, 4), (1, 1)):
        before = onnxruntime_module.device.executions
        given = frames(opened.bundle, count, count)
        # Buffers grow and shrink in use: the rest of a larger batch must not be seen.
        same(session.run(given), plain.run(given))
        assert onnxruntime_module.device.executions == before + pieces
    session.close()


@pytest.mark.parametrize("replays", [False, True])
def test_frames_of_several_videos_are_joined_on_their_way(
    opened: Opener, replays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copy of all frames is made; parts and pieces may end within a video."""
    graph = VideoPart.FRAME_ENCODER
    plain, session = opened.plain(graph), opened(graph, replays=replays)
    one = frames(opened.bundle, 1)["frames"].nbytes
    session._runs._piece_bytes = 2 * one
    monkeypatch.setattr(device_lanes, "_SLICE_BYTES", one // 3 + 5)
    videos = [frames(opened.bundle, count, count)["frames"] for count in (3, 1, 2, 1)]
    videos[0] = videos[0][::-1]  # rows that lie apart in memory
    for given in (videos, videos[1:2], videos[1:2], videos[1:2], videos):
        expected = plain.run({"frames": np.concatenate(given)})
        same(session.run_rows({"frames": given}), expected)
    session.close()
    with pytest.raises(SessionError, match="the frame_encoder session is closed"):
        session.run_rows({"frames": videos})


@pytest.mark.parametrize("replays", [False, True])
def test_many_threads(opened: Opener, replays: bool) -> None:
    """Two lanes and eight callers: each gets the results of its own frames."""
    graph = VideoPart.FRAME_ENCODER
    plain, session = opened.plain(graph), opened(graph, replays=replays)
    session._runs._piece_bytes = 2 * frames(opened.bundle, 1)["frames"].nbytes
    batches = [frames(opened.bundle, 1 + seed % 3, seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(session.run, batches))
    for result, batch in zip(found, batches, strict=True):
        same(result, plain.run(batch))
    session.close()
    session.close()
    with pytest.raises(SessionError, match="the frame_encoder session is closed"):
        session.run(batches[0])


def test_replayed_sizes(opened: Opener, onnxruntime_module: OnnxRuntimeModule) -> None:
    """The second run of a size captures it. Results must not share its memory."""
    plain, session = opened.plain(), opened(is_fused=True, replays=True)
    results, inputs = [], []
    for seed, count in enumerate([1, 1, 3, 1, 3, 3, 40, 40, 1]):
        inputs.append(token_ids(count, seed))
        results.append(session.run(inputs[-1]))
    assert session._runs.captured_sizes == (1, 3), "40 are more than a graph is captured for"
    assert onnxruntime_module.captures == [1, 2]
    assert onnxruntime_module.replays == 5, "also the runs that come right after a capture"
    for given, result in zip(inputs, results, strict=True):
        same(result, plain.run(given))
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(session.run, inputs))
    for result, before in zip(again, results, strict=True):
        same(result, before)
    assert onnxruntime_module.captures == [1, 2], "one thread computes for all"
    session.close()


def test_large_batches_of_frames_are_not_captured(opened: Opener) -> None:
    session = opened(VideoPart.FRAME_ENCODER, replays=True)
    rule = session._runs._replays
    assert rule is not None
    assert rule(1, 32 << 20)
    assert not rule(1, (32 << 20) + 1)
    session.close()


def test_one_wait_for_the_gpu_in_a_replay(opened: Opener, device: Device) -> None:
    """One copy up, one for each output down, and one wait: all else costs a small batch dearly."""
    session = opened(is_fused=True, replays=True)
    for seed in range(3):
        session.run(token_ids(1, seed))
    device.calls.clear()
    session.run(token_ids(1, 3))
    copies = ["cudaMemcpyAsync"] * (1 + len(session._spec.outputs))
    calls = [each for each in device.calls if each not in ("cudaSetDevice", "run_with_iobinding")]
    assert calls == [*copies, "cudaStreamSynchronize"]
    session.close()


def test_nothing_else_runs_while_a_graph_is_captured(opened: Opener) -> None:
    """ONNX Runtime captures in CUDA's global mode: other threads' calls would end it."""
    capturing, other = opened(is_fused=True, replays=True), opened()
    given = token_ids(2)
    expected = capturing.run(given)
    runs = capturing._runs
    with ThreadPoolExecutor(2) as pool:
        with CAPTURES.shared():
            capture = pool.submit(capturing.run, given)
            while not CAPTURES.is_awaited:
                time.sleep(0.001)
            assert list(runs.captured_sizes) == []
            beside = pool.submit(other.run, given)
        same(capture.result(30), expected)
        same(beside.result(30), expected)
    assert runs.captured_sizes == (2,)
    capturing.close()
    other.close()


def test_a_size_that_cannot_be_captured_still_runs(opened: Opener, device: Device) -> None:
    plain, session = opened.plain(), opened(is_fused=True, replays=True)
    device.fail("capture", "operation not permitted when stream is capturing")
    for seed in range(4):
        same(session.run(token_ids(1, seed)), plain.run(token_ids(1, seed)))
    assert not session._runs.captured_sizes
    (report,) = opened.reports
    assert report.startswith("batches of 1 run without a CUDA graph: operation not permitted")
    # Another size gets another number: the library captures the old one without a first run.
    for seed in range(3):
        same(session.run(token_ids(2, seed)), plain.run(token_ids(2, seed)))
    assert session._runs.captured_sizes == (2,)
    assert len(opened.reports) == 1
    session.close()


def test_an_error_that_is_kept_does_not_keep_the_session(
    opened: Opener, device: Device, onnxruntime_module: OnnxRuntimeModule
) -> None:
    """A notebook keeps the last error. The session must go before its stream all the same."""
    kept: list[Exception] = []
    for function in ("run_with_iobinding", "InferenceSession"):
        device.fail(function, "an illegal memory access was encountered", after=0)
        try:
            session = opened()
            session.run(token_ids(1))
        except SessionError as error:
            kept.append(error)
        if function == "run_with_iobinding":
            session.close()
        assert device.objects == 0
    assert ["illegal memory access" in str(error) for error in kept] == [True, True]


@pytest.mark.parametrize(
    ("function", "status", "is_lost"),
    [
        ("cudaMemcpyAsync", "cudaErrorIllegalAddress", True),
        ("cudaMemcpyAsync", "cudaErrorInvalidValue", False),
        ("run_with_iobinding", "CUDA failure 700: an illegal memory access ; GPU=0", True),
        ("run_with_iobinding", "CUDA failure 1: invalid argument ; GPU=0", False),
    ],
)
def test_a_lost_gpu_is_told_from_a_call_that_failed(
    opened: Opener, device: Device, function: str, status: str, is_lost: bool
) -> None:
    """After a fault of a kernel or of memory, nothing but a new process helps."""
    session = opened()
    device.fail(function, status)
    with pytest.raises(SessionError) as caught:
        session.run(token_ids(1))
    assert ("; CUDA works no more in this process: end it" in str(caught.value)) is is_lost
    session.close()


def test_a_gpu_that_is_full_as_a_graph_is_loaded(opened: Opener, device: Device) -> None:
    device.fail("InferenceSession", "CUDA failure 2: out of memory ; GPU=0")
    with pytest.raises(DeviceMemoryError, match=r"cannot load .*out of memory.*end other programs"):
        opened()


def test_lanes_are_given_back_where_not_all_can_be_made(opened: Opener, device: Device) -> None:
    device.fail("cudaStreamCreateWithFlags", "cudaErrorUnknown", after=2)
    with pytest.raises(SessionError, match="cudaStreamCreateWithFlags failed"):
        opened()


def test_a_forked_process_is_refused(opened: Opener, device: Device) -> None:
    """It has no computing thread: a run would wait for ever."""
    session = opened()
    session.run(token_ids(1))
    device.calls.clear()
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other libraries
        child = os.fork()
    if child == 0:
        try:
            uses: tuple[Callable[[], Any], ...] = (
                lambda: session.run(token_ids(1)),
                lambda: session.run_rows({"token_ids": [token_ids(1)["token_ids"]]}),
            )
            for use in uses:
                with pytest.raises(SessionError) as refusal:
                    use()
                os.write(write, f"{refusal.value}\n".encode())
            session.close()
            os.write(write, str(device.calls).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        first, second, calls = answer.read().split("\n")
    os.waitpid(child, 0)
    assert first == second
    assert first.startswith("the text_encoder session belongs to the process that this one was fo")
    assert calls == "[]"
    session.run(token_ids(1))
    session.close()


@pytest.mark.parametrize("replays", [False, True])
@pytest.mark.parametrize(
    "function", ["cudaMemcpyAsync", "run_with_iobinding", "cudaHostAlloc", "cudaMalloc"]
)
def test_a_failure_leaves_the_lanes_usable(
    opened: Opener, device: Device, function: str, replays: bool
) -> None:
    """More failures than lanes, in single runs and in pieces; then everything works."""
    graph = VideoPart.FRAME_ENCODER
    plain, session = opened.plain(graph), opened(graph, replays=replays)
    one = frames(opened.bundle, 1)["frames"].nbytes
    session._runs._piece_bytes = 5 * one
    # A size that comes again is captured, and a failure of that is no failure of the run.
    for count in (1, 2, 3, 5 if replays else 9):
        status = "cudaErrorMemoryAllocation" if "lloc" in function else "cudaErrorUnknown"
        device.fail(function, status)
        with pytest.raises(SessionError):
            session.run(frames(opened.bundle, count, 9))
    given = frames(opened.bundle, 7, 3)
    for _ in range(2):
        same(session.run(given), plain.run(given))
    session.close()


def test_a_full_gpu_is_an_error_of_its_own(opened: Opener, device: Device) -> None:
    session = opened()
    device.total_bytes = 1000
    with pytest.raises(DeviceMemoryError, match=r"out of memory: the encoder's token_ids needs"):
        session.run(token_ids(64))
    device.total_bytes = 1 << 30
    session.run(token_ids(64))

    def full(*_: Any) -> None:
        raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for 8388608")

    session._runs.run = full  # type: ignore[method-assign, assignment]
    with pytest.raises(
        DeviceMemoryError, match=r"text_encoder failed on token_ids .*smaller batch"
    ):
        session.run(token_ids(2))
    session.close()


class Slow:
    """Runs that wait in the computing thread until they may leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        enqueue: Callable[..., None] = DeviceRuns._enqueue_and_wait

        def slow(*args: Any, **options: Any) -> None:
            self.entered.set()
            assert self.leave.wait(30)
            enqueue(*args, **options)

        monkeypatch.setattr(DeviceRuns, "_enqueue_and_wait", slow)


def test_an_interrupted_run_keeps_its_lane_until_its_end(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the wait, not the run: no other batch may fill its buffers meanwhile."""
    plain, session = opened.plain(), opened(streams=1)
    slow = Slow(monkeypatch)
    result = Future.result

    def interrupted(future: Future[Any], *_: Any) -> Any:
        if future.done():
            return result(future)
        assert slow.entered.wait(30)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.run(token_ids(1))
    given = token_ids(64)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(session.run, given)
        time.sleep(0.05)
        assert not later.done()
        slow.leave.set()
        same(later.result(30), plain.run(given))
    session.close()


def test_close_waits_for_runs(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened()
    slow = Slow(monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        run = pool.submit(session.run, token_ids(2))
        assert slow.entered.wait(30)
        closing = [pool.submit(session.close) for _ in range(2)]
        time.sleep(0.05)
        assert not any(each.done() for each in closing), "the second waits too"
        slow.leave.set()
        for each in closing:
            each.result(30)
        assert run.result(30)["sentence_features"].shape[0] == 2


def test_a_session_that_does_not_load_gives_back_its_stream(
    opened: Opener, onnxruntime_module: OnnxRuntimeModule
) -> None:
    onnxruntime_module.refuses_graphs = True
    with pytest.raises(SessionError, match="cannot use the graph capture feature"):
        opened(replays=True)


def test_nothing_to_run(opened: Opener) -> None:
    session = opened()
    found = session.run(token_ids(0))
    assert found["sentence_features"].shape == (0, opened.bundle.manifest.model.embed_dim)
    session.close()
