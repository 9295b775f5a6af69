"""Find TensorRT: the installed flavour, its version and the GPUs that it builds for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from xclip_deploy.errors import EngineBuildError, InvalidArgumentError, MissingExtraError
from xclip_deploy.runtime.engine_set import BuildOptions, Flavour, HardwareCompatibility
from xclip_deploy.runtime.nvidia_driver import VisibleGpu, first_gpu


@dataclass(frozen=True)
class TensorRT:
    """One TensorRT library, ready to build."""

    flavour: Flavour
    module: Any
    version: str
    gpu: VisibleGpu | None
    """GPU that it builds on; None for ``rtx``, which builds on the CPU."""

    @property
    def name(self) -> str:
        """Module and version, for messages."""
        return f"{self.flavour.module_name} {self.version}"

    def target(self, options: BuildOptions) -> str:
        """Name the GPUs that engines built with ``options`` run on; see `EngineSet.target`."""
        if self.gpu is None:
            return "-".join(options.compute_capabilities) or "portable"
        capability = f"sm{self.gpu.major}{self.gpu.minor}"
        if options.hardware_compatibility is HardwareCompatibility.NONE:
            return capability
        return f"{capability}-{options.hardware_compatibility.value}"


def load_tensorrt(flavour: str = "auto") -> TensorRT:
    """Load ``tensorrt`` or ``rtx`` (the module ``tensorrt_rtx``).

    ``auto`` takes ``tensorrt`` where it is installed and a GPU is there, since it builds for that
    GPU alone. Otherwise it takes ``rtx``, which needs no GPU to build.

    Raises MissingExtraError where the library is not installed, EngineBuildError where it cannot
    build here, and InvalidArgumentError for an unknown flavour.
    """
    if flavour != "auto":
        try:
            chosen = Flavour(flavour)
        except ValueError as error:
            raise InvalidArgumentError(
                f"flavour {flavour!r}: expected auto, tensorrt or rtx"
            ) from error
        return _load(chosen)
    if first_gpu() is not None and _import(Flavour.TENSORRT) is not None:
        return _load(Flavour.TENSORRT)
    if _import(Flavour.RTX) is not None:
        return _load(Flavour.RTX)
    if _import(Flavour.TENSORRT) is not None:
        return _load(Flavour.TENSORRT)  # raises: there is no GPU
    raise MissingExtraError("tensorrt_rtx", "rtx", "Building TensorRT engines")


def _load(flavour: Flavour) -> TensorRT:
    module = _import(flavour)
    if module is None:
        raise MissingExtraError(flavour.module_name, flavour.value, "Building TensorRT engines")
    gpu = None
    if flavour is Flavour.TENSORRT:
        gpu = first_gpu()
        if gpu is None:
            raise EngineBuildError(
                "tensorrt builds on the GPU that the engines are for, and none is here; "
                "run on a GPU machine, or: pip install 'xclip-deploy[rtx]' and --flavor rtx"
            )
    return TensorRT(flavour, module, str(module.__version__), gpu)


def _import(flavour: Flavour) -> ModuleType | None:
    try:
        return importlib.import_module(flavour.module_name)
    except ImportError:
        return None
