"""Records and frames of the rows that hits show, read where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import first_best, to_float32
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import GalleryVideo, Snapshot
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import Rows, times_of
from xclip_deploy.runtime.results import TimeRange
from xclip_deploy.runtime.search.ranked import Query
from xclip_deploy.runtime.search.refining import curve, neighbourhood, refine

ReadRows = Callable[[Rows, Snapshot], VideoFeatures]


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
    read: ReadRows,
    wanted: tuple[Rows, Rows, Rows],
    *,
    refines: bool,
    thumbnails: Path | None,
) -> Shown:
    """Read the records and frames of a page.

    ``wanted``: rows of hits, of their other moments, and of what they replace as nearly identical.
    ``refines``: whether to refine the range of each hit. ``thumbnails``: folder of the gallery's.
    """
    rows, others, dropped = (part.tolist() for part in wanted)
    near = [_near(groups, row) for row in rows] if refines else []
    more = [row for part in near for row in part] + others
    seen = list(dict.fromkeys([*rows, *more]))
    known = snapshot.videos(np.array([*rows, *dropped], np.int64))
    videos = dict(zip([*rows, *dropped], known, strict=True))
    frames = _Frames(query, seen, read(np.array(seen, np.int64), snapshot))
    frames.times_s = {row: videos[row].frame_times_s for row in rows}
    unknown = [row for row in seen if row not in frames.times_s]
    if unknown:
        times = snapshot.frame_times(np.array(unknown, np.int64))
        frames.times_s |= zip(unknown, times, strict=True)
    ranges = {}
    for row, part in zip(rows, near, strict=False):
        start_s, end_s = times_of(videos[row])
        if end_s is not None:
            ranges[row] = _range(part, groups, frames, (start_s, end_s))
    return Shown(
        {row: videos[row] for row in rows},
        {row: frames.best_time(row) for row in [*rows, *others]},
        ranges,
        {row: videos[row].id for row in dropped},
        {} if thumbnails is None else dict.fromkeys(rows, thumbnails),
    )


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


def _near(groups: Groups | None, row: int) -> list[int]:
    """Return the row and its neighbours, in the order of time."""
    return [row] if groups is None else neighbourhood(groups, row)


def _range(
    near: list[int], groups: Groups | None, frames: _Frames, segment: tuple[float, float]
) -> TimeRange:
    """Refine start and end of a segment by the frames of the rows ``near``."""
    times_s, values = curve(
        [frames.times_s[row] for row in near], [frames.similarity(row) for row in near]
    )
    if groups is None:
        return refine(times_s, values, segment, segment)
    first, last = (int(place) for place in groups.places(np.array(near)[[0, -1]]))
    # Rows without times are alone.
    bounds = (float(groups.start_s[first]), float(groups.end_s[last]))
    return refine(times_s, values, segment, segment if isnan(sum(bounds)) else bounds)
