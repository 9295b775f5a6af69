"""The records of a file on its way into the gallery, one for each stage.

A ``SourceVideo`` is found, becomes a ``Task`` when it is to be read, a ``ReadyFile`` when it was
read and encoded, and a ``Placed`` when it was committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import MetadataValue, VideoFile

OnDuplicate = Literal["update", "skip", "replace", "error"]
What = Literal["indexed", "changed", "unchanged", "duplicate"]


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """One file to index."""

    path: str
    """Absolute."""
    id: str | None = None
    """None: the path."""
    metadata: Mapping[str, MetadataValue] | None = None
    """All of the video's metadata; None where nothing was said of it."""

    @property
    def wanted_id(self) -> str:
        """The id that the video is to have."""
        return self.path if self.id is None else self.id


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


@dataclass(eq=False)
class Task:
    """One file that is to be read."""

    order: int
    """Its place among the sources."""
    source: SourceVideo
    known: tuple[KnownFile, ...] = ()
    """How the gallery listed it when the run began."""
    replace: bool = False
    """Whether to encode it whatever the gallery holds."""
    is_retry: bool = False
    """Whether the gallery turned out not to hold its content, though it seemed so."""
    content_sha256: str | None = None
    """Hash of the file, hexadecimal, once it was read."""


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    """What decoding and encoding gave."""

    duration_s: float
    frame_times_s: tuple[float, ...]
    features: VideoFeatures
    """V = 1."""


@dataclass(frozen=True, eq=False)
class ReadyFile:
    """A file that the gallery is to know of."""

    task: Task
    file: VideoFile
    content_sha256: str | None
    """None for one that was not read, being unchanged."""
    encoded: EncodedVideo | None
    """None where the gallery, or another file, has the same content."""


@dataclass(frozen=True)
class Placed:
    """What became of a file."""

    task: Task
    what: What
    video_id: str
    warning: str | None = None
