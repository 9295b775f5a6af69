"""Rounds of a two-stage search that fill a page with different videos.

The segments of one long video can fill the candidates. The candidates therefore take more than a
few segments of one video only where other videos leave room. If they hold too few videos, the
best segment of each other video that the first stage found is scored too. Then the first stage
runs again, without the videos found so far and for twice as many rows, at most ``MAX_ROUNDS``
times in all.

What a round scores does not depend on the page that is asked for. The videos of a round come
after those of the rounds before it, so that pages neither repeat nor lose a video.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import Float32Array, Float64Array
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.gallery.store import NearestMethod
from xclip_deploy.runtime.search.grouping import Numbers, ranks_within
from xclip_deploy.runtime.search.options import SearchOptions
from xclip_deploy.runtime.search.ranked import Ranked

MAX_ROUNDS = 6
"""Most runs of the first stage for one query."""
ROWS_PER_MOMENT = 8
"""Rows of a video that are scored for each moment that a hit may show. Suppression takes some."""


@dataclass(frozen=True, eq=False)
class Found:
    """Rows that the first stage ranked for one query, best first."""

    rows: Rows
    similarities: Float32Array
    """Inner products with the folded query [n]; from an index, approximate."""
    scores: Float64Array
    """Means of the grains without frames [n], which choose the candidates."""
    numbers: npt.NDArray[np.int64]
    """Number of the video of each row [n]; the row itself where every row is a video."""
    method: NearestMethod
    place: str = ""
    """Place of the first stage in words, for a plan's reason; empty on the CPU."""

    def take(self, order: npt.NDArray[np.integer[Any]]) -> Found:
        """Return the rows at some places."""
        return Found(
            self.rows[order],
            self.similarities[order],
            self.scores[order],
            self.numbers[order],
            self.method,
            self.place,
        )


@dataclass(frozen=True)
class Stages:
    """The steps of a two-stage search for one query."""

    nearest: Callable[[int, Numbers | None], Found]
    """Ranks at most this many rows, without the videos with the numbers of the second argument."""
    candidates: Callable[[Found, int], Rows]
    """Chooses at most this many of the ranked rows for the second stage, ascending."""
    score: Callable[[Rows], Ranked]
    """Computes the full scores of rows."""
    per_candidate: int
    """Rows that the first stage ranks for each candidate."""

    def run(self, count: int, first: Found) -> Ranked:
        """Score ``count`` candidates of what the first stage ranked."""
        return self.score(self.candidates(first, count))

    def fill(self, count: int, first: Found, num_videos: int, most_videos: int) -> Ranked:
        """Score candidates until they hold ``num_videos`` videos; the module says how.

        ``first``: what the first stage ranked for ``count`` candidates. ``most_videos``: number of
        videos that there are.
        """
        blocks: list[Ranked] = []
        seen = np.empty(0, np.int64)
        near = first
        for n in range(MAX_ROUNDS):
            block = self.score(self.candidates(near, count << n))
            if block.spans is not None:
                seen = np.union1d(seen, block.spans.numbers)
            blocks.append(block)
            if len(seen) < num_videos:
                is_new = (ranks_within(near.numbers) == 0) & ~np.isin(near.numbers, seen)
                if is_new.any():
                    seen = np.union1d(seen, near.numbers)
                    blocks.append(self.score(np.sort(near.rows[is_new])))
            limit = (count << n) * self.per_candidate
            is_all = not len(near.rows) or (near.method == "flat" and len(near.rows) < limit)
            if len(seen) >= min(num_videos, most_videos) or is_all or n + 1 == MAX_ROUNDS:
                break
            near = self.nearest(2 * limit, seen)
        return Ranked.join([block for block in blocks if len(block)] or blocks[:1], as_blocks=True)


def num_candidates(options: SearchOptions, *, is_grouped: bool) -> int:
    """Return how many rows the second stage scores at first.

    ``is_grouped``: whether long videos have several rows.
    """
    if not is_grouped or (options.group == "moment" and options.overlap is None):
        return options.num_candidates
    if options.group == "video":
        return max(options.candidates, 4 * options.k)  # whatever the page
    # Suppression orders blocks of ``candidates`` moments.
    return -(-options.num_candidates // options.candidates) * options.candidates


def rows_each(options: SearchOptions) -> int:
    """Return how many rows of one video are kept for its moments."""
    return options.per_video * (ROWS_PER_MOMENT if options.query_bank is None else 1)
