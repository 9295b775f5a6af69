"""The summary of the gallery, as responses show it."""

from __future__ import annotations

from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.retriever import Retriever
from xclip_deploy.service.errors import redacted
from xclip_deploy.service.settings import ServiceSettings
from xclip_deploy.wire.gallery import GalleryModel


class Summary:
    """The summary of a gallery, computed once for each of its states."""

    def __init__(self, retriever: Retriever, settings: ServiceSettings) -> None:
        """Prepare to summarize the gallery of ``retriever``."""
        self._retriever = retriever
        self._settings = settings
        self._known: tuple[Snapshot, GalleryModel] | None = None

    def model(self) -> GalleryModel:
        """Summarize the gallery in one pass, unless it is as it was. Raises GalleryError."""
        retriever, settings = self._retriever, self._settings
        known, snapshot = self._known, retriever.gallery.snapshot()
        parts = [retriever.model.placement.summary, retriever.residence.describe()]
        placement = "; gallery ".join(filter(None, parts))
        placement = placement if settings.show_paths else redacted(placement)
        if known is not None and known[0] is snapshot:
            return known[1].model_copy(update={"placement": placement})
        stats = retriever.gallery.stats()
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
            family=retriever.model.config.family.value,
            placement=placement,
            can_add_paths=bool(settings.roots) and not settings.read_only,
            can_upload=not settings.read_only,
        )
        if retriever.gallery.snapshot() is snapshot:
            self._known = snapshot, model
        return model
