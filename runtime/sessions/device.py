"""Choosing where to run and with what, and saying why."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from xclip_deploy.errors import DriverError, MissingExtraError, SessionError, XclipDeployError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.engine_set import Flavour, engine_sets
from xclip_deploy.runtime.manifest import Precision
from xclip_deploy.runtime.sessions.protocol import Backend, SessionOptions

if TYPE_CHECKING:
    from xclip_deploy.runtime.sessions.native.runner import NativeRuntime

_CPU_PRECISIONS = (Precision.FP32, Precision.FP16)
_GPU_PRECISIONS = (Precision.FP16, Precision.FP32)
"""What ``auto`` takes, in the order of preference."""


@dataclass(frozen=True)
class Placement:
    """The device, precision and backend that were chosen."""

    device: Literal["cpu", "cuda"]
    precision: Precision
    reason: str
    """One line for people: what was asked for or found."""
    backend: Backend = "onnxruntime"
    device_id: int = 0
    """Which GPU."""
    native: NativeRuntime | None = None
    """With the backends ``tensorrt`` and ``rtx``: GPU, library and engines, found to fit."""

    @property
    def device_name(self) -> str:
        """For people: ``cpu``, ``cuda:0``."""
        return "cpu" if self.device == "cpu" else f"cuda:{self.device_id}"


def place(options: SessionOptions, bundle: Bundle) -> Placement:
    """Choose device, backend and precision for a bundle.

    What was asked for is taken or refused; only what was left to ``auto`` is chosen: engines of
    the bundle that fit this machine, else ONNX Runtime on the GPU, else on the CPU.

    Raises SessionError (DriverError, EngineError) where what was asked for is not there,
    MissingExtraError where no library is installed that could run it.
    """
    if options.backend in ("tensorrt", "rtx"):
        return _native(
            options, bundle, Flavour(options.backend), f"{options.backend} was asked for"
        )
    if options.device == "cpu":
        return _on_cpu(options, bundle, "cpu was asked for")
    if (
        options.device == "auto"
        and options.precision == "int8"
        and options.backend != ("tensorrt-provider")
    ):
        return _on_cpu(options, bundle, "auto: int8 was asked for, which runs on a CPU")
    if options.backend == "tensorrt-provider":
        missing = why_no_cuda(_providers(), "TensorrtExecutionProvider")
        if missing is not None:
            raise SessionError(f"backend tensorrt-provider was asked for, but {missing}")
        reason = "tensorrt-provider was asked for, and a GPU is there"
        return _on_gpu(options, bundle, "tensorrt-provider", reason)
    no_engines = "onnxruntime was asked for"
    if options.backend == "auto":
        found, no_engines = _fitting_engines(options, bundle)
        if found is not None:
            return found
    missing = why_no_cuda(_providers())
    if missing is None:
        reason = f"{options.device} was asked for, and a GPU is there; {no_engines}"
        return _on_gpu(options, bundle, "onnxruntime", reason)
    if options.device == "cuda":
        raise SessionError(f"device cuda was asked for, but {missing}; {no_engines}")
    return _on_cpu(options, bundle, f"auto: {missing}")


def why_no_cuda(providers: Sequence[str], provider: str = "CUDAExecutionProvider") -> str | None:
    """Why ONNX Runtime cannot run on a GPU here, or None where it should."""
    if provider not in providers:
        return (
            f"this onnxruntime has no {'CUDA' if 'CUDA' in provider else 'TensorRT'} provider; "
            "run: pip uninstall -y onnxruntime && pip install 'xclip-deploy[gpu]'"
        )
    return why_no_gpu()


def why_no_gpu() -> str | None:
    """Why there is no GPU to be used here, by the driver's own library; None where there is."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed (libcuda.so.1 not found)"
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return f"the NVIDIA driver reports CUDA error {status}"
    return None if count.value > 0 else "the NVIDIA driver sees no GPU"


def _fitting_engines(options: SessionOptions, bundle: Bundle) -> tuple[Placement | None, str]:
    """Engines of the bundle that this machine can run; else why there are none."""
    if why_no_gpu() is not None:
        return None, "no GPU for engines"
    try:
        built = {engine_set.flavour for engine_set in engine_sets(bundle).values()}
    except XclipDeployError as error:
        return None, f"its engines cannot be used: {error}"
    if not built:
        return None, "the bundle has no engines"
    refusals = []
    # Where both fit, the one that was built on and for this very GPU.
    for flavour in (Flavour.TENSORRT, Flavour.RTX):
        if flavour in built:
            try:
                return _native(options, bundle, flavour, options.device), ""
            except (XclipDeployError, MissingExtraError) as error:
                refusals.append(str(error))
    return None, f"its engines cannot be used: {' | '.join(refusals)}"


def _native(options: SessionOptions, bundle: Bundle, flavour: Flavour, asked: str) -> Placement:
    # Here: nothing of it is needed where engines are not used.
    from xclip_deploy.runtime.sessions.native.runner import NativeRuntime

    try:
        native = NativeRuntime(bundle, flavour, options)
    except DriverError as error:
        raise DriverError(f"backend {flavour.value}: {error}") from error
    return Placement(
        device="cuda",
        precision=native.engines.engine_set.precision,
        reason=(
            f"{asked}: engines {native.engines.folder.name} fit {native.library.name} "
            f"and {native.gpu}"
        ),
        backend=flavour.value,
        device_id=options.device_id,
        native=native,
    )


def _on_cpu(options: SessionOptions, bundle: Bundle, reason: str) -> Placement:
    _providers()  # raises where ONNX Runtime is not installed
    return Placement("cpu", _precision(options, bundle, "cpu"), reason)


def _on_gpu(options: SessionOptions, bundle: Bundle, backend: Backend, reason: str) -> Placement:
    return Placement(
        "cuda", _precision(options, bundle, "cuda"), reason, backend, options.device_id
    )


def _precision(
    options: SessionOptions, bundle: Bundle, device: Literal["cpu", "cuda"]
) -> Precision:
    available = bundle.precisions
    names = ", ".join(precision.value for precision in available)
    if options.precision == "auto":
        order = _CPU_PRECISIONS if device == "cpu" else _GPU_PRECISIONS
        for precision in order:
            if precision in available:
                return precision
        raise SessionError(
            f"the bundle has {names} graphs alone, which are taken only where they are asked "
            f"for; pass precision={available[0].value!r}"
        )
    precision = Precision(options.precision)
    if precision is Precision.BF16:
        raise SessionError(
            "precision bf16 was asked for, which ONNX Runtime does not run; "
            "use backend 'tensorrt' or 'rtx'"
        )
    if precision not in available:
        raise SessionError(f"precision {precision.value} was asked for; the bundle has {names}")
    if precision is Precision.INT8 and device == "cuda":
        raise SessionError("precision int8 was asked for, which runs on a CPU; use device 'cpu'")
    return precision


def _providers() -> list[str]:
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "cpu", "Running a bundle") from error
    providers: list[str] = onnxruntime.get_available_providers()
    return providers
