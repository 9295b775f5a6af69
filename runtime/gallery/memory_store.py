"""A gallery in memory, for few videos and for features that need not be kept."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import DuplicateIdError, GalleryError
from xclip_deploy.runtime.arrays import FloatArray
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.filters import parse_filter
from xclip_deploy.runtime.gallery.flat import FlatVectors
from xclip_deploy.runtime.gallery.groups import Groups, in_order
from xclip_deploy.runtime.gallery.lance_errors import require_packages
from xclip_deploy.runtime.gallery.records import (
    GalleryVideo,
    Rows,
    coerced,
    has_name,
    merged_types,
)
from xclip_deploy.runtime.gallery.reports import Verification
from xclip_deploy.runtime.gallery.store import (
    KEEP_VERSIONS,
    FeatureKeys,
    Nearest,
    QueryVectors,
)
from xclip_deploy.runtime.progress import ProgressFunction

if TYPE_CHECKING:
    from xclip_deploy.runtime.gallery.filter_table import FilterTable

Serials: TypeAlias = npt.NDArray[np.uint64]
"""Numbers that a store gives to rows as they are added."""


class MemorySnapshot:
    """A :class:`Snapshot` in memory; rows count videos in the order of addition."""

    num_partitions = None

    def __init__(
        self,
        videos: tuple[GalleryVideo, ...],
        features: VideoFeatures,
        types: Mapping[str, type],
        serials: Serials,
    ) -> None:
        """Keep the content.

        ``types`` names all metadata fields, unused ones too. ``serials``: number [N] that the
        store gave each row's features.
        """
        self._serials = serials
        self._videos = videos
        self._features = features
        self._types = types
        self._rows = np.arange(len(videos))
        self._segments: dict[str, list[tuple[int, int]]] = {}
        for n, video in enumerate(videos):
            self._segments.setdefault(video.id, []).append((video.segment, n))
        policies = (video.segmentation for video in videos)
        self.segmentation = next((text for text in policies if text is not None), None)
        self._lock = threading.Lock()
        self._flat: FlatVectors | None = None
        self._groups: Groups | None = None
        self._table: FilterTable | None = None

    def __len__(self) -> int:
        return len(self._videos)

    @property
    def num_videos(self) -> int:
        return len(self._segments)

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        return {name: min(self._segments[name])[1] for name in ids if name in self._segments}

    def named(self, paths: Sequence[str], name: str | None) -> list[GalleryVideo]:
        return [video for video in self.listing() if has_name(video, paths, name)]

    def segments(self, ids: Sequence[str]) -> dict[str, Rows]:
        return {name: in_order(self._segments[name]) for name in ids if name in self._segments}

    def groups(self) -> Groups | None:
        if len(self._segments) == len(self._videos):
            return None
        with self._lock:
            if self._groups is None:
                numbers = {name: n for n, name in enumerate(self._segments)}
                codes = np.array([numbers[video.id] for video in self._videos])
                segments = np.array([video.segment for video in self._videos])
                # NumPy turns None into NaN.
                start_s = np.array([video.start_s for video in self._videos], np.float64)
                end_s = np.array([video.end_s for video in self._videos], np.float64)
                self._groups = Groups.of_codes(self._rows, codes, segments, start_s, end_s)
            return self._groups

    def find_content(self, hashes: Sequence[str]) -> dict[str, int]:
        wanted = set(hashes)
        return {
            str(video.content_sha256): n
            for n, video in enumerate(self._videos)
            if video.content_sha256 in wanted and video.segment == 0
        }

    def videos(self, rows: Rows) -> list[GalleryVideo]:
        return [self._videos[row] for row in rows]

    def frame_times(self, rows: Rows) -> list[tuple[float, ...]]:
        return [self._videos[row].frame_times_s for row in rows]

    def features(self, rows: Rows) -> VideoFeatures:
        return self._features[rows]

    def video_features(self, rows: Rows) -> FloatArray:
        flat = self._flat
        return self._features.video_features[rows] if flat is None else flat.take(rows)

    def rows(self) -> Rows:
        return self._rows

    def feature_keys(self) -> tuple[Rows, FeatureKeys]:
        return self._rows, _keys_of(self._serials)

    def matching(self, where: str) -> Rows:
        condition = parse_filter(where, self._types)
        with self._lock:
            if self._table is None:
                # PyArrow is slow to import, and few galleries in memory are filtered.
                require_packages("a filter of a gallery in memory", "pyarrow")
                from xclip_deploy.runtime.gallery.filter_table import FilterTable

                self._table = FilterTable(self._videos, self._types)
        return self._table.matching(condition)

    def count_older(self, reading_version: int) -> int:
        return sum(
            video.content_sha256 is not None and (video.reading_version or 0) < reading_version
            for video in self._videos
            if video.segment == 0
        )

    def nearest(
        self,
        queries: QueryVectors,
        limit: int,
        where: str | None = None,
        without: Rows | None = None,
    ) -> list[Nearest]:
        allowed = None if where is None else self.matching(where)
        with self._lock:
            if self._flat is None:
                self._flat = FlatVectors(self._rows, self._features.video_features)
        return self._flat.nearest(queries, limit, allowed, without)

    def held(self) -> tuple[Rows, VideoFeatures]:
        return self._rows, self._features

    def warm_up(self) -> None:
        """Do nothing: everything is in memory."""

    def scan(
        self, num_videos: int, where: str | None = None
    ) -> Iterator[tuple[Rows, VideoFeatures]]:
        rows = self._rows if where is None else self.matching(where)
        for start in range(0, len(rows), num_videos):
            part = rows[start : start + num_videos]
            yield part, self.features(part)

    def listing(self) -> Iterator[GalleryVideo]:
        return (video for video in self._videos if video.segment == 0)


def _keys_of(serials: Serials) -> FeatureKeys:
    return np.stack([serials, np.zeros_like(serials)], axis=1)


@dataclass
class _Content:
    videos: dict[str, dict[int, tuple[GalleryVideo, int]]]
    """Id and segment to the record and its row among all ``parts``."""
    parts: list[VideoFeatures]
    serials: list[Serials]
    """Serial number of each row of ``parts``. No two rows of a store ever have the same."""


class MemoryStore:
    """A :class:`GalleryStore` in memory. Many additions cost one copy, at the next search."""

    uri = None
    version = None

    def __init__(self, dim: int, max_frames: int) -> None:
        empty = VideoFeatures(
            np.empty((0, dim), np.float16),
            np.empty((0, max_frames, dim), np.float16),
            np.empty(0, np.int32),
        )
        self._lock = threading.RLock()
        self._content = _Content({}, [empty], [np.empty(0, np.uint64)])
        self._num_rows = self._next_serial = 0
        self._types: dict[str, type] = {}
        self._snapshot: MemorySnapshot | None = None

    def snapshot(self) -> MemorySnapshot:
        with self._lock:
            if self._snapshot is None:
                features = VideoFeatures.concatenate(self._content.parts)
                serials = np.concatenate(self._content.serials)
                found = [pair for parts in self._content.videos.values() for pair in parts.values()]
                videos = [video for video, _ in found]
                rows = [row for _, row in found]
                if rows != list(range(self._num_rows)):
                    features, serials = features[rows], serials[rows]
                self._content = _Content({}, [features], [serials])
                self._enter(videos, 0)
                self._num_rows = len(videos)
                self._snapshot = MemorySnapshot(tuple(videos), features, self._types, serials)
            return self._snapshot

    def fields(self) -> dict[str, type]:
        return dict(self._types)

    def declare(self, types: Mapping[str, type]) -> None:
        with self._lock:
            self._types = {**types, **self._types}
            self._snapshot = None

    def refresh(self) -> None:
        """Do nothing: no other process sees this memory."""

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._lock:
            yield

    def put(
        self, videos: Sequence[GalleryVideo], features: VideoFeatures, *, replace: bool
    ) -> FeatureKeys:
        with self._lock:
            present = [
                name
                for name in dict.fromkeys(video.id for video in videos)
                if name in self._content.videos
            ]
            if present and not replace:
                raise DuplicateIdError(f"a video {present[0]!r} is already in the gallery")
            self._types = merged_types(self._types, (video.metadata for video in videos))
            for name in present:
                del self._content.videos[name]
            self._enter([coerced(video, self._types) for video in videos], self._num_rows)
            self._content.parts.append(features)
            stop = self._next_serial + len(videos)
            serials = np.arange(self._next_serial, stop, dtype=np.uint64)
            self._content.serials.append(serials)
            self._num_rows, self._next_serial = self._num_rows + len(videos), stop
            self._snapshot = None
            return _keys_of(serials)

    def update(self, videos: Sequence[GalleryVideo]) -> None:
        with self._lock:
            for video in videos:
                if video.segment not in self._content.videos.get(video.id, {}):
                    raise GalleryError(f"no video {video.id!r} in the gallery")
            self._types = merged_types(self._types, (video.metadata for video in videos))
            for video in videos:
                segments = self._content.videos[video.id]
                row = segments[video.segment][1]
                segments[video.segment] = (coerced(video, self._types), row)
            self._snapshot = None

    def remove(self, ids: Collection[str]) -> int:
        with self._lock:
            present = [name for name in set(ids) if name in self._content.videos]
            for name in present:
                del self._content.videos[name]
            if present:
                self._snapshot = None
            return len(present)

    def optimize(self, progress: ProgressFunction, keep: timedelta = KEEP_VERSIONS) -> None:
        """Do nothing: the next snapshot merges all parts."""
        del progress, keep

    def verify(self, progress: ProgressFunction) -> Verification:
        """Report memory as whole: it is not checked."""
        del progress
        return Verification(self.snapshot().num_videos)

    def size_bytes(self) -> None:
        return None

    def close(self) -> None:
        """Do nothing: memory is freed with the object."""

    def _enter(self, videos: Sequence[GalleryVideo], first_row: int) -> None:
        for n, video in enumerate(videos, first_row):
            self._content.videos.setdefault(video.id, {})[video.segment] = (video, n)
