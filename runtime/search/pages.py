"""The page of hits that a search shows: chosen from its ranked rows, and described."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import BoolArray, first_best
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import GalleryVideo, Snapshot
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import Rows, times_of
from xclip_deploy.runtime.moments.hit_media import HitMedia
from xclip_deploy.runtime.results import GrainScores, Moment, SearchResult, TimeRange
from xclip_deploy.runtime.search.grouping import ranks_within
from xclip_deploy.runtime.search.near_identical import distinct
from xclip_deploy.runtime.search.options import SearchOptions
from xclip_deploy.runtime.search.ranked import Query, Ranked
from xclip_deploy.runtime.search.refining import curve, neighbourhood, refine
from xclip_deploy.runtime.search.suppression import first_kept, kept_first, suppressed


@dataclass
class Page:
    """Rows that are shown, best first."""

    hits: Ranked
    moments: list[Ranked]
    """Other good moments of each hit's video; empty for a gallery without segments."""
    dropped: dict[int, list[int]]
    """Row of a hit to the rows that it replaces as nearly identical."""

    @classmethod
    def of(
        cls, ranked: Ranked, groups: Groups | None, options: SearchOptions, snapshot: Snapshot
    ) -> Page:
        """Choose the page of ``ranked``, which is sorted."""
        heads = ranked
        if groups is not None and options.group == "video":
            heads = ranked.take(np.flatnonzero(ranks_within(groups.of(ranked.rows)) == 0))
        elif groups is not None and options.overlap is not None:
            is_out = _suppressed(ranked, groups, options)
            heads = ranked.take(kept_first(is_out, options.candidates))
        dropped: dict[int, list[int]] = {}
        if options.near_identical is not None and len(heads):
            features = heads.features(snapshot)
            kept, dropped = distinct(features, options.near_identical, options.depth)
            dropped = {
                int(heads.rows[n]): [int(heads.rows[m]) for m in others]
                for n, others in dropped.items()
            }
            heads = heads.take(np.array(kept, np.int64))
        hits = heads.take(np.arange(len(heads))[options.offset : options.depth])
        if hits.blocks is not None:
            # Blocks decide which page a video is on. On its page, the score decides.
            hits.blocks = None
            hits = hits.sorted()
        return cls(hits, _others(ranked, hits, groups, options), dropped)


def describe(
    query: Query,
    page: Page,
    snapshot: Snapshot,
    groups: Groups | None,
    offset: int,
    thumbnails: Path | None,
) -> tuple[SearchResult, ...]:
    """Read the records of a page and return its hits. ``thumbnails``: folder of the gallery's."""
    hits = page.hits
    if not len(hits):
        return ()
    near = [] if groups is None else [neighbourhood(groups, int(row)) for row in hits.rows]
    seen = _joined(hits.rows, [*(other.rows for other in page.moments), *near])
    features = hits.read.of(seen, snapshot)
    replaced = [np.array(rows, np.int64) for rows in page.dropped.values()]
    known = _joined(seen, replaced)
    videos = dict(zip(known.tolist(), snapshot.videos(known), strict=True))
    frames = _Frames(query, seen, features, videos)
    results = []
    for n, row in enumerate(hits.rows.tolist()):
        video = videos[row]
        dropped = dict.fromkeys(videos[other].id for other in page.dropped.get(row, ()))
        dropped.pop(video.id, None)  # another moment of the same video
        start_s, end_s = times_of(video)
        results.append(
            SearchResult(
                rank=offset + n + 1,
                id=video.id,
                path=video.path,
                score=float(hits.scores[n]),
                grains=_grains(hits, n),
                best_frame_time_s=frames.best_time(row),
                duration_s=video.duration_s,
                metadata=dict(video.metadata),
                paths=tuple(file.path for file in video.files),
                near_identical=tuple(dropped),
                start_s=start_s,
                end_s=end_s,
                segment=video.segment,
                moments=_moments(page.moments[n], frames) if page.moments else (),
                range=frames.range(row, near[n]) if near else None,
                confidence=None if hits.confidences is None else float(hits.confidences[n]),
                media=HitMedia.of(video, thumbnails),
            )
        )
    return tuple(results)


class _Frames:
    """The similarity of a query to single frames."""

    def __init__(
        self, query: Query, rows: Rows, features: VideoFeatures, videos: dict[int, GalleryVideo]
    ) -> None:
        self._query, self._features, self.videos = query, features, videos
        self._places = {row: n for n, row in enumerate(rows.tolist())}

    def similarity(self, row: int) -> npt.NDArray[np.float32]:
        """Return the similarity of each valid frame of a row."""
        frames = self._features.frame_features[self._places[row]]
        valid = frames[: len(self.videos[row].frame_times_s)].astype(np.float32)
        if self._query.text is not None:
            products: npt.NDArray[np.float32] = valid @ self._query.text.sentence_features[0]
            return products
        video = self._query.video
        assert video is not None
        others = video.frame_features[0, : video.num_frames[0]]
        return np.asarray((valid @ others.T).max(axis=1))

    def best_time(self, row: int) -> float:
        """Return the time of the most similar frame, seconds."""
        return self.videos[row].frame_times_s[first_best(self.similarity(row))]

    def range(self, row: int, near: Rows) -> TimeRange | None:
        """Refine start and end of a row by the frames of ``near``; None without times."""
        start_s, end_s = times_of(self.videos[row])
        if end_s is None:
            return None
        rows: list[int] = near.tolist()
        times_s, values = curve(
            [self.videos[each].frame_times_s for each in rows],
            [self.similarity(each) for each in rows],
        )
        spans = [times_of(self.videos[each]) for each in rows]
        first_s = min(start for start, _ in spans)
        last_s = max(end_s if end is None else end for _, end in spans)
        return refine(times_s, values, (start_s, end_s), (first_s, last_s))


def _moments(others: Ranked, frames: _Frames) -> tuple[Moment, ...]:
    moments = []
    for n, row in enumerate(others.rows.tolist()):
        video = frames.videos[row]
        start_s, end_s = times_of(video)
        score, time_s = float(others.scores[n]), frames.best_time(row)
        moments.append(Moment(video.segment, start_s, end_s, score, _grains(others, n), time_s))
    return tuple(moments)


def _grains(ranked: Ranked, n: int) -> GrainScores | None:
    grains = {name: float(values[n]) for name, values in ranked.grains.items()}
    return GrainScores(grains) if grains else None


def _others(
    ranked: Ranked, hits: Ranked, groups: Groups | None, options: SearchOptions
) -> list[Ranked]:
    """Return the other good moments of each hit's video, best first."""
    if groups is None:
        return []
    if options.group == "moment":
        return [Ranked.empty()] * len(hits)
    shown = groups.of(hits.rows).tolist()
    places = groups.places(ranked.rows)
    numbers = groups.numbers[places]
    found = []
    for number in shown:
        own = np.flatnonzero(numbers == number)
        starts_s, ends_s = groups.start_s[places[own]], groups.end_s[places[own]]
        kept = first_kept(starts_s.tolist(), ends_s.tolist(), options.overlap, options.per_video)
        # A video's best moment comes first and is the hit itself.
        found.append(ranked.take(own[kept[1:]]))
    return found


def _suppressed(ranked: Ranked, groups: Groups, options: SearchOptions) -> BoolArray:
    places = groups.places(ranked.rows)
    numbers, starts_s = groups.numbers[places], groups.start_s[places]
    return suppressed(numbers, starts_s, groups.end_s[places], options.overlap)


def _joined(rows: Rows, more: Iterable[npt.NDArray[np.integer[Any]]]) -> Rows:
    """Append rows that are not there yet."""
    parts = list(more)
    if not parts:
        return rows
    return np.concatenate([rows, np.setdiff1d(np.concatenate(parts), rows)]).astype(np.int64)
