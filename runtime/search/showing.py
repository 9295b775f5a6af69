"""Records and frames of the rows that hits show, read where they are."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path

import numpy as np

from xclip_deploy.runtime.gallery import GalleryVideo, Snapshot
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import Rows, times_of
from xclip_deploy.runtime.results import TimeRange
from xclip_deploy.runtime.search.frame_similarity import FrameSimilarities
from xclip_deploy.runtime.search.ranked import Query, ReadFeatures
from xclip_deploy.runtime.search.refining import Neighbourhood, curve, neighbourhoods, refine


@dataclass
class Shown:
    """What hits of one shard show."""

    videos: dict[int, GalleryVideo]
    """Record of each hit's row."""
    best_time_s: dict[int, float]
    """Time of the most similar frame of each hit and of each other moment, seconds."""
    ranges: dict[int, TimeRange]
    """Refined range of each hit's row, where one was asked for."""
    dropped: dict[int, str]
    """Id of each row that a hit replaces as nearly identical."""
    thumbnails: dict[int, Path]
    """Folder with the thumbnail of each hit, where there is one."""


def show(
    query: Query,
    snapshot: Snapshot,
    groups: Groups | None,
    read: ReadFeatures,
    wanted: tuple[Rows, Rows, Rows],
    *,
    refines: bool,
    thumbnails: Path | None,
) -> Shown:
    """Read the records and frames of a page.

    ``read``: what the search has read. ``wanted``: rows of hits, of their other moments, and of
    what they replace as nearly identical. ``refines``: whether to refine the range of each hit.
    ``thumbnails``: folder of the gallery's.
    """
    rows, others, dropped = (part.tolist() for part in wanted)
    near = _near(groups, wanted[0]) if refines else []
    seen = list(dict.fromkeys([*rows, *(row for each in near for row in each.rows), *others]))
    known = snapshot.videos(np.array([*rows, *dropped], np.int64))
    videos = dict(zip([*rows, *dropped], known, strict=True))
    times_s = {row: videos[row].frame_times_s for row in rows}
    if unknown := [row for row in seen if row not in times_s]:
        times = snapshot.frame_times(np.array(unknown, np.int64))
        times_s.update(zip(unknown, times, strict=True))
    parts = read.frames(np.array(seen, np.int64), snapshot)
    frames = FrameSimilarities(query, seen, parts, times_s)
    ranges = {}
    for row, part in zip(rows, near, strict=False):
        start_s, end_s = times_of(videos[row])
        if end_s is not None:
            ranges[row] = _range(part, frames, (start_s, end_s))
    return Shown(
        {row: videos[row] for row in rows},
        {row: frames.best_time_s[row] for row in [*rows, *others]},
        ranges,
        {row: videos[row].id for row in dropped},
        {} if thumbnails is None else dict.fromkeys(rows, thumbnails),
    )


def _near(groups: Groups | None, rows: Rows) -> list[Neighbourhood]:
    if groups is None:
        return [Neighbourhood([row], (nan, nan)) for row in rows.tolist()]
    return neighbourhoods(groups, rows)


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
