"""The records of a file on its way into the gallery, one for each stage.

A found file is a ``SourceVideo``. It becomes a ``Task`` before it is read, a ``ReadyFile`` once it
is read and encoded, and a ``Placed`` once it is committed.
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
    """Absolute path."""
    id: str | None = None
    """Id that the user gave; None for the path."""
    metadata: Mapping[str, MetadataValue] | None = None
    """All of the video's metadata; None if none was given."""

    @property
    def wanted_id(self) -> str:
        """The id to give to the video."""
        return self.path if self.id is None else self.id


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file as a video of the gallery lists it."""

    video_id: str
    size_bytes: int | None
    modified_ns: int | None
    is_first: bool
    """Whether this file is at the video's own path."""
    shard: int = 0
    """Number of the shard that lists it; 0 for a gallery that has none."""

    def is_as(self, size_bytes: int, modified_ns: int) -> bool:
        """Tell whether size and time are unchanged."""
        return (self.size_bytes, self.modified_ns) == (size_bytes, modified_ns)


@dataclass(eq=False)
class Task:
    """One file to read."""

    order: int
    """Place among the sources."""
    source: SourceVideo
    known: tuple[KnownFile, ...] = ()
    """Entries of the file in the gallery when the run began."""
    replace: bool = False
    """Whether to encode the file even if the gallery holds its content."""
    is_retry: bool = False
    """Whether the file is read again, as the gallery did not hold its content after all."""
    content_sha256: str | None = None
    """SHA-256 of the file, hexadecimal, once it was read."""


@dataclass(frozen=True)
class SegmentTimes:
    """Times of a segment within its video, seconds."""

    start_s: float
    end_s: float
    frame_times_s: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    """The result of decoding and encoding."""

    duration_s: float
    segments: tuple[SegmentTimes, ...]
    """The video's segments in order; a short video is one."""
    features: VideoFeatures
    """Features of the segments, V of them."""
    segmentation: str | None = None
    """:attr:`Segmentation.text` of the policy that cut the video; None takes the gallery's."""


@dataclass(frozen=True, eq=False)
class ReadyFile:
    """A file that is ready to be committed."""

    task: Task
    file: VideoFile
    content_sha256: str | None
    """SHA-256 of the file; None for an unchanged file, which was not read."""
    encoded: EncodedVideo | None
    """Features; None if the gallery or another file has the same content."""


@dataclass(frozen=True)
class Placed:
    """The outcome of a committed file."""

    task: Task
    what: What
    video_id: str
    warning: str | None = None
