"""What every inference backend offers, one graph at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.manifest import Graph, Precision

Array = npt.NDArray[Any]
DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "fp32", "fp16"]


@dataclass(frozen=True)
class SessionOptions:
    """How inference sessions are opened."""

    device: DeviceName = "auto"
    """Where to run; ``auto`` takes an NVIDIA GPU where one can be used, else the CPU."""
    precision: PrecisionName = "auto"
    """Which graphs to run; ``auto`` takes FP16 on a GPU and FP32 on a CPU, where it is faster."""
    threads: int | None = None
    """CPU threads of a session; None: one per core."""

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise InvalidArgumentError(f"device {self.device!r}: expected auto, cpu or cuda")
        if self.precision not in ("auto", "fp32", "fp16"):
            raise InvalidArgumentError(f"precision {self.precision!r}: expected auto, fp32 or fp16")
        if self.threads is not None and self.threads < 1:
            raise InvalidArgumentError(f"threads {self.threads}: expected at least 1")


class Session(Protocol):
    """One graph, loaded and ready to run. ``run`` may be called from several threads."""

    graph: Graph
    precision: Precision
    device: str
    """What it runs on, for people: ``cpu``, ``cuda:0``."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Inputs by name, in the shapes of the manifest; more names are ignored.

        Arrays are cast to the graph's dtypes. Raises SessionError.
        """
        ...

    def close(self) -> None:
        """Free the memory. Running afterwards raises SessionError."""
        ...
