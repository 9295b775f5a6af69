"""Requests and responses of the gallery."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xclip_deploy.runtime.gallery.records import MetadataValue
from xclip_deploy.wire.base import VideoName, WireModel

MAX_PAGE = 1000
Metadata = dict[str, MetadataValue]
PathText = Annotated[str, Field(min_length=1, max_length=4096)]


class GalleryModel(WireModel):
    """What the gallery holds; see :class:`GalleryStats`."""

    num_videos: int
    num_segments: int
    num_files: int
    segmentation: str | None
    total_duration_s: float
    metadata: dict[str, str]
    """Metadata field to the kind of its values."""
    size_bytes: int | None
    has_index: bool
    fingerprint: str
    family: str
    """Family of the model: ``xclip``, ``clip4clip`` or ``clip``."""
    placement: str
    """Where and in which precision the model runs."""
    can_add_paths: bool
    """Whether the service has folders whose files can be added by path."""
    can_upload: bool
    num_shards: int | None = None
    """Number of shards that a cluster searches; None for a gallery on one machine."""


class SegmentModel(WireModel):
    """One segment of a video."""

    segment: int
    start_s: float
    end_s: float | None


class VideoModel(WireModel):
    """A video of the gallery; see :class:`GalleryVideo`."""

    id: str
    handle: str
    name: str
    path: str | None
    paths: list[str]
    duration_s: float | None
    num_segments: int
    metadata: Metadata
    has_media: bool
    segments: list[SegmentModel] | None = None
    """Segments of the video; None in listings."""


class VideoPage(WireModel):
    """Videos in the gallery's order."""

    videos: list[VideoModel]
    total: int
    """Number of videos that match the filter."""
    next_offset: int | None


class AddOptions(WireModel):
    """How videos are added; see :meth:`Retriever.add`."""

    metadata: Metadata | None = None
    segment: Annotated[str, Field(max_length=32)] | None = None
    stride: Annotated[str, Field(max_length=32)] | None = None
    on_duplicate: Literal["update", "skip", "replace", "error"] = "update"
    thumbnails: bool = True


class IndexRequest(AddOptions):
    """Files or folders on the server to add."""

    paths: Annotated[list[PathText], Field(min_length=1, max_length=1000)]
    """Absolute, or relative to a folder whose files may be added."""
    prune: bool = False


class RemoveRequest(WireModel):
    """Videos to remove: by name, or by a filter."""

    videos: Annotated[list[VideoName], Field(min_length=1, max_length=10_000)] | None = None
    where: Annotated[str, Field(min_length=1, max_length=4000)] | None = None


class RemovedModel(WireModel):
    """Outcome of a removal."""

    num_removed: int
