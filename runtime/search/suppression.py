"""Temporal non-maximum suppression: of moments that overlap, the best one is shown.

Suppression changes the order of presentation and never what is found. In corpus-level moment
retrieval on TVR, suppression before ranking raised R@5 and ruined R@100 (Lei et al., ECCV 2020).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import BoolArray, Float64Array

_SLACK = 1e-9
"""IoU by which sums of window lengths may miss a threshold."""


def temporal_iou(
    start_s: float, end_s: float, starts_s: Float64Array, ends_s: Float64Array
) -> Float64Array:
    """Return the overlap of a range with others [n], divided by their union.

    An unknown time (NaN) gives NaN, an empty union 0.
    """
    overlap = np.maximum(np.minimum(end_s, ends_s) - np.maximum(start_s, starts_s), 0)
    union = np.maximum(end_s, ends_s) - np.minimum(start_s, starts_s)
    # Where ranges do not overlap, the overlap is 0 whatever lies between them.
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
    found = np.zeros(len(numbers), np.bool_)
    if iou is None or len(numbers) < 2:
        return found
    order = np.argsort(numbers, kind="stable")
    ends = np.flatnonzero(np.diff(numbers[order])) + 1
    for places in np.split(order, ends):
        starts, stops = starts_s[places], ends_s[places]
        is_out = np.zeros(len(places), np.bool_)
        for n in range(len(places) - 1):
            if not is_out[n]:
                overlaps = temporal_iou(starts[n], stops[n], starts[n + 1 :], stops[n + 1 :])
                is_out[n + 1 :] |= overlaps > iou + _SLACK
        found[places] = is_out
    return found


def kept_first(is_suppressed: BoolArray, block: int) -> npt.NDArray[np.intp]:
    """Return the order in which suppressed moments follow the others, in blocks of ``block``.

    The blocks make the order of a long list begin with that of a shorter one, so that pages of
    any depth fit together.
    """
    return np.lexsort((is_suppressed, np.arange(len(is_suppressed)) // block))
