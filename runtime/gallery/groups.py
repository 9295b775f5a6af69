"""The videos that the rows of a gallery belong to, where long videos have several rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.gallery.records import Rows


@dataclass(frozen=True, eq=False)
class Groups:
    """The video of every row."""

    rows: Rows
    """All rows [N], ascending."""
    numbers: npt.NDArray[np.int64]
    """Number of the video of each row [N], from 0, without gaps."""
    firsts: Rows
    """First row of each video [num_videos], in the order of ``numbers``."""

    @classmethod
    def of_codes(
        cls, rows: Rows, codes: npt.NDArray[np.integer], segments: npt.NDArray[np.integer]
    ) -> Groups:
        """Group rows with the same code.

        ``rows`` ascend; ``codes`` are any numbers; ``segments`` are the rows' numbers within their
        videos, of which the least marks the first row.
        """
        _, numbers = np.unique(codes, return_inverse=True)
        order = np.lexsort((segments, numbers))
        _, starts = np.unique(numbers[order], return_index=True)
        return cls(rows, numbers.astype(np.int64), rows[order[starts]])

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.firsts)

    def of(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return the number of the video of each of ``rows``."""
        return self.numbers[np.searchsorted(self.rows, rows)]

    def first_rows(self, rows: Rows) -> Rows:
        """Return the first rows of the videos that ``rows`` belong to, in order of appearance."""
        numbers = self.of(rows)
        _, places = np.unique(numbers, return_index=True)
        return self.firsts[numbers[np.sort(places)]]


def in_order(rows: Sequence[tuple[int, int]]) -> Rows:
    """Return rows ordered by segment, of pairs (segment, row)."""
    return np.array([row for _, row in sorted(rows)], np.int64)
