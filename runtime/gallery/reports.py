"""Reports on a gallery: its content, its verification and its rescue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GalleryStats:
    """A summary of a gallery's content."""

    uri: str | None
    """Location; None in memory."""
    fingerprint: str
    """Fingerprint of the model that made the features."""
    num_videos: int
    num_segments: int
    """Number of rows; a long video in segments has several."""
    segmentation: str | None
    """Policy by which videos are cut; None where none is set."""
    num_files: int
    """Number of files; several may hold the same video."""
    total_duration_s: float
    """Sum of all videos' durations, seconds."""
    metadata: Mapping[str, str]
    """Metadata field to the kind of its values."""
    size_bytes: int | None
    """Size on disk; None where it is not known."""
    has_index: bool
    """Whether there is an approximate index, which ``optimize`` builds for large galleries."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and numbers, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Verification:
    """The outcome of reading a whole gallery and comparing it with its checksums."""

    num_videos: int
    """Number of videos that were read, damaged ones among them."""
    damaged_videos: tuple[str, ...] = ()
    """Ids of damaged videos, with the segment of a long one; ``row N`` where they are not
    legible."""
    damaged_files: tuple[str, ...] = ()
    """Files beside the rows that are damaged, by their path below the table."""

    @property
    def is_whole(self) -> bool:
        """Whether everything is as it was written."""
        return not self.damaged_videos and not self.damaged_files

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and numbers, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Rescue:
    """The outcome of copying what is whole out of a damaged gallery."""

    output: str
    """Location of the new gallery."""
    num_videos: int
    """Videos that were copied, whole."""
    lost: tuple[str, ...]
    """Ids of videos that are damaged; ``row N`` for one whose id is not legible."""
    version: int
    """Version that was read."""
    committed_version: int | None
    """Version that was committed last; None if the record of commits is lost."""
    deletions_lost: bool
    """Whether videos that were removed before may be among those copied."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and numbers, for JSON."""
        return asdict(self)
