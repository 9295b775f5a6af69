"""Arrays of a resident gallery, their sizes, and the memory that they may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xclip_deploy.runtime.cuda.memory import DeviceMemory
from xclip_deploy.runtime.grains import GRAINS
from xclip_deploy.runtime.manifest import DType
from xclip_deploy.runtime.model_config import ModelConfig

SHARE_OF_FREE = 0.8
"""Share of the free GPU memory that a gallery may take if nothing else is said."""


@dataclass(frozen=True)
class ArrayLayout:
    """One array, with a row for each slot."""

    name: str
    """Name of the array in VideoFeatures; ``ranks`` for the order of ties."""
    shape: tuple[int, ...]
    """Shape of a slot's row."""
    dtype: DType

    @cached_property
    def slot_bytes(self) -> int:
        """Size of a slot's row, bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype.value).itemsize


class Layout:
    """The arrays that a model's scan reads."""

    ranks = ArrayLayout("ranks", (), DType.INT32)

    def __init__(self, config: ModelConfig) -> None:
        """Read the sizes from a model's configuration."""
        dim, frames = config.embed_dim, config.max_frames
        self.reads_frames = any(GRAINS[grain].reads_frames for grain in config.grains)
        self._videos = ArrayLayout("video_features", (dim,), DType.FLOAT16)
        self._frames = [ArrayLayout("frame_features", (frames, dim), DType.FLOAT16)]
        if config.mask_padding:
            self._frames.append(ArrayLayout("num_frames", (), DType.INT32))

    def arrays(self, *, with_frames: bool = True) -> Sequence[ArrayLayout]:
        """List the arrays; ``with_frames``: whether those of the frames are among them."""
        return [self._videos, *(self._frames if with_frames and self.reads_frames else [])]

    def slot_bytes(self, *, with_frames: bool = True) -> int:
        """Return the memory of one slot, bytes."""
        return sum(each.slot_bytes for each in self.arrays(with_frames=with_frames))


@dataclass(frozen=True)
class MemoryBound:
    """The GPU memory that a gallery may take."""

    limit_bytes: int | None = None
    """Most memory, bytes; None for :data:`SHARE_OF_FREE` of what is free."""

    def left(self, memory: DeviceMemory) -> int:
        """Return how many bytes the gallery may take in addition. Raises SessionError."""
        return self.most(memory) - memory.held_bytes

    def most(self, memory: DeviceMemory) -> int:
        """Return how much the gallery may hold in all, bytes. Raises SessionError."""
        memory.cuda.select()
        free, _ = memory.cuda.memory()
        share = int(SHARE_OF_FREE * (free + memory.held_bytes))
        return (
            share if self.limit_bytes is None else min(self.limit_bytes, free + memory.held_bytes)
        )


def room_text(layout: Layout, num_rows: int, bound: MemoryBound, memory: DeviceMemory) -> str:
    """Say how much memory a gallery needs, and how much there is. Raises SessionError."""
    free, total = memory.cuda.memory()
    needed = size_text(num_rows * layout.slot_bytes())
    least = num_rows * layout.slot_bytes(with_frames=False)
    without = f", {size_text(least)} without frames" if layout.reads_frames else ""
    allowed = size_text(bound.most(memory))
    if bound.limit_bytes is None:
        rule = f"{allowed} may be taken, {SHARE_OF_FREE:.0%} of what is free"
    else:
        rule = f"{allowed} may be taken by gallery_memory_bytes"
    return (
        f"a gallery of {num_rows:,} rows needs {needed} of GPU memory{without}; {rule} "
        f"({size_text(free)} of {size_text(total)} on GPU {memory.cuda.device_id}); end other "
        "programs on it, raise gallery_memory_bytes, or use resident_gallery=False"
    )


def size_text(nbytes: int) -> str:
    """Write a number of bytes for people: ``12.3 GB``, ``512.0 MB``."""
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"
