"""The summary of the gallery, as responses show it."""

from __future__ import annotations

from xclip_deploy.service.errors import redacted
from xclip_deploy.service.records import VideoRecords
from xclip_deploy.service.served import ServedGallery
from xclip_deploy.service.settings import ServiceSettings
from xclip_deploy.wire.gallery import GalleryModel


class Summary:
    """The summary of a gallery, computed once for each of its states."""

    def __init__(self, served: ServedGallery, settings: ServiceSettings) -> None:
        """Prepare to summarize a gallery."""
        self._served = served
        self._settings = settings
        self._known: tuple[VideoRecords, GalleryModel] | None = None

    def model(self) -> GalleryModel:
        """Summarize the gallery in one pass, unless it is as it was. Raises GalleryError."""
        served, settings = self._served, self._settings
        known, records = self._known, served.records()
        model_of = served.retriever.model
        parts = [model_of.placement.summary, served.placement]
        placement = "; gallery ".join(filter(None, parts))
        placement = placement if settings.show_paths else redacted(placement)
        if known is not None and known[0] is records:
            return known[1].model_copy(update={"placement": placement})
        stats = served.stats()
        can_add = not settings.read_only and served.num_shards is None
        model = GalleryModel(
            num_videos=stats.num_videos,
            num_segments=stats.num_segments,
            num_files=stats.num_files,
            segmentation=stats.segmentation,
            total_duration_s=stats.total_duration_s,
            metadata=dict(stats.metadata),
            size_bytes=stats.size_bytes,
            has_index=stats.has_index,
            fingerprint=stats.fingerprint,
            family=model_of.config.family.value,
            placement=placement,
            can_add_paths=bool(settings.roots) and can_add,
            can_upload=can_add,
            num_shards=served.num_shards,
        )
        if served.records() is records:
            self._known = records, model
        return model
