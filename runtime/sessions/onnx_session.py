"""One graph on ONNX Runtime: the session, its providers, and the checks of its boundary."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from xclip_deploy.errors import (
    BackendUnavailableError,
    BundleIntegrityError,
    DeviceMemoryError,
    MissingExtraError,
    SessionError,
)
from xclip_deploy.runtime.arrays import AnyArray, Rows
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cuda.gate import CAPTURES
from xclip_deploy.runtime.cuda.runtime_api import LOST
from xclip_deploy.runtime.manifest import AnyGraph, Graph, Precision, TensorSpec, Tolerance
from xclip_deploy.runtime.presentation import cut
from xclip_deploy.runtime.sessions.backend import Placement
from xclip_deploy.runtime.sessions.device_lanes import DeviceLink
from xclip_deploy.runtime.sessions.device_runs import DeviceRuns
from xclip_deploy.runtime.sessions.registry import Arithmetic

FP32 = Arithmetic("fp32", Precision.FP32)
FP16 = Arithmetic("fp16", Precision.FP16)
INT8 = Arithmetic("int8", Precision.INT8, is_automatic=False)
TF32 = Arithmetic(
    "tf32",
    Precision.FP32,
    is_automatic=False,
    # Several times the largest error measured on an H100, 4e-4 in a feature.
    tolerance=Tolerance(feature=2e-3, cosine=0.9999, score=5e-3),
)
"""Arithmetic of FP32 graphs whose matrix products round their factors to 10 bits of mantissa."""

CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
)
_MAX_REASON = 350
"""Most characters of a library's reason in a message."""
_OUT_OF_MEMORY = (
    "out of memory",
    "Failed to allocate memory",
    "is smaller than requested bytes",
    "STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
)
"""Words of ONNX Runtime, CUDA and its libraries where the GPU's memory is full."""
_LASTING_FAILURE = re.compile(r"CUDA failure (214|226|70[02]|71[0-9])\b")
"""ONNX Runtime's words on faults of a kernel or of memory, by CUDA's numbers of them."""
_REPLAYED_TEXTS, _REPLAYED_BYTES = 32, 32 << 20
"""Largest batches that are replayed as CUDA graphs: texts, and bytes of frames. 18 videos of 12
frames of 224 pixels are smaller."""
_ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
}


def import_onnxruntime() -> Any:  # noqa: ANN401 - the library ships without type hints
    """Import ``onnxruntime``. Raises MissingExtraError where neither build is installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "cpu", "Running a bundle") from error
    return onnxruntime


def open_bytes(graph: bytes) -> Any:  # noqa: ANN401 - a session of ONNX Runtime
    """Load a graph on the CPU, to run in the thread that calls. Raises SessionError."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(graph, sess_options=options, providers=[CPU_PROVIDER])
    except Exception as error:
        raise SessionError(f"ONNX Runtime cannot load its scorer: {one_line(error)}") from error


class OnnxRuntimeSession:
    """Session of one graph on ONNX Runtime."""

    def __init__(
        self,
        bundle: Bundle,
        graph: AnyGraph,
        placement: Placement,
        threads: int | None = None,
        provider_options: Mapping[str, str] | None = None,
        *,
        is_fused: bool = False,
    ) -> None:
        """Load a graph.

        ``provider_options``: options of the execution provider, by ONNX Runtime's names.
        ``is_fused``: whether to load the graph of fused operators, which the bundle has. Raises
        SessionError where the device cannot be used, and BundleIntegrityError where the file
        differs from the manifest.
        """
        onnxruntime = import_onnxruntime()
        self.graph = graph
        precision = placement.precision
        self._spec = bundle.manifest.spec(graph, precision, is_fused=is_fused)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone, which are raised too
        if threads is not None:
            options.intra_op_num_threads = threads
        if placement.device == "cpu":
            # A thread that spins for its next work takes the core from the other sessions, from
            # the scorer's threads and from processes that decode.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if precision is Precision.INT8:
            # Without VNNI, x86's product of U8 and S8 saturates silently at 16 bits.
            options.add_session_config_entry("session.x64quantprecision", "1")
        providers = providers_of(placement, provider_options or {})
        path = bundle.graph_path(graph, precision, is_fused=is_fused)
        self._is_on_gpu = placement.device != "cpu"
        self._process = os.getpid()
        self._session: Any = None
        failure: SessionError | None = None
        try:
            with self._beside_captures():
                # Python's part of the library would try the CPU next, and print that.
                self._session = onnxruntime.InferenceSession(
                    str(path), sess_options=options, providers=providers, enable_fallback=0
                )
        except Exception as error:  # noqa: BLE001 - the library raises classes of its own
            by = f" with {providers[0][0]}" if self._is_on_gpu else ""
            failure = self._error(f"ONNX Runtime cannot load {path}{by}: {one_line(error)}", error)
        if failure is not None:
            # The library's error holds the session, which would stay on the GPU as long.
            raise failure
        # ONNX Runtime itself falls back to the CPU silently; refuse that.
        loaded = self._session.get_providers()
        missing = [name for name, _ in providers if name not in loaded]
        if missing:
            libraries = "TensorRT 10" if missing[0] == TENSORRT_PROVIDER else "CUDA and cuDNN"
            raise BackendUnavailableError(
                f"device {placement.device} was chosen, but ONNX Runtime could not load "
                f"{missing[0]} and offers {', '.join(loaded)}; its {libraries} libraries may be "
                "missing (see its log above); use device='cpu' or install them"
            )
        _check_boundary(bundle, self._session.get_inputs(), self._spec.inputs)
        _check_boundary(bundle, self._session.get_outputs(), self._spec.outputs)
        self._output_names = [spec.name for spec in self._spec.outputs]

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """See :meth:`Session.run`."""
        self._check_usable()
        feeds = {
            spec.name: np.ascontiguousarray(inputs[spec.name], dtype=spec.dtype.value)
            for spec in self._spec.inputs
        }
        return self._guarded(self._run, feeds)

    def _guarded(
        self, run: Callable[[Any], dict[str, AnyArray]], feeds: Mapping[str, AnyArray | Rows]
    ) -> dict[str, AnyArray]:
        """Run on inputs, and raise SessionError for whatever the library raises."""
        try:
            return run(feeds)
        except SessionError:
            raise
        except Exception as error:  # noqa: BLE001 - the library raises classes of its own
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            what = f"{self.graph.value} failed on {shapes}: {one_line(error)}"
            failure = self._error(what, error)
        raise failure  # without the library's error, which holds the session

    def _error(self, what: str, error: Exception) -> SessionError:
        """Return the error for a failure of the library; a full GPU has a class of its own."""
        if self._is_on_gpu and any(words in str(error) for words in _OUT_OF_MEMORY):
            return DeviceMemoryError(
                f"{what}; end other programs on the GPU, or use smaller batches"
            )
        is_lost = self._is_on_gpu and _LASTING_FAILURE.search(str(error)) is not None
        return SessionError(f"{what}; {LOST}" if is_lost else what)

    def _run(self, feeds: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Run once on arrays of the graph's dtypes. Raises what the library raises."""
        with self._beside_captures():
            outputs = self._session.run(self._output_names, feeds)
        return dict(zip(self._output_names, outputs, strict=True))

    def _beside_captures(self) -> AbstractContextManager[None]:
        """Keep ONNX Runtime from capturing a CUDA graph meanwhile."""
        return CAPTURES.shared() if self._is_on_gpu else nullcontext()

    def _check_usable(self) -> None:
        """Raise SessionError once closed, and on a GPU in a process that was forked since."""
        if self._session is None:
            raise SessionError(f"the {self.graph.value} session is closed")
        if self._is_forked:
            raise SessionError(
                f"the {self.graph.value} session belongs to the process that this one was forked "
                "from, and CUDA does not work here; open the model after the fork, or use spawn"
            )

    @property
    def _is_forked(self) -> bool:
        """True where ``fork`` made this process after the session was opened on a GPU.

        Threads and GPU are its parent's. A run would wait for a thread that does not exist here.
        """
        return self._is_on_gpu and os.getpid() != self._process

    def chunk(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """See :meth:`Session.chunk`. Graphs take any size."""
        return dict(wanted)

    def close(self) -> None:
        """See :meth:`Session.close`. What a parent process opened on a GPU is left alone."""
        if not self._is_forked:
            with self._beside_captures():
                self._session = None


class BoundSession(OnnxRuntimeSession):
    """Session of an encoder on a GPU, whose runs go through buffers and a stream of ours."""

    def __init__(
        self,
        bundle: Bundle,
        graph: AnyGraph,
        placement: Placement,
        threads: int | None = None,
        provider_options: Mapping[str, str] | None = None,
        *,
        link: DeviceLink,
        report: Callable[[str], None],
        is_fused: bool = False,
        streams: int = 2,
        replays: bool = False,
    ) -> None:
        """Load a graph with one dynamic axis, the first of every tensor.

        ``link``: stream to compute on, which the session owns from now on. ``report``: takes the
        reason why a batch size is not replayed. ``streams``: batches whose buffers are filled, read
        or computed on at a time. ``replays``: whether to replay repeated small batches as CUDA
        graphs. Raises as :class:`OnnxRuntimeSession`, and SessionError where the graph has nodes
        that no CUDA graph can hold.
        """
        given = {**(provider_options or {}), **link.provider_options}
        if replays:
            given["enable_cuda_graph"] = "1"
        self._link = link
        self._closing = threading.Lock()
        try:
            super().__init__(bundle, graph, placement, threads, given, is_fused=is_fused)
            self._runs = DeviceRuns(
                self._session,
                self._spec,
                link,
                import_onnxruntime().RunOptions,
                report,
                lanes=streams,
                replays=_replayed(graph) if replays else None,
            )
        except BaseException as error:
            # The session goes before the stream that it computes on. Frames below hold it.
            self._session = error.__traceback__ = None
            link.close()
            raise

    def run_rows(self, inputs: Mapping[str, Sequence[AnyArray]]) -> dict[str, AnyArray]:
        """Run on inputs that several arrays make up; see :meth:`TakesRows.run_rows`."""
        self._check_usable()
        feeds = {spec.name: Rows(inputs[spec.name], spec.dtype.value) for spec in self._spec.inputs}
        return self._guarded(self._runs.run, feeds)

    def _run(self, feeds: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        return self._runs.run(feeds)

    def close(self) -> None:
        """See :meth:`Session.close`. Waits for runs that are under way."""
        if self._is_forked:
            return
        with self._closing:  # a second caller must not destroy the stream below the first
            if self._session is None:
                return
            try:
                self._runs.close()
            finally:
                super().close()
                self._link.close()


def _replayed(graph: AnyGraph) -> Callable[[int, int], bool]:
    """Return the rule for batches that are replayed, by their size and the bytes of their input.

    Larger ones keep a GPU busy for longer than it takes to launch their kernels.
    """
    if graph is Graph.TEXT_ENCODER:
        return lambda size, _: size <= _REPLAYED_TEXTS
    return lambda _, nbytes: nbytes <= _REPLAYED_BYTES


def providers_of(
    placement: Placement, provider_options: Mapping[str, str]
) -> list[tuple[str, dict[str, str]]]:
    """Return the providers with their options, preferred first."""
    if placement.device == "cpu":
        return [(CPU_PROVIDER, dict(provider_options))]
    # The CUDA provider multiplies FP32 in TF32 by default. FP32 means FP32 here.
    use_tf32 = "1" if placement.arithmetic is TF32 else "0"
    device = {"device_id": str(placement.device_id)}
    cuda = {**device, "use_tf32": use_tf32}
    if placement.backend == "tensorrt-provider":
        # Nodes that TensorRT refuses run on CUDA.
        return [(TENSORRT_PROVIDER, {**device, **provider_options}), (CUDA_PROVIDER, cuda)]
    return [(CUDA_PROVIDER, {**cuda, **provider_options})]


def _check_boundary(bundle: Bundle, found: list[Any], expected: tuple[TensorSpec, ...]) -> None:
    """Compare a loaded graph's inputs or outputs with the manifest."""
    have = [(node.name, _ONNX_TYPES.get(node.type, node.type)) for node in found]
    want = [(spec.name, spec.dtype.value) for spec in expected]
    if have != want:
        raise BundleIntegrityError(
            f"bundle {bundle.path}: a graph has tensors {cut(str(have), _MAX_REASON)}, the "
            f"manifest says {cut(str(want), _MAX_REASON)}; "
            f"run: xclip-deploy export CHECKPOINT -o {bundle.path}"
        )


def one_line(error: Exception) -> str:
    """Return a library's reason in one line of bounded length."""
    return cut(" ".join(str(error).split()), _MAX_REASON)
