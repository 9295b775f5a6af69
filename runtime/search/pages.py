"""The page of hits that a search shows: chosen from its ranked rows, and described."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from math import isnan
from pathlib import Path

import numpy as np

from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import times_of
from xclip_deploy.runtime.moments.hit_media import HitMedia
from xclip_deploy.runtime.results import GrainScores, Moment, SearchResult, TimeRange
from xclip_deploy.runtime.search.frame_similarity import FrameSimilarities
from xclip_deploy.runtime.search.grouping import ranks_within
from xclip_deploy.runtime.search.near_identical import distinct
from xclip_deploy.runtime.search.options import SearchOptions
from xclip_deploy.runtime.search.ranked import Query, Ranked
from xclip_deploy.runtime.search.refining import Neighbourhood, curve, neighbourhoods, refine
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
    near: list[Neighbourhood]
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
        near: list[Neighbourhood] = []
        if groups is not None and options.refine:
            near = neighbourhoods(groups, hits.rows)
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
    others = page.ranked.take(np.array([n for part in page.moments for n in part], np.int64))
    near = [row for each in page.near for row in each.rows]
    seen = list(dict.fromkeys([*rows, *near, *others.rows.tolist()]))
    dropped = list(dict.fromkeys(row for part in page.dropped.values() for row in part))
    known = snapshot.videos(np.array([*rows, *dropped], np.int64))
    videos = dict(zip([*rows, *dropped], known, strict=True))
    times_s = {row: videos[row].frame_times_s for row in rows}
    if unknown := seen[len(rows) :]:
        times = snapshot.frame_times(np.array(unknown, np.int64))
        times_s.update(zip(unknown, times, strict=True))
    parts = hits.read.frames(np.array(seen, np.int64), snapshot)
    frames = FrameSimilarities(query, seen, parts, times_s)
    # Without groups there are no moments.
    described = iter([] if groups is None else _moments(others, groups, frames))
    grains, scores = _grains(hits), hits.scores.tolist()
    results = []
    for n, row in enumerate(rows):
        video = videos[row]
        replaced = dict.fromkeys(videos[other].id for other in page.dropped.get(row, ()))
        replaced.pop(video.id, None)  # another moment of the same video
        start_s, end_s = times_of(video)
        found = None
        if page.near and end_s is not None:
            found = _range(page.near[n], frames, (start_s, end_s))
        results.append(
            SearchResult(
                rank=offset + n + 1,
                id=video.id,
                path=video.path,
                score=scores[n],
                grains=grains[n],
                best_frame_time_s=frames.best_time_s[row],
                duration_s=video.duration_s,
                metadata=dict(video.metadata),
                paths=tuple(file.path for file in video.files),
                near_identical=tuple(replaced),
                start_s=start_s,
                end_s=end_s,
                segment=video.segment,
                moments=tuple(islice(described, len(page.moments[n]))),
                range=found,
                confidence=None if hits.confidences is None else float(hits.confidences[n]),
                media=HitMedia.of(video, thumbnails),
            )
        )
    return tuple(results)


def _moments(found: Ranked, groups: Groups, frames: FrameSimilarities) -> list[Moment]:
    """Describe rows as moments of their videos."""
    places = groups.places(found.rows)
    return [
        Moment(segment, start_s, end_s, score, grains, frames.best_time_s[row])
        for row, segment, start_s, end_s, score, grains in zip(
            found.rows.tolist(),
            groups.segments[places].tolist(),
            groups.start_s[places].tolist(),
            groups.end_s[places].tolist(),
            found.scores.tolist(),
            _grains(found),
            strict=True,
        )
    ]


def _grains(found: Ranked) -> list[GrainScores | None]:
    if not found.grains:
        return [None] * len(found)
    columns = [values.tolist() for values in found.grains.values()]
    return [
        GrainScores(dict(zip(found.grains, row, strict=True))) for row in zip(*columns, strict=True)
    ]


def _others(
    ranked: Ranked, hits: Ranked, groups: Groups, options: SearchOptions
) -> list[list[int]]:
    """Return the places of the other good moments of each hit's video, best first."""
    places = groups.places(ranked.rows)
    by_video: dict[int, list[int]] = {number: [] for number in groups.of(hits.rows).tolist()}
    for n, number in enumerate(groups.numbers[places].tolist()):
        if number in by_video:
            by_video[number].append(n)
    starts_s, ends_s = groups.start_s[places].tolist(), groups.end_s[places].tolist()
    found = []
    for own in by_video.values():  # in the order of the hits
        kept = first_kept(
            [starts_s[n] for n in own], [ends_s[n] for n in own], options.overlap, options.per_video
        )
        # A video's best moment comes first and is the hit itself.
        found.append([own[n] for n in kept[1:]])
    return found


def _range(
    near: Neighbourhood, frames: FrameSimilarities, segment: tuple[float, float]
) -> TimeRange:
    """Refine start and end of a segment by the frames of its neighbourhood."""
    times_s, values = curve(
        [frames.times_s[row] for row in near.rows], [frames.values[row] for row in near.rows]
    )
    # Rows without times are alone.
    bounds = segment if isnan(sum(near.bounds)) else near.bounds
    return refine(times_s, values, segment, bounds)
