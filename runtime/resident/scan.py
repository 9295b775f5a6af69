"""The interface of an exact scan: arrays of a gallery on the GPU, and the best of each text."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from xclip_deploy.runtime.arrays import BoolArray, Float32Array, Int64Array
from xclip_deploy.runtime.cuda.memory import DeviceArray
from xclip_deploy.runtime.features import TextFeatures

MAX_COUNT = 1000
"""Most videos that :meth:`GalleryScan.best` returns for a text."""
TEXTS_A_PASS = 32
"""Most texts that share one pass over the gallery's memory."""


@dataclass(frozen=True)
class ScanArrays:
    """Features of one gallery in GPU memory: S slots, row-major, each array aligned to 256 bytes.

    A slot holds one video. Slots may be empty; the mask of a scan leaves them out, whatever their
    content.
    """

    video_features: DeviceArray
    """Embedding of each video, FP16 [S, D]."""
    frame_features: DeviceArray | None
    """Embedding of each frame, FP16 [S, F, D]. None where no grain of the model reads frames."""
    num_frames: DeviceArray | None
    """Frames of each video without padding, int32 [S]. None where the model counts padding."""
    ranks: DeviceArray | None
    """Order among equal scores, int32 [S], lowest first. None: the order of the slots."""

    @property
    def num_slots(self) -> int:
        """Number of slots S."""
        return self.video_features.shape[0]


@dataclass(frozen=True, eq=False)
class Best:
    """The best videos of one text, best first. Equal scores are in the order of the ranks."""

    slots: Int64Array
    """Slot of each video, [n]. At most the count that was asked for, fewer where few are
    allowed."""
    scores: Float32Array
    """Score of each video: exp(logit_scale) times the mean of the grains, [n]."""
    grains: dict[str, Float32Array]
    """Similarity [n] of each grain that the model has, by its name."""

    def __len__(self) -> int:
        return len(self.slots)


class GalleryScan(Protocol):
    """An exact scan of a gallery on the GPU, and a context manager. Threads may share one.

    The gallery is FP16. Products accumulate in FP32, and the attention computes in FP32. A grain
    differs from that of the FP32 scorer on the same features by at most 3e-4 of its range.
    """

    def best(
        self, texts: TextFeatures, arrays: ScanArrays, count: int, allowed: BoolArray | None
    ) -> list[Best]:
        """Return the best videos of each text.

        ``texts``: any number of texts. ``count``: 1 to :data:`MAX_COUNT`. ``allowed``: the slots
        to search, bool [S]; None: all. Raises InvalidArgumentError for another count or shape,
        DeviceMemoryError where scratch memory does not fit, and SessionError.
        """
        ...

    def all(
        self, texts: TextFeatures, arrays: ScanArrays, allowed: BoolArray | None
    ) -> dict[str, Float32Array]:
        """Return ``logits`` and every grain of T texts for all S slots, [T, S] each.

        Slots that are not allowed are -inf. Copies 4 bytes a slot for each text and array. Raises
        as :meth:`best` does.
        """
        ...

    def close(self) -> None:
        """Free the kernels and the scratch memory, after running scans. Raises SessionError."""
        ...

    def __enter__(self) -> GalleryScan: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
