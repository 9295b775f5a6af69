"""ONNX Runtime with a CUDA provider, on the stand-in: graphs run on the CPU, at addresses of it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as real

from stand_in_device.device import Device, Work

_Bound = dict[str, tuple[Any, tuple[int, ...], int]]
"""From tensor to dtype, shape and address."""


class OnnxRuntimeModule:
    """Stands in for the module, for sessions that get a stream of the caller's."""

    RunOptions = real.RunOptions
    SessionOptions = real.SessionOptions

    def __init__(self, device: Device) -> None:
        self.device = device
        self.refuses_graphs = False
        """Whether sessions have a node that no CUDA graph can hold."""
        self.captures: list[int] = []
        """Numbers of the CUDA graphs that were captured, in order."""
        self.replays = 0

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(
        self, path: Any, sess_options: Any, providers: Any, enable_fallback: int = 1
    ) -> Any:
        ((name, options),) = providers
        if enable_fallback:
            raise self.device.violation("a session that fails on the GPU runs on the CPU")
        session: _Renamed
        if "user_compute_stream" not in options:
            session = _Renamed(real.InferenceSession(path, sess_options), name)
        else:
            session = CudaSession(self, real.InferenceSession(path, sess_options), name, options)
        # The library's errors hold its session by this frame, as they do here.
        if (reason := self.device.fault("InferenceSession")) is not None:
            raise RuntimeError(reason)
        if self.refuses_graphs and options.get("enable_cuda_graph") == "1":
            raise RuntimeError("This session cannot use the graph capture feature")
        return session


class _Renamed:
    """A session that runs on the CPU, and says that it ran on another provider."""

    def __init__(self, session: Any, provider: str) -> None:
        self._session, self._provider = session, provider

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return [self._provider]


class CudaSession(_Renamed):
    """A session whose runs are enqueued on a stream, and replayed where that was asked for."""

    def __init__(
        self, module: OnnxRuntimeModule, session: Any, provider: str, options: dict[str, str]
    ) -> None:
        super().__init__(session, provider)
        self._module = module
        self._device = module.device
        self._stream = self._device.stream(options["user_compute_stream"], "a session")
        self._captures = options.get("enable_cuda_graph") == "1"
        self._graphs: dict[tuple[int, int], tuple[_Bound, _Bound]] = {}
        """From thread and number: each thread has graphs of its own."""
        self._tried: set[tuple[int, int]] = set()
        """Those whose capture began: such a number is captured at once when it comes again."""
        self._running = threading.Lock()
        self._device.objects += 1

    def __del__(self) -> None:
        self._device.objects -= 1
        # The provider waits for its stream, which must be there still.
        self._device.stream(self._stream.handle, "the end of a session")

    def io_binding(self) -> Binding:
        return Binding(self)

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        if not self._running.acquire(blocking=False):
            raise self._device.violation("two runs of a session at a time on one stream")
        try:
            self._run(binding, options)
        finally:
            self._running.release()

    def _run(self, binding: Binding, options: Any) -> None:
        device, module = self._device, self._module
        device.check_selected("a run of ONNX Runtime")
        if (reason := device.fault("run_with_iobinding")) is not None:
            raise RuntimeError(reason)
        entries = _entries(options)
        if entries["disable_synchronize_execution_providers"] != "1":
            raise device.violation("ONNX Runtime waits for each run")
        number = int(entries["gpu_graph_id"]) if self._captures else -1
        bound = (dict(binding.inputs), dict(binding.outputs))
        if number >= 0:
            key = (threading.get_ident(), number)
            if key not in self._graphs:
                if key in self._tried:
                    raise RuntimeError(
                        "operation not permitted when stream is capturing: cudaMalloc"
                    )
                self._tried.add(key)
                if (reason := device.fault("capture")) is not None:
                    # A run that breaks off may leave its stream capturing.
                    self._stream.capture, self._stream.capturing_thread = [], threading.get_ident()
                    self._stream.is_capture_valid = False
                    raise RuntimeError(reason)
                self._graphs[key] = bound
                module.captures.append(number)
            else:
                module.replays += 1
            bound = self._graphs[key]  # a graph keeps the addresses that it was captured with
        device.enqueue(self._stream, self._work(*bound))

    def _work(self, inputs: _Bound, outputs: _Bound) -> Work:
        device = self._device

        def found(name: str, bound: tuple[Any, tuple[int, ...], int]) -> Any:
            return device.find(bound[2], _nbytes(bound), name)

        def run() -> None:
            feeds = {}
            for name, (dtype, shape, address) in inputs.items():
                raw = device.read(address, _nbytes(inputs[name]), name)
                feeds[name] = raw.view(dtype).reshape(shape)
            names = list(outputs)
            for name, array in zip(names, self._session.run(names, feeds), strict=True):
                dtype, shape, address = outputs[name]
                if (array.dtype, array.shape) != (np.dtype(dtype), tuple(shape)):
                    raise device.violation(f"{name} is {array.dtype} {array.shape}, not {shape}")
                device.write(address, _raw(array), name)
            device.executions += 1

        both = (*inputs.items(), *outputs.items())
        return Work(run, tuple(found(name, bound).address for name, bound in both))


class Binding:
    """Addresses of a run. It holds the session, as that of the library does."""

    def __init__(self, session: CudaSession) -> None:
        self.session = session
        self.inputs: _Bound = {}
        self.outputs: _Bound = {}

    def bind_input(
        self, name: str, device: str, number: int, dtype: Any, shape: Any, address: int
    ) -> None:
        assert (device, number) == ("cuda", 0)
        self.inputs[name] = (dtype, tuple(shape), address)

    def bind_output(
        self, name: str, device: str, number: int, dtype: Any, shape: Any, address: int
    ) -> None:
        assert (device, number) == ("cuda", 0)
        self.outputs[name] = (dtype, tuple(shape), address)


def _entries(options: Any) -> dict[str, str]:
    found = {}
    for key in ("disable_synchronize_execution_providers", "gpu_graph_id"):
        try:
            found[key] = options.get_run_config_entry(key)
        except RuntimeError:  # noqa: PERF203 - a key that was not set is an error
            found[key] = ""
    return found


def _nbytes(bound: tuple[Any, tuple[int, ...], int]) -> int:
    dtype, shape, _ = bound
    itemsize: int = np.dtype(dtype).itemsize
    return int(np.prod(shape)) * itemsize


def _raw(array: Any) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
