"""Changes to a gallery that are written in one step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, MetadataValue, VideoFile
from xclip_deploy.runtime.gallery.records import Rows, as_segment_of


class GalleryEdit:
    """A set of changes, gathered while the gallery's lock is held.

    One addition writes every changed video, so a killed process leaves all of it or none. Videos
    without a successor are removed afterwards.
    """

    def __init__(
        self, gallery: Gallery, ids: Collection[str], hashes: Collection[str] = ()
    ) -> None:
        """Look up the videos with these ids, and with contents of these SHA-256."""
        self._gallery = gallery
        self._snapshot = gallery.snapshot()
        self._videos: dict[str, GalleryVideo] = {}
        self._rows: dict[str, Rows] = {}
        self._segments: dict[str, tuple[GalleryVideo, ...]] = {}
        self._features: dict[str, VideoFeatures] = {}
        self._changed: dict[str, None] = {}
        self._absent: set[str] = set()
        self._removed: set[str] = set()
        self._contents: dict[str, str] = {}
        self._new_names: dict[str, str] = {}
        found = self._snapshot.find_content(list(hashes)) if hashes else {}
        self._load(list(ids), found.values())

    def get(self, video_id: str) -> GalleryVideo | None:
        """Return the video with the changes so far; None if it is absent or dropped."""
        if video_id not in self._videos and video_id not in self._absent:
            self._load([video_id])
        return self._videos.get(video_id)

    def new_name(self, video_id: str) -> str:
        """Return the current id of a video that may have been renamed."""
        while video_id in self._new_names and video_id not in self._videos:
            video_id = self._new_names[video_id]
        return video_id

    def lists(self, video_id: str, path: str) -> bool:
        """Tell whether the video exists and lists a file."""
        video = self.get(video_id)
        return video is not None and any(file.path == path for file in video.files)

    def with_content(self, content_sha256: str) -> GalleryVideo | None:
        """Return the video with a content that was looked up or added."""
        name = self._contents.get(content_sha256)
        return None if name is None else self._videos.get(name)

    def add(self, segments: Sequence[GalleryVideo], features: VideoFeatures) -> None:
        """Add or replace a video, given by its segments in order, with a row of features each."""
        video = segments[0]
        self._put(video)
        self._segments[video.id] = tuple(segments)
        self._features[video.id] = features
        self._rows.pop(video.id, None)

    def set_file(self, video_id: str, file: VideoFile) -> None:
        """Add a file to a video, or update the file's record."""
        video = self._videos[video_id]
        files = [file if known.path == file.path else known for known in video.files]
        if file not in files:
            files.append(file)
        if tuple(files) != video.files:
            self._put(_with(video, files=files))

    def set_metadata(self, video_id: str, metadata: dict[str, MetadataValue]) -> None:
        """Replace a video's metadata."""
        video = self._videos[video_id]
        if dict(video.metadata) != metadata:
            self._put(video.model_copy(update={"metadata": metadata}))

    def detach(self, video_id: str, path: str) -> None:
        """Remove a file from a video.

        A video without files is dropped; a video whose id was that path is renamed.
        """
        video = self._videos[video_id]
        files = [file for file in video.files if file.path != path]
        if not files:
            self.drop(video_id)
            return
        self._put(_with(video, files=files))
        if video_id == path:
            self.move_aside(video_id)

    def move_aside(self, video_id: str) -> None:
        """Rename a video after the first of its files whose path is not an id yet."""
        video = self._videos[video_id]
        free = (file.path for file in video.files if self.get(file.path) is None)
        self.rename(video_id, next(free, f"{video.path}#{video.content_sha256}"))

    def rename(self, video_id: str, new_id: str) -> None:
        """Give a video another id, and replace the video that has it now."""
        video = self._videos[video_id]
        features, rows = self._features.get(video_id), self._rows.get(video_id)
        segments = self._segments.get(video_id)
        self.drop(video_id)
        self.get(new_id)  # loads the video there now, so that no later look-up restores it
        self._forget(new_id)
        if features is not None and segments is not None:
            self._features[new_id], self._segments[new_id] = features, segments
        if rows is not None:
            self._rows[new_id] = rows
        self._put(video.model_copy(update={"id": new_id}))
        self._new_names[video_id] = new_id

    def drop(self, video_id: str) -> None:
        """Remove a video."""
        video = self._videos.pop(video_id)
        if (
            video.content_sha256 is not None
            and self._contents.get(video.content_sha256) == video_id
        ):
            del self._contents[video.content_sha256]
        self._forget(video_id)
        self._changed.pop(video_id, None)
        self._removed.add(video_id)
        self._absent.add(video_id)

    def write(self) -> None:
        """Write the changes. Raises GalleryError."""
        old = [name for name in self._changed if name not in self._features]
        new = [name for name in self._changed if name in self._features]
        videos: list[GalleryVideo] = []
        parts = [self._features[name] for name in new]
        if old:
            rows = np.concatenate([self._rows[name] for name in old])
            parts.insert(0, self._snapshot.features(rows))
            stored = iter(self._snapshot.videos(rows))
            for name in old:
                videos += [
                    as_segment_of(next(stored), self._videos[name]) for _ in self._rows[name]
                ]
        for name in new:
            videos += [as_segment_of(row, self._videos[name]) for row in self._segments[name]]
        if parts:
            self._gallery.add(videos, VideoFeatures.concatenate(parts), replace=True)
        gone = self._snapshot.find(sorted(self._removed - self._changed.keys()))
        self._gallery.remove(list(gone))

    def _forget(self, video_id: str) -> None:
        """Forget where a video's embeddings are."""
        self._rows.pop(video_id, None)
        self._segments.pop(video_id, None)
        self._features.pop(video_id, None)

    def _put(self, video: GalleryVideo) -> None:
        before = self._videos.get(video.id)
        if before is not None and before.content_sha256 not in (None, video.content_sha256):
            self._contents.pop(str(before.content_sha256), None)
        self._videos[video.id] = video
        self._absent.discard(video.id)
        self._changed[video.id] = None
        if video.content_sha256 is not None:
            self._contents[video.content_sha256] = video.id

    def _load(self, ids: list[str], rows: Iterable[int] = ()) -> None:
        found = self._snapshot.find(ids)
        self._absent.update(name for name in ids if name not in found)
        wanted = np.array(sorted({*found.values(), *rows}), np.int64)
        if not len(wanted):
            return
        videos = self._snapshot.videos(wanted)
        long = self._snapshot.segments([video.id for video in videos if video.num_segments > 1])
        for row, video in zip(wanted, videos, strict=True):
            if video.id not in self._videos and video.id not in self._removed:
                self._videos[video.id] = video
                self._rows[video.id] = long.get(video.id, np.array([row], np.int64))
                self._absent.discard(video.id)
                if video.content_sha256 is not None:
                    self._contents.setdefault(video.content_sha256, video.id)


def _with(video: GalleryVideo, files: list[VideoFile]) -> GalleryVideo:
    return video.model_copy(update={"files": tuple(files), "path": files[0].path})
