"""Choice of the best rows of the best videos, where long videos have several rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import FloatArray

Numbers = npt.NDArray[np.int64]
"""Number of the video of each row."""


def ranks_within(numbers: Numbers) -> npt.NDArray[np.int64]:
    """Return for each row, listed best first, how many rows of its video come before it."""
    order, starts = _by_number(numbers)
    counts = np.diff(np.append(starts, len(numbers)))
    ranks = np.empty(len(numbers), np.int64)
    ranks[order] = np.arange(len(numbers)) - np.repeat(starts, counts)
    return ranks


def ranks_of_groups(numbers: Numbers) -> npt.NDArray[np.int64]:
    """Return for each row, listed best first, how many other videos come before its video."""
    order, starts = _by_number(numbers)
    firsts = order[starts]  # where each video appears first
    ranks = np.empty(len(starts), np.int64)
    ranks[np.argsort(firsts)] = np.arange(len(starts))
    counts = np.diff(np.append(starts, len(numbers)))
    found = np.empty(len(numbers), np.int64)
    found[order] = np.repeat(ranks, counts)
    return found


def best_with_few_each(
    scores: FloatArray, numbers: Numbers, count: int, rows_each: int
) -> npt.NDArray[np.intp]:
    """Return places of the ``count`` best rows, best first.

    More than ``rows_each`` rows of a video are taken only where the other videos have too few.
    """
    order = np.argsort(-scores, kind="stable")
    is_more = ranks_within(numbers[order]) >= rows_each
    return order[np.sort(np.argsort(is_more, kind="stable")[:count])]


def _by_number(numbers: Numbers) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return places ordered by video, and where each video starts among them."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    is_start = np.ones(len(numbers), np.bool_)
    is_start[1:] = ordered[1:] != ordered[:-1]
    starts: npt.NDArray[Any] = np.flatnonzero(is_start)
    return order, starts
