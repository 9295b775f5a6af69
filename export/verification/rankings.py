"""Compare how two score matrices rank the same videos: agreement at the top, and flips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import FloatArray

TOPS = (1, 5, 10)
DEPTH = 10
"""Number of videos of a ranking that count, as many as a search shows."""
_KEPT = 24


@dataclass(frozen=True)
class Flip:
    """Two videos that one text ranks in another order than the reference does."""

    text: int
    """Row of the text."""
    upper: int
    """Column of the video that the reference ranks first."""
    lower: int
    """Column of the other one."""
    reference_gap: float
    """Score of ``upper`` less that of ``lower`` in the reference, above 0; logits."""
    found_gap: float
    """The same in the run, below 0; logits."""


@dataclass(frozen=True)
class RankComparison:
    """Agreement and flips of two rankings; ``RankingRecord`` of the certificate explains fields."""

    top_agreement: dict[int, float | None]
    flips: int
    near_tie_flips: int
    texts_flipped: int
    texts_changed: int
    moves: npt.NDArray[np.int64]
    """Number of texts by the video's rank in the reference (row) and in the run (column), [depth,
    depth + 1]. The last column counts ranks further down. ``depth``: 10, or all videos."""
    worst: tuple[Flip, ...]
    """Flips with the largest gaps in the reference, descending."""

    @property
    def largest_flipped_gap(self) -> float:
        """Largest gap of a flip in the reference, logits; 0 without flips."""
        return self.worst[0].reference_gap if self.worst else 0.0


def compare_rankings(
    reference: FloatArray, found: FloatArray, tie_gap: float, *, kept: int = _KEPT
) -> RankComparison:
    """Compare how the rows (texts) of two score matrices rank the columns (videos).

    A *flip* is a pair of columns that the reference puts strictly in one order and ``found``
    strictly in the other. Both columns are among the first ten of either matrix. A flip whose
    columns are at most ``tie_gap`` apart in the reference is a near tie and counted apart. If no
    score is off by more than ``tie_gap / 2``, all flips are near ties. Columns with equal scores
    rank in column order.

    Args:
        reference: Finite [T, V].
        found: Finite [T, V].
        tie_gap: Largest gap of a near tie, in units of the scores; at least 0.
        kept: Most flips to return one by one.
    """
    reference, found = np.asarray(reference, np.float64), np.asarray(found, np.float64)
    expected_order, found_order = (
        np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH] for scores in (reference, found)
    )
    real = near = flipped_texts = changed = 0
    worst: list[Flip] = []
    for text, (first, second) in enumerate(zip(expected_order, found_order, strict=True)):
        columns = np.union1d(first, second)
        before = reference[text, columns]
        after = found[text, columns]
        gaps = before[:, None] - before  # [candidates, candidates]: above 0 where row is first
        uppers, lowers = np.nonzero((gaps > 0) & (after[:, None] < after))
        if not uppers.size:
            continue
        flipped = gaps[uppers, lowers]
        is_near = flipped <= tie_gap
        near += int(is_near.sum())
        real += int((~is_near).sum())
        flipped_texts += int(not is_near.all())
        changed += 1
        widest = np.argsort(-flipped, kind="stable")[:kept]
        worst += [
            Flip(
                text,
                int(columns[upper]),
                int(columns[lower]),
                float(gaps[upper, lower]),
                float(after[upper] - after[lower]),
            )
            for upper, lower in zip(uppers[widest], lowers[widest], strict=True)
        ]
        if len(worst) > 64 * kept:
            worst = _widest(worst, kept)
    agreement = {k: _agreement(expected_order, found_order, k, reference.shape[1]) for k in TOPS}
    moves = _moves(expected_order, found_order)
    return RankComparison(
        agreement, real, near, flipped_texts, changed, moves, tuple(_widest(worst, kept))
    )


def _widest(flips: list[Flip], count: int) -> list[Flip]:
    return sorted(flips, key=lambda flip: -flip.reference_gap)[:count]


def _agreement(
    expected: npt.NDArray[np.int64], found: npt.NDArray[np.int64], k: int, num_videos: int
) -> float | None:
    """Return the mean share of the first k in common; None where any ranking shares all."""
    if k > 1 and num_videos <= k:
        return None
    is_common = expected[:, :k, None] == found[:, None, :k]  # [T, k, k]
    return float(is_common.any(axis=2).mean())


def _moves(expected: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    is_same = expected[:, :, None] == found[:, None, :]  # [T, depth, depth]
    counts = is_same.sum(axis=0)
    further = len(expected) - counts.sum(axis=1)
    return np.concatenate([counts, further[:, None]], axis=1)
