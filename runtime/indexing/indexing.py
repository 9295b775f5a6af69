"""Indexing in one call: sources, model and progress bar put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.gallery import Gallery, MetadataValue
from xclip_deploy.runtime.gallery.records import check_metadata
from xclip_deploy.runtime.indexing.indexer import Indexer, IndexSettings, OnDuplicate, Progress
from xclip_deploy.runtime.indexing.report import IndexReport
from xclip_deploy.runtime.indexing.sources import Sources, find_sources, name_sources
from xclip_deploy.runtime.video import FrameSampling, VideoReader


def index_videos(
    gallery: Gallery,
    model: DeployedModel,
    paths: Sequence[Path],
    *,
    sampling: FrameSampling,
    image_size: int,
    reader: VideoReader = "pyav",
    ids: Sequence[str] | None = None,
    metadata: Mapping[str, MetadataValue] | None = None,
    on_duplicate: OnDuplicate = "update",
    prune: bool = False,
    workers: int | None = None,
    timeout_s: float = 120.0,
    progress: bool | Progress = False,
    on_commit: Callable[[Sequence[str]], None] | None = None,
) -> IndexReport:
    """Index files into a gallery: see ``Retriever.add`` and :meth:`Indexer.run`.

    ``on_commit``: called with the paths that the gallery holds for good, after each commit.
    Raises VideoNotFoundError, InvalidArgumentError, DuplicateIdError, MetadataError and
    GalleryError.
    """
    if metadata is not None:
        check_metadata(metadata)
    sources = find_sources(paths) if ids is None else name_sources(paths, ids)
    if metadata is not None:
        sources = _with_metadata(sources, metadata)
    settings = IndexSettings(
        reader=reader,
        workers=workers,
        timeout_s=timeout_s,
        max_batch=model.max_batch,
        on_commit=on_commit,
    )
    indexer = Indexer(gallery, model.encode_clips, sampling, image_size, settings)
    if progress is True and sources.videos:
        from xclip_deploy.runtime.progress import video_progress

        with video_progress(len(sources.videos)) as report:
            return indexer.run(sources, on_duplicate=on_duplicate, prune=prune, progress=report)
    function = progress if callable(progress) else None
    return indexer.run(sources, on_duplicate=on_duplicate, prune=prune, progress=function)


def _with_metadata(sources: Sources, metadata: Mapping[str, MetadataValue]) -> Sources:
    """What stands in a list wins over what is said of all videos."""
    videos = [
        replace(source, metadata={**metadata, **(source.metadata or {})})
        for source in sources.videos
    ]
    return replace(sources, videos=videos)
