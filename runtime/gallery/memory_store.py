"""A gallery in memory, for few videos and for features that need not be kept."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from xclip_deploy.errors import DuplicateIdError, GalleryError
from xclip_deploy.runtime.arrays import FloatArray
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.filters import parse_filter
from xclip_deploy.runtime.gallery.flat import FlatVectors
from xclip_deploy.runtime.gallery.records import GalleryVideo, coerced, merged_types
from xclip_deploy.runtime.gallery.reports import Verification
from xclip_deploy.runtime.gallery.store import (
    KEEP_VERSIONS,
    Nearest,
    QueryVectors,
    Rows,
)
from xclip_deploy.runtime.progress import ProgressFunction

if TYPE_CHECKING:
    from xclip_deploy.runtime.gallery.filter_table import FilterTable


class MemorySnapshot:
    """A :class:`Snapshot` in memory; rows count videos in the order of addition."""

    num_partitions = None

    def __init__(
        self,
        videos: tuple[GalleryVideo, ...],
        features: VideoFeatures,
        types: Mapping[str, type],
    ) -> None:
        """Keep the content; ``types`` names all metadata fields, unused ones too."""
        self._videos = videos
        self._features = features
        self._types = types
        self._rows = np.arange(len(videos))
        self._places = {video.id: n for n, video in enumerate(videos)}
        self._lock = threading.Lock()
        self._flat: FlatVectors | None = None
        self._table: FilterTable | None = None

    def __len__(self) -> int:
        return len(self._videos)

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        return {name: self._places[name] for name in ids if name in self._places}

    def find_content(self, hashes: Sequence[str]) -> dict[str, int]:
        wanted = set(hashes)
        return {
            video.content_sha256: n
            for n, video in enumerate(self._videos)
            if video.content_sha256 is not None and video.content_sha256 in wanted
        }

    def videos(self, rows: Rows) -> list[GalleryVideo]:
        return [self._videos[row] for row in rows]

    def features(self, rows: Rows) -> VideoFeatures:
        return self._features[rows]

    def video_features(self, rows: Rows) -> FloatArray:
        flat = self._flat
        return self._features.video_features[rows] if flat is None else flat.take(rows)

    def rows(self) -> Rows:
        return self._rows

    def matching(self, where: str) -> Rows:
        condition = parse_filter(where, self._types)
        with self._lock:
            if self._table is None:
                # PyArrow is slow to import, and few galleries in memory are filtered.
                from xclip_deploy.runtime.gallery.filter_table import FilterTable

                self._table = FilterTable(self._videos, self._types)
        return self._table.matching(condition)

    def count_older(self, reading_version: int) -> int:
        return sum(
            video.content_sha256 is not None and (video.reading_version or 0) < reading_version
            for video in self._videos
        )

    def nearest(self, queries: QueryVectors, limit: int, where: str | None = None) -> list[Nearest]:
        allowed = None if where is None else self.matching(where)
        with self._lock:
            if self._flat is None:
                self._flat = FlatVectors(self._rows, self._features.video_features)
        return self._flat.nearest(queries, limit, allowed)

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
        return iter(self._videos)


@dataclass
class _Content:
    videos: dict[str, tuple[GalleryVideo, int]]
    """Id to video and its row among all ``parts``."""
    parts: list[VideoFeatures]


class MemoryStore:
    """A :class:`GalleryStore` in memory. Many additions cost one copy, at the next search."""

    uri = None

    def __init__(self, dim: int, max_frames: int) -> None:
        empty = VideoFeatures(
            np.empty((0, dim), np.float16),
            np.empty((0, max_frames, dim), np.float16),
            np.empty(0, np.int32),
        )
        self._lock = threading.RLock()
        self._content = _Content({}, [empty])
        self._num_rows = 0
        self._types: dict[str, type] = {}
        self._snapshot: MemorySnapshot | None = None

    def snapshot(self) -> MemorySnapshot:
        with self._lock:
            if self._snapshot is None:
                features = VideoFeatures.concatenate(self._content.parts)
                videos = [video for video, _ in self._content.videos.values()]
                rows = [row for _, row in self._content.videos.values()]
                if rows != list(range(self._num_rows)):
                    features = features[rows]
                places = {video.id: (video, n) for n, video in enumerate(videos)}
                self._content = _Content(places, [features])
                self._num_rows = len(videos)
                self._snapshot = MemorySnapshot(tuple(videos), features, self._types)
            return self._snapshot

    def refresh(self) -> None:
        """Do nothing: no other process sees this memory."""

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._lock:
            yield

    def put(
        self, videos: Sequence[GalleryVideo], features: VideoFeatures, *, replace: bool
    ) -> None:
        with self._lock:
            present = [video.id for video in videos if video.id in self._content.videos]
            if present and not replace:
                raise DuplicateIdError(f"a video {present[0]!r} is already in the gallery")
            self._types = merged_types(self._types, (video.metadata for video in videos))
            for name in present:
                del self._content.videos[name]
            for n, video in enumerate(videos):
                known = coerced(video, self._types)
                self._content.videos[video.id] = (known, self._num_rows + n)
            self._content.parts.append(features)
            self._num_rows += len(videos)
            self._snapshot = None

    def update(self, videos: Sequence[GalleryVideo]) -> None:
        with self._lock:
            for video in videos:
                if video.id not in self._content.videos:
                    raise GalleryError(f"no video {video.id!r} in the gallery")
            self._types = merged_types(self._types, (video.metadata for video in videos))
            for video in videos:
                row = self._content.videos[video.id][1]
                self._content.videos[video.id] = (coerced(video, self._types), row)
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
        return Verification(len(self.snapshot()))

    def size_bytes(self) -> None:
        return None

    def close(self) -> None:
        """Do nothing: memory is freed with the object."""
