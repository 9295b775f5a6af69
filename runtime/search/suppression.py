"""Temporal non-maximum suppression: of moments that overlap, the best one is shown.

Suppression changes the order of presentation and never what is found. In corpus-level moment
retrieval on TVR, suppression before ranking raised R@5 and ruined R@100 (Lei et al., ECCV 2020).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import BoolArray, Float64Array, slices

_AT_ONCE = 512
"""Moments that are compared with each other at a time."""
_SLACK = 1e-9
"""IoU by which sums of window lengths may miss a threshold."""


def temporal_iou(
    starts_s: Float64Array,
    ends_s: Float64Array,
    other_starts_s: Float64Array,
    other_ends_s: Float64Array,
) -> Float64Array:
    """Return the overlap of each range [m] with each other one [n], divided by their union: [m, n].

    An unknown time (NaN) gives NaN, an empty union 0.
    """
    starts, ends = starts_s[:, np.newaxis], ends_s[:, np.newaxis]
    overlap = np.maximum(np.minimum(ends, other_ends_s) - np.maximum(starts, other_starts_s), 0)
    # Where ranges do not overlap, the overlap is 0 whatever lies between them.
    union = np.maximum(ends, other_ends_s) - np.minimum(starts, other_starts_s)
    shares: Float64Array = np.divide(overlap, union, out=np.zeros_like(union), where=union != 0)
    return shares


def suppressed(
    numbers: npt.NDArray[np.int64],
    starts_s: Float64Array,
    ends_s: Float64Array,
    iou: float | None,
) -> BoolArray:
    """Tell for each moment [n], listed best first, whether a better one of its video overlaps it.

    ``numbers``: the video of each moment. A moment counts only if it is not suppressed itself.
    ``iou``: overlap above which a moment is suppressed; None suppresses none. The answers for the
    first n moments do not depend on those after them.
    """
    is_out = np.zeros(len(numbers), np.bool_)
    if iou is None:
        return is_out
    kept = np.empty(0, np.int64)
    for part in slices(len(numbers), _AT_ONCE):
        own = np.arange(part.start, part.stop)
        others = np.concatenate([kept, own])
        overlaps = temporal_iou(starts_s[others], ends_s[others], starts_s[part], ends_s[part])
        rivals = (overlaps > iou + _SLACK) & (numbers[others, np.newaxis] == numbers[part])
        out = rivals[: len(kept)].any(axis=0)
        within = rivals[len(kept) :]
        for n in np.flatnonzero(within.sum(axis=1) > 1).tolist():  # each is its own rival
            if not out[n]:
                out[n + 1 :] |= within[n, n + 1 :]
        is_out[part] = out
        kept = np.concatenate([kept, own[~out]])
    return is_out


def first_kept(
    starts_s: list[float], ends_s: list[float], iou: float | None, count: int
) -> list[int]:
    """Return the places of the first ``count`` moments of one video that are not suppressed.

    The moments are listed best first, as for :func:`suppressed`.
    """
    kept: list[int] = []
    for n, (start_s, end_s) in enumerate(zip(starts_s, ends_s, strict=True)):
        if len(kept) == count:
            break
        if iou is None or not any(
            _overlap(start_s, end_s, starts_s[m], ends_s[m]) > iou + _SLACK for m in kept
        ):
            kept.append(n)
    return kept


def _overlap(start_s: float, end_s: float, other_start_s: float, other_end_s: float) -> float:
    """Return the temporal IoU of two ranges, 0 for unknown times."""
    overlap = min(end_s, other_end_s) - max(start_s, other_start_s)
    return overlap / (max(end_s, other_end_s) - min(start_s, other_start_s)) if overlap > 0 else 0.0


def kept_first(is_suppressed: BoolArray, block: int) -> npt.NDArray[np.intp]:
    """Return the order in which suppressed moments follow the others, in blocks of ``block``.

    The blocks make the order of a long list begin with that of a shorter one, so that pages of
    any depth fit together.
    """
    return np.lexsort((is_suppressed, np.arange(len(is_suppressed)) // block))
