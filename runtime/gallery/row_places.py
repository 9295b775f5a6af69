"""Places of rows in the arrays that hold a gallery in memory.

A search looks up a thousand rows several times. Binary search among a million ids misses the cache
at nearly every step: 0.5 ms of a query. Row ids are consecutive but for removed rows and ends of
files. So a search among the runs of consecutive ids finds the same places, and runs are few.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.gallery.records import Rows


class RowPlaces:
    """The place of each row among the rows of a version. It never changes."""

    def __init__(self, rows: Rows) -> None:
        """Find the runs of ``rows`` [N], which ascend."""
        is_start = np.ones(len(rows), np.bool_)
        np.not_equal(rows[1:], rows[:-1] + 1, out=is_start[1:])
        starts = np.flatnonzero(is_start)
        self._later_runs: Rows = rows[starts[1:]]
        """First row of each run but the first, so that rows of the first one have run 0."""
        self._before: npt.NDArray[np.int64] = rows[starts] - starts
        """Difference between row and place in each run."""

    def of(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return the places of existing rows, in the order of ``rows``.

        A row that does not exist gets a place without meaning, or raises IndexError.
        """
        if len(self._before) == 1:
            places: npt.NDArray[np.int64] = rows - self._before[0]
            return places
        return rows - self._before[np.searchsorted(self._later_runs, rows, "right")]
