"""What every inference backend offers, one graph at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError, SessionError
from xclip_deploy.runtime.manifest import Graph, Precision

Array = npt.NDArray[Any]
DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "fp32", "fp16", "bf16", "int8"]
Backend = Literal["onnxruntime", "tensorrt-provider", "tensorrt", "rtx"]
BackendName = Literal["auto", "onnxruntime", "tensorrt-provider", "tensorrt", "rtx"]


@dataclass(frozen=True)
class SessionOptions:
    """How inference sessions are opened."""

    device: DeviceName = "auto"
    """Where to run; ``auto`` takes an NVIDIA GPU where one can be used, else the CPU."""
    precision: PrecisionName = "auto"
    """Which graphs or engines to run; ``auto`` takes FP16 on a GPU and FP32 on a CPU, where it
    is faster, and never BF16 (engines alone) or INT8 (ONNX Runtime on a CPU alone)."""
    threads: int | None = None
    """CPU threads of a session of ONNX Runtime; None: one per core."""
    backend: BackendName = "auto"
    """What runs the model. ``onnxruntime``: ONNX Runtime, on CPU or CUDA. ``tensorrt-provider``:
    ONNX Runtime with its own TensorRT 10, which builds engines as it loads. ``tensorrt`` and
    ``rtx``: the engines of ``xclip-deploy build-trt``. ``auto``: engines that fit this machine,
    else ONNX Runtime."""
    engines: Path | None = None
    """Folder of the engine set for ``tensorrt`` or ``rtx``; None: the best of the bundle's that
    fits this machine."""
    device_id: int = 0
    """Which GPU, by CUDA's number."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """For ONNX Runtime's execution provider, by its own names."""
    device_memory_bytes: int | None = None
    """Most GPU memory that engines may take with all their buffers; None: what is free."""
    streams: int = 2
    """Most runs of one engine at the same time, each with its own stream and buffers."""
    cuda_graphs: bool = True
    """Whether engines replay runs of a shape that comes again as a CUDA graph."""
    resident_gallery: bool = True
    """Whether engines keep the gallery in GPU memory between searches."""

    def __post_init__(self) -> None:
        _check_choice("device", self.device, get_args(DeviceName))
        _check_choice("precision", self.precision, get_args(PrecisionName))
        _check_choice("backend", self.backend, get_args(BackendName))
        if self.threads is not None and self.threads < 1:
            raise InvalidArgumentError(f"threads {self.threads}: expected at least 1")
        if self.device_id < 0:
            raise InvalidArgumentError(f"device_id {self.device_id}: expected 0 or more")
        if self.device_memory_bytes is not None and self.device_memory_bytes < 1:
            raise InvalidArgumentError(
                f"device_memory_bytes {self.device_memory_bytes}: expected at least 1"
            )
        if self.streams < 1:
            raise InvalidArgumentError(f"streams {self.streams}: expected at least 1")
        if self.device == "cpu" and self.backend not in ("auto", "onnxruntime"):
            raise InvalidArgumentError(
                f"backend {self.backend!r} runs on a GPU: expected device auto or cuda, found cpu"
            )
        if self.engines is not None and self.backend not in ("tensorrt", "rtx"):
            raise InvalidArgumentError(
                f"engines {self.engines} were given with backend {self.backend!r}; "
                "expected backend tensorrt or rtx"
            )
        if self.backend in ("tensorrt", "rtx") and self.provider_options:
            raise InvalidArgumentError(
                f"provider_options are for ONNX Runtime: expected none with backend "
                f"{self.backend!r}, found {', '.join(self.provider_options)}"
            )


class Session(Protocol):
    """One graph, loaded and ready to run. ``run`` may be called from several threads."""

    graph: Graph
    precision: Precision
    backend: Backend
    device: str
    """What it runs on, for people: ``cpu``, ``cuda:0``."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Inputs by name, in the shapes of the manifest; more names are ignored.

        Arrays are cast to the graph's dtypes. Raises SessionError.
        """
        ...

    def chunk(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """How much of a job to do in one run, at most.

        ``wanted``: size of every dynamic axis by name, each at least 1. Returns sizes no
        larger that one run can take; the job is then done in the fewest runs.
        """
        ...

    def close(self) -> None:
        """Free the memory. Running afterwards raises SessionError."""
        ...


class Closable(Protocol):
    """What holds something to give back."""

    def close(self) -> None:
        """Give it back."""
        ...


def close_all(parts: Iterable[Closable]) -> SessionError | None:
    """Close every part, whatever happens; the first failure, to be raised or logged."""
    failures = [error for error in map(_close, parts) if error is not None]
    return failures[0] if failures else None


def _close(part: Closable) -> SessionError | None:
    try:
        part.close()
    except SessionError as error:
        return error
    return None


def _check_choice(name: str, found: object, expected: tuple[str, ...]) -> None:
    if found not in expected:
        choices = f"{', '.join(expected[:-1])} or {expected[-1]}"
        raise InvalidArgumentError(f"{name} {found!r}: expected {choices}")
