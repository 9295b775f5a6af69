"""Choice of the rows that an exact search keeps, while it scores a gallery part by part.

A long video can have rows in several parts. Whether a lesser row of it will be shown is known only
once the video's best row is. So every row of a video is kept until its last one was scored. Then
the video is complete: it is dropped if enough other videos are better, and is reduced to the
moments that a hit may show if not. Memory holds few moments of each of the best videos, and the
rows of the videos that are still open: in a gallery as it was written, of one or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.gallery.flat import best_first
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.search.filling import num_candidates
from xclip_deploy.runtime.search.grouping import ranks_of_groups
from xclip_deploy.runtime.search.options import SearchOptions
from xclip_deploy.runtime.search.ranked import Ranked
from xclip_deploy.runtime.search.scope import Scope
from xclip_deploy.runtime.search.suppression import first_kept


@dataclass(frozen=True)
class Keeping:
    """How many rows an exact search keeps of each query."""

    count: int
    """Most videos; most rows where ``by_video`` is false."""
    by_video: bool
    """Whether the best videos are kept, each with its moments."""
    per_video: int
    """Most moments of a video."""
    overlap: float | None
    """Temporal IoU above which a moment of a video is left out; None leaves none out."""

    @classmethod
    def of(cls, options: SearchOptions, *, is_grouped: bool) -> Keeping:
        """Choose for a search. ``is_grouped``: whether long videos have several rows."""
        # Deduplication and calibration can drop or reorder hits: keep more than asked for.
        drops = options.near_identical is not None or options.query_bank is not None
        by_video = is_grouped and options.group == "video"
        if by_video:
            count = options.num_candidates if drops else options.depth
        else:
            suppresses = is_grouped and options.overlap is not None
            is_more = drops or suppresses
            count = num_candidates(options, is_grouped=is_grouped) if is_more else options.depth
        # Calibration reorders moments, and so comes before suppression.
        overlap = options.overlap if options.query_bank is None else None
        return cls(count, by_video, options.per_video, overlap)


def cut(ranked: Ranked, keeping: Keeping) -> Ranked:
    """Keep of the rows that several shards kept, best first, what one shard would have kept."""
    if not keeping.by_video or ranked.spans is None:
        return ranked.take(np.arange(min(len(ranked), keeping.count)))
    ranks = ranks_of_groups(ranked.spans.numbers)
    return ranked.take(np.flatnonzero(ranks < keeping.count))


class Gathering:
    """The rows that are kept for several queries. All of them score the same parts."""

    def __init__(
        self,
        num_queries: int,
        scope: Scope,
        keeping: Keeping,
        groups: Groups | None,
        *,
        holds_whole: bool = False,
    ) -> None:
        """Begin to gather the rows of ``scope``.

        ``holds_whole``: whether each part has all rows that its videos may show.
        """
        self._best: list[Ranked | None] = [None] * num_queries
        self._keeping = keeping
        self._groups = groups if keeping.by_video else None
        if self._groups is not None:
            self._unseen = (
                np.zeros(len(self._groups), np.int64)
                if holds_whole
                else _rows_of_each(scope, self._groups)
            )

    def add(self, parts: Sequence[Ranked]) -> None:
        """Take the scores of the next rows, one for each query."""
        if self._groups is not None:
            seen = self._groups.of(parts[0].rows)
            self._unseen -= np.bincount(seen, minlength=len(self._unseen))
        for n, part in enumerate(parts):
            best = self._best[n]
            whole = part if best is None else Ranked.join([best, part])
            if self._groups is None:
                self._best[n] = whole.take(best_first(whole.scores, self._keeping.count))
            else:
                self._best[n] = whole.take(self._places(whole, self._groups))

    def results(self) -> list[Ranked]:
        """Return the kept rows of each query, best first."""
        return [Ranked.empty() if best is None else best.sorted() for best in self._best]

    def _places(self, ranked: Ranked, groups: Groups) -> npt.NDArray[np.intp]:
        """Return the places of the rows to keep, in their order, so that ties stay in order."""
        numbers = groups.of(ranked.rows)
        order = np.argsort(-ranked.scores, kind="stable")
        is_good = np.empty(len(order), np.bool_)
        is_good[order] = ranks_of_groups(numbers[order]) < self._keeping.count
        is_open = self._unseen[numbers] > 0
        kept = [np.flatnonzero(is_open)]
        own = order[is_good[order] & ~is_open[order]]  # of complete videos, best first
        by_video = own[np.argsort(numbers[own], kind="stable")]
        ends = np.flatnonzero(np.diff(numbers[by_video])) + 1
        kept += [self._moments(ranked.rows, places) for places in np.split(by_video, ends)]
        return np.sort(np.concatenate(kept))

    def _moments(self, rows: Rows, places: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Return the places of the moments that a hit of one video may show.

        ``places``: those of all its rows, best first.
        """
        count, overlap = self._keeping.per_video, self._keeping.overlap
        if len(places) < 2 or overlap is None:
            return places[:count]
        assert self._groups is not None
        own = self._groups.places(rows[places])
        starts_s, ends_s = self._groups.start_s[own].tolist(), self._groups.end_s[own].tolist()
        return places[first_kept(starts_s, ends_s, overlap, count)]


def _rows_of_each(scope: Scope, groups: Groups) -> npt.NDArray[np.int64]:
    """Return how many rows of each video the scope holds."""
    rows = scope.rows
    if rows is None and scope.where is not None:
        rows = scope.snapshot.matching(scope.where)
    if rows is None:
        return np.diff(groups.starts)
    return np.bincount(groups.of(rows), minlength=len(groups))
