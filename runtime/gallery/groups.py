"""The videos that the rows of a gallery belong to, where long videos have several rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import Float64Array
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.gallery.row_places import RowPlaces


@dataclass(frozen=True, eq=False)
class Groups:
    """The video of every row, and its place in the video."""

    rows: Rows
    """All rows [N], ascending."""
    numbers: npt.NDArray[np.int64]
    """Number of the video of each row [N], from 0, without gaps."""
    order: npt.NDArray[np.int64]
    """Places in ``rows`` [N], ordered by video and, within a video, by segment."""
    starts: npt.NDArray[np.int64]
    """Place in ``order`` at which each video begins, then N: [num_videos + 1]."""
    segments: npt.NDArray[np.integer]
    """Number of each row [N] within its video."""
    start_s: Float64Array
    """Start of each row [N] in its video, seconds; NaN where it is not known."""
    end_s: Float64Array
    """End of each row [N], seconds, likewise."""

    @classmethod
    def of_codes(
        cls,
        rows: Rows,
        codes: npt.NDArray[np.integer],
        segments: npt.NDArray[np.integer],
        start_s: Float64Array,
        end_s: Float64Array,
    ) -> Groups:
        """Group rows with the same code.

        ``rows`` ascend; ``codes`` are any numbers; ``segments`` are the rows' numbers within their
        videos, of which the least marks the first row.
        """
        _, numbers = np.unique(codes, return_inverse=True)
        order = np.lexsort((segments, numbers))
        counts = np.bincount(numbers) if len(numbers) else np.empty(0, np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(rows, numbers.astype(np.int64), order, starts, segments, start_s, end_s)

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.starts) - 1

    @cached_property
    def firsts(self) -> Rows:
        """First row of each video [num_videos], in the order of ``numbers``."""
        return self.rows[self.order[self.starts[:-1]]]

    @cached_property
    def ranks(self) -> npt.NDArray[np.int64]:
        """Place of each row [N] in ``order``."""
        ranks = np.empty_like(self.order)
        ranks[self.order] = np.arange(len(self.order))
        return ranks

    @cached_property
    def _places(self) -> RowPlaces:
        return RowPlaces(self.rows)

    def places(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return the places of existing rows in ``rows`` of the gallery."""
        return self._places.of(rows)

    def of(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return the number of the video of each of ``rows``."""
        return self.numbers[self.places(rows)]

    def rows_of(self, number: int) -> Rows:
        """Return the rows of a video, ordered by segment."""
        return self.rows[self.order[self.starts[number] : self.starts[number + 1]]]

    def first_rows(self, rows: Rows) -> Rows:
        """Return the first rows of the videos that ``rows`` belong to, in order of appearance."""
        numbers = self.of(rows)
        _, places = np.unique(numbers, return_index=True)
        return self.firsts[numbers[np.sort(places)]]


def in_order(rows: Sequence[tuple[int, int]]) -> Rows:
    """Return rows ordered by segment, of pairs (segment, row)."""
    return np.array([row for _, row in sorted(rows)], np.int64)
