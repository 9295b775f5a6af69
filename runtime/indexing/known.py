"""What a gallery knows of the files that are to be indexed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.gallery import GalleryVideo, VideoFile
from xclip_deploy.runtime.indexing.sources import Sources, folders_above

_PART = 65_536


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file as a video of the gallery lists it."""

    video_id: str
    size_bytes: int | None
    modified_ns: int | None
    is_first: bool
    """Whether the video's own path is this file's."""

    def is_as(self, size_bytes: int, modified_ns: int) -> bool:
        """Whether the file has not changed since, as far as its size and time tell."""
        return (self.size_bytes, self.modified_ns) == (size_bytes, modified_ns)


class KnownFiles:
    """One pass over a gallery, which keeps what concerns the sources alone."""

    def __init__(self, listing: Iterable[GalleryVideo], sources: Sources, prune: bool) -> None:
        """``prune``: whether files are wanted that are listed below the sources' folders."""
        # By themselves, to keep the sources' texts rather than the listing's: half the memory.
        wanted = {source.path: source.path for source in sources.videos}
        given_ids = {source.id for source in sources.videos if source.id is not None}
        self._files: dict[str, KnownFile] = {}
        self._more: dict[str, tuple[KnownFile, ...]] = {}
        self._ids: set[str] = set()
        self._folders = sources.folders if prune else ()
        self.unseen: list[tuple[str, str]] = []
        """Path and video id of listed files below the folders that are no sources."""
        self.contents = ContentFilter()
        for video in listing:
            if video.id in given_ids or video.id in wanted:
                self._ids.add(wanted.get(video.id, video.id))
            if video.fingerprint is not None:
                self.contents.add(video.fingerprint)
            for n, file in enumerate(video.files):
                if file.path in wanted:
                    name = wanted.get(video.id, video.id)
                    self._note(wanted[file.path], name, file, is_first=n == 0)
                elif any(folders_above(file.path, self._folders)):
                    self.unseen.append((file.path, video.id))

    def of(self, path: str) -> tuple[KnownFile, ...]:
        """Entries of a file: one, none, or more after a run that was killed between two writes."""
        known = self._files.get(path)
        return () if known is None else (known, *self._more.get(path, ()))

    def has_id(self, video_id: str) -> bool:
        """Whether a video has this id, which must be one that a source wants."""
        return video_id in self._ids

    def _note(self, path: str, video_id: str, file: VideoFile, *, is_first: bool) -> None:
        known = KnownFile(video_id, file.size_bytes, file.modified_ns, is_first)
        if self._files.setdefault(path, known) is not known:
            self._more[path] = (*self._more.get(path, ()), known)


class ContentFilter:
    """Which contents a gallery may hold: eight bytes a video, mistaken once in 10^13 or so."""

    def __init__(self) -> None:
        self._sorted: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._new: set[int] = set()

    def add(self, fingerprint: str) -> None:
        """Note a content. ``fingerprint``: hexadecimal."""
        self._new.add(_prefix(fingerprint))
        if len(self._new) >= _PART:
            self._sorted = np.union1d(self._sorted, np.fromiter(self._new, np.uint64))
            self._new.clear()

    def __contains__(self, fingerprint: str) -> bool:
        prefix = _prefix(fingerprint)
        if prefix in self._new:
            return True
        place = int(np.searchsorted(self._sorted, np.uint64(prefix)))
        return place < len(self._sorted) and int(self._sorted[place]) == prefix


def _prefix(fingerprint: str) -> int:
    return int(fingerprint[:16], 16)
