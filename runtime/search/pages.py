"""The page of hits that a search shows: chosen from its ranked rows, and described."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import first_best, to_float32
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import times_of
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
    ranked: Ranked
    """All rows that the hits were chosen from."""
    moments: list[list[int]]
    """Places in ``ranked`` of the other good moments of each hit's video."""
    dropped: dict[int, list[int]]
    """Row of a hit to the rows that it replaces as nearly identical."""
    near: list[list[int]]
    """Rows whose frames refine the range of each hit; empty where none is refined."""

    @classmethod
    def of(
        cls, ranked: Ranked, groups: Groups | None, options: SearchOptions, snapshot: Snapshot
    ) -> Page:
        """Choose the page of ``ranked``, which is sorted."""
        heads = ranked
        if groups is not None and options.group == "video":
            heads = ranked.take(np.flatnonzero(ranks_within(groups.of(ranked.rows)) == 0))
        elif groups is not None and options.overlap is not None:
            places = groups.places(ranked.rows)
            numbers, start_s = groups.numbers[places], groups.start_s[places]
            is_out = suppressed(numbers, start_s, groups.end_s[places], options.overlap)
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
        moments: list[list[int]] = [[]] * len(hits)
        if groups is not None and options.group == "video":
            moments = _others(ranked, hits, groups, options)
        near = []
        if groups is not None and options.refine:
            near = [neighbourhood(groups, row) for row in hits.rows.tolist()]
        return cls(hits, ranked, moments, dropped, near)


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
    rows: list[int] = hits.rows.tolist()
    others = [int(page.ranked.rows[n]) for places in page.moments for n in places]
    more = [row for part in page.near for row in part] + others
    seen = list(dict.fromkeys([*rows, *more]))
    dropped = list(dict.fromkeys(row for part in page.dropped.values() for row in part))
    known = snapshot.videos(np.array([*rows, *dropped], np.int64))
    videos = dict(zip([*rows, *dropped], known, strict=True))
    frames = _Frames(query, seen, hits.read.of(np.array(seen, np.int64), snapshot))
    frames.times_s = {row: videos[row].frame_times_s for row in rows}
    if len(seen) > len(rows):
        unknown = seen[len(rows) :]
        times = snapshot.frame_times(np.array(unknown, np.int64))
        frames.times_s |= zip(unknown, times, strict=True)
    results = []
    for n, row in enumerate(rows):
        video = videos[row]
        replaced = dict.fromkeys(videos[other].id for other in page.dropped.get(row, ()))
        replaced.pop(video.id, None)  # another moment of the same video
        start_s, end_s = times_of(video)
        found, moments = None, []
        if groups is not None:
            at = page.moments[n]
            places = groups.places(page.ranked.rows[at]).tolist() if at else []
            moments = [
                _moment(page.ranked, *pair, groups, frames) for pair in zip(at, places, strict=True)
            ]
            if page.near and end_s is not None:
                found = _range(page.near[n], groups, frames, (start_s, end_s))
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
                near_identical=tuple(replaced),
                start_s=start_s,
                end_s=end_s,
                segment=video.segment,
                moments=tuple(moments),
                range=found,
                confidence=None if hits.confidences is None else float(hits.confidences[n]),
                media=HitMedia.of(video, thumbnails),
            )
        )
    return tuple(results)


class _Frames:
    """The similarity of a query to single frames."""

    def __init__(self, query: Query, rows: list[int], features: VideoFeatures) -> None:
        self._query = query
        self._frames = to_float32(features.frame_features)  # [rows, F, D]
        self._places = {row: n for n, row in enumerate(rows)}
        self._known: dict[int, npt.NDArray[np.float32]] = {}
        if (features.num_frames == self._frames.shape[1]).all():
            # One call: NumPy multiplies each row by itself, with the bits of a single product.
            self._known = dict(zip(rows, self._compare(self._frames), strict=True))
        self.times_s: dict[int, tuple[float, ...]] = {}
        """Times of the valid frames of each row."""

    def similarity(self, row: int) -> npt.NDArray[np.float32]:
        """Return the similarity of each valid frame of a row."""
        if row not in self._known:
            valid = self._frames[self._places[row], : len(self.times_s[row])]
            self._known[row] = self._compare(valid)
        return self._known[row]

    def _compare(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the similarity [..., F] of frames [..., F, D]."""
        if self._query.text is not None:
            return np.asarray(frames @ self._query.text.sentence_features[0])
        video = self._query.video
        assert video is not None
        others = video.frame_features[0, : video.num_frames[0]]
        return np.asarray((frames @ others.T).max(axis=-1))

    def best_time(self, row: int) -> float:
        """Return the time of the most similar frame, seconds."""
        return self.times_s[row][first_best(self.similarity(row))]


def _range(
    near: list[int], groups: Groups, frames: _Frames, segment: tuple[float, float]
) -> TimeRange:
    """Refine start and end of a segment by the frames of the rows ``near``."""
    times_s, values = curve(
        [frames.times_s[row] for row in near], [frames.similarity(row) for row in near]
    )
    first, last = (int(place) for place in groups.places(np.array(near)[[0, -1]]))
    # Rows without times are alone.
    bounds = (float(groups.start_s[first]), float(groups.end_s[last]))
    return refine(times_s, values, segment, segment if isnan(sum(bounds)) else bounds)


def _moment(ranked: Ranked, n: int, place: int, groups: Groups, frames: _Frames) -> Moment:
    """Describe row n of ``ranked``, which is at ``place`` in the gallery."""
    row = int(ranked.rows[n])
    return Moment(
        int(groups.segments[place]),
        float(groups.start_s[place]),
        float(groups.end_s[place]),
        float(ranked.scores[n]),
        _grains(ranked, n),
        frames.best_time(row),
    )


def _grains(ranked: Ranked, n: int) -> GrainScores | None:
    grains = {name: float(values[n]) for name, values in ranked.grains.items()}
    return GrainScores(grains) if grains else None


def _others(
    ranked: Ranked, hits: Ranked, groups: Groups, options: SearchOptions
) -> list[list[int]]:
    """Return the places of the other good moments of each hit's video, best first."""
    places = groups.places(ranked.rows)
    by_video: dict[int, list[int]] = {number: [] for number in groups.of(hits.rows).tolist()}
    for n, number in enumerate(groups.numbers[places].tolist()):
        if number in by_video:
            by_video[number].append(n)
    found = []
    for own in by_video.values():  # in the order of the hits
        starts_s, ends_s = groups.start_s[places[own]], groups.end_s[places[own]]
        kept = first_kept(starts_s.tolist(), ends_s.tolist(), options.overlap, options.per_video)
        # A video's best moment comes first and is the hit itself.
        found.append([own[n] for n in kept[1:]])
    return found
