"""The files of a video: found by handle, opened as they were indexed, and told apart by content."""

from __future__ import annotations

import os
import re
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xclip_deploy.errors import MomentSourceError
from xclip_deploy.runtime.gallery import GalleryVideo
from xclip_deploy.runtime.gallery.records import VideoFile
from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.naming import find_id, names_of
from xclip_deploy.service.records import VideoRecords

MAX_KNOWN = 20_000
"""Videos whose files are remembered while the gallery stays as it is."""
_HEAD_BYTES = 4096
_CONTENT = re.compile(r"[0-9a-f]{64}")


class OpenFile:
    """A file that was opened for reading, closed as soon as nobody refers to it any more.

    Several readers may share one, as they read at places and never move a position.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over a descriptor."""
        self._descriptor = descriptor
        self._closing = weakref.finalize(self, os.close, descriptor)
        self.status = os.fstat(descriptor)
        """State of the file when it was opened."""

    def read(self, place: int, count: int) -> bytes:
        """Return up to so many bytes at a place."""
        return os.pread(self._descriptor, count, place)

    def is_unchanged(self) -> bool:
        """Return whether nobody has written to the file. Its removal does not count."""
        now, then = os.fstat(self._descriptor), self.status
        return (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns)


@dataclass(frozen=True, eq=False)
class MediaVideo:
    """A video of the gallery, as far as its media need it."""

    handle: str
    name: str
    """Name of the file, for people."""
    files: tuple[VideoFile, ...]
    content_sha256: str | None
    duration_s: float | None
    thumbnails: Path | None
    """Folder of the thumbnails that indexing kept; None where it keeps none."""

    @classmethod
    def of(cls, video: GalleryVideo, thumbnails: Path | None) -> MediaVideo:
        """Take what media need from a row of the gallery."""
        names = names_of(video, show_paths=False)
        return cls(
            names.handle,
            names.name,
            video.files,
            video.content_sha256,
            video.duration_s,
            thumbnails,
        )


class MediaLookup:
    """Videos by id or handle, remembered as long as the gallery stays as it is."""

    def __init__(self, records: Callable[[], VideoRecords]) -> None:
        """Use a function that returns the gallery's records of now."""
        self._records = records
        self._lock = threading.Lock()
        self._known_of: VideoRecords | None = None
        self._known: OrderedDict[str, MediaVideo] = OrderedDict()

    def find(self, name: str) -> MediaVideo:
        """Return the video with an id or handle. Raises GalleryError if there is none."""
        records = self._records()
        with self._lock:
            if self._known_of is not records:
                self._known_of = records
                self._known = OrderedDict()
            known = self._known
            found = known.get(name)
            if found is not None:
                known.move_to_end(name)
                return found
        found = _video_of(records, name)
        with self._lock:
            # It may be other records' by now; then nobody reads this table any more.
            known[name] = found
            while len(known) > MAX_KNOWN:
                known.popitem(last=False)
        return found

    def forget(self) -> None:
        """Let go of the records."""
        with self._lock:
            self._known_of = None
            self._known = OrderedDict()


def _video_of(records: VideoRecords, name: str) -> MediaVideo:
    # A handle is a content mostly, which one look finds.
    rows = records.find_content([name]) if _CONTENT.fullmatch(name) else {}
    if not rows:
        name = find_id(records, name)
        rows = records.find([name])
    (video,) = records.videos(np.array([rows[name]], np.int64))
    return MediaVideo.of(video, records.thumbnails_of(rows[name]))


@dataclass(frozen=True, eq=False)
class SourceFile:
    """A file that is there, in the state in which it was indexed."""

    file: VideoFile
    content: OpenFile
    """Exactly these bytes: the file's name may lead elsewhere later."""
    content_sha256: str | None
    """Hash of the bytes; None where the gallery does not know which state it hashed."""

    @property
    def tag(self) -> str:
        """Text that stands for the bytes: their hash, or else the state of the file."""
        status = self.content.status
        return self.content_sha256 or f"{status.st_size}-{status.st_mtime_ns}"

    def request(self) -> dict[str, object]:
        """Return the fields of a task that name the file and its state."""
        return {
            "path": self.file.path,
            "size_bytes": self.content.status.st_size,
            "modified_ns": self.content.status.st_mtime_ns,
        }


def open_source(video: MediaVideo) -> SourceFile:
    """Open the first file of a video that is as it was indexed.

    Raises:
        Refusal: the video was added without a file.
        MomentSourceError: there is none. Its cause is FileNotFoundError unless a file changed.
    """
    if not video.files:
        raise Refusal(
            404,
            "NoMedia",
            f"video {video.name!r:.200} was added without a file, so it has no media; expected a "
            "video that was indexed from a file",
        )
    changed = ""
    for file in video.files:
        try:
            # A pipe in the file's place must not keep the service waiting.
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        except OSError as error:
            changed = changed or f"cannot be read ({error.strerror})"
            continue
        content = OpenFile(descriptor)
        if stat.S_ISREG(content.status.st_mode) and _is_as_indexed(file, content.status):
            is_known = file.size_bytes is not None and file.modified_ns is not None
            return SourceFile(file, content, video.content_sha256 if is_known else None)
        changed = "changed since it was indexed, so its moments may lie elsewhere"
    if changed:
        raise MomentSourceError(f"the file {video.name!r:.200} {changed}; index it again")
    raise MomentSourceError(
        f"the file {video.name!r:.200} is gone since it was indexed; put it back, or remove the "
        "video from the gallery"
    ) from FileNotFoundError()


def _is_as_indexed(file: VideoFile, status: os.stat_result) -> bool:
    return file.size_bytes in (None, status.st_size) and file.modified_ns in (
        None,
        status.st_mtime_ns,
    )


def media_type_of(content: OpenFile) -> str:
    """Return the media type of a file by its first bytes, never by its name.

    What is no known container is ``application/octet-stream``, which no browser shows as a page.
    """
    head = content.read(0, _HEAD_BYTES)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        brands = head[8 : min(int.from_bytes(head[:4], "big"), len(head))]
        is_mp4 = head[4:8] == b"ftyp" and not brands.startswith(b"qt  ")
        return "video/mp4" if is_mp4 else "video/quicktime"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm" if b"webm" in head[:64] else "video/x-matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "video/x-msvideo"
    if head.startswith(b"\x47") and head[188:189] in (b"\x47", b""):
        return "video/mp2t"
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    return "application/octet-stream"


_STARTS = {
    b"OggS": "video/ogg",
    b"FLV\x01": "video/x-flv",
    b"\x00\x00\x01\xba": "video/mpeg",
    b"\x00\x00\x01\xb3": "video/mpeg",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "video/x-ms-asf",
    b"GIF8": "image/gif",
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
}
CONTAINER_TYPES = {
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".webm": "video/webm",
}
"""Media types of the containers that cuts are written in."""


def container_like(media_type: str) -> str:
    """Return the ending of a container that takes the streams of a file of this type."""
    endings = {kind: ending for ending, kind in CONTAINER_TYPES.items()}
    return endings.get(media_type, ".mkv")


def stem_of(video: MediaVideo) -> str:
    """Return the name of a video without its ending."""
    return Path(video.name).stem or "video"
