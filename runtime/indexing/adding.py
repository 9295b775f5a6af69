"""Add videos to a gallery, from files or from memory, for ``Retriever.add``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import (
    MAX_THREADS,
    PathName,
    as_choice,
    as_instance,
    as_number,
    as_paths,
    as_texts,
    as_truth,
    as_whole_number,
)
from xclip_deploy.runtime.decoding import DecoderPool
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.gallery import Gallery, MetadataValue
from xclip_deploy.runtime.gallery.thumbnails import ThumbnailStore
from xclip_deploy.runtime.indexing.claims import Elsewhere
from xclip_deploy.runtime.indexing.estimating import IndexEstimate, estimate
from xclip_deploy.runtime.indexing.in_memory import index_frames
from xclip_deploy.runtime.indexing.indexer import IndexRun, IndexSettings, PulseFunction
from xclip_deploy.runtime.indexing.records import OnDuplicate, Task
from xclip_deploy.runtime.indexing.report import IndexReport
from xclip_deploy.runtime.indexing.reuse import frame_reuse, shares_frames
from xclip_deploy.runtime.indexing.sources import Sources, open_sources
from xclip_deploy.runtime.progress import (
    LOOKING,
    READING_FIRST,
    Progress,
    ProgressFunction,
    progress_function,
)
from xclip_deploy.runtime.video import VideoLike, VideoReading, are_frames
from xclip_deploy.runtime.video.segmentation import Segmentation

_MAX_TIMEOUT_S = 1e6


def add_videos(
    gallery: Gallery,
    model: DeployedModel,
    reading: VideoReading,
    videos: VideoLike | Iterable[VideoLike],
    *,
    ids: str | Sequence[str] | None,
    metadata: Mapping[str, MetadataValue] | None,
    segment: str | float | Segmentation | None,
    stride: str | float | None,
    on_duplicate: OnDuplicate,
    prune: bool,
    thumbnails: bool,
    workers: int | None,
    timeout_s: float,
    progress: bool | ProgressFunction,
) -> IndexReport:
    """Check the arguments, then read, encode and add videos: see :meth:`Retriever.add`."""
    as_choice("on_duplicate", on_duplicate, OnDuplicate)
    as_truth("prune", prune)
    as_truth("thumbnails", thumbnails)
    if workers is not None:
        workers = as_whole_number("workers", workers, 1, MAX_THREADS)
    timeout_s = as_number("timeout_s", timeout_s, 1e-3, _MAX_TIMEOUT_S)
    if metadata is not None:
        as_instance("metadata", metadata, Mapping, "a mapping of names to values, or None")
    if not callable(progress):
        as_truth("progress", progress)
    if ids is not None:
        ids = [ids] if isinstance(ids, str) else as_texts("ids", ids)
    if are_frames(videos):
        if segment is not None or stride is not None:
            raise InvalidArgumentError(
                "segment and stride are for files; expected neither for frames in memory"
            )
        if prune:
            raise InvalidArgumentError("prune is for files; expected none for frames in memory")
        return index_frames(
            gallery, model.encode_videos, reading, videos, ids, metadata, on_duplicate
        )
    segmentation = choose_segmentation(gallery, reading, segment, stride)
    paths = as_paths("videos", videos)
    with progress_function(progress) as report:
        report(Progress.waiting("videos", LOOKING))
        sources = open_sources(paths, ids, metadata)
        return add_sources(
            gallery,
            model,
            reading,
            sources,
            segmentation=segmentation,
            on_duplicate=on_duplicate,
            prune=prune,
            thumbnails=thumbnails,
            workers=workers,
            timeout_s=timeout_s,
            progress=report,
        )


def add_sources(
    gallery: Gallery,
    model: DeployedModel,
    reading: VideoReading,
    sources: Sources,
    *,
    segmentation: Segmentation,
    on_duplicate: OnDuplicate,
    prune: bool,
    thumbnails: bool | ThumbnailStore | None,
    workers: int | None,
    timeout_s: float,
    progress: ProgressFunction,
    pulse: PulseFunction | None = None,
    pool: DecoderPool[Task] | None = None,
    elsewhere: Elsewhere | None = None,
) -> IndexReport:
    """Read, encode and add files that were found: see :meth:`Retriever.add`.

    ``pulse`` is called about once a second, also while nothing gets done. An exception from it or
    from ``progress`` ends the run; what was encoded by then is committed. ``pool``: decoders to
    use, which the caller closes; None starts ``workers``. ``thumbnails``: whether to keep them
    beside the gallery, or where else. ``elsewhere``: see :class:`IndexRun`.
    """
    progress(Progress.waiting("videos", READING_FIRST))
    if thumbnails is True:
        folder = gallery.thumbnails
        thumbnails = None if folder is None else ThumbnailStore(folder)
    with ExitStack() as stack:
        if pool is None:
            own = DecoderPool[Task](reading, workers=workers, timeout_s=timeout_s)
            pool = stack.enter_context(own)
        settings = IndexSettings(max_batch=model.max_batch, pulse=pulse)
        run = IndexRun(
            sources,
            gallery,
            model.encode_videos,
            pool,
            segmentation=segmentation,
            reuse=frame_reuse(model),
            thumbnails=thumbnails or None,
            settings=settings,
            progress=progress,
            elsewhere=elsewhere,
        )
        return run.run(on_duplicate, prune=prune)


def estimate_videos(
    gallery: Gallery,
    model: DeployedModel,
    reading: VideoReading,
    videos: PathName | Iterable[PathName],
    *,
    segment: str | float | Segmentation | None,
    stride: str | float | None,
    on_duplicate: OnDuplicate,
    workers: int | None,
) -> IndexEstimate:
    """Check the arguments, then estimate: see :meth:`Retriever.estimate`."""
    as_choice("on_duplicate", on_duplicate, OnDuplicate)
    if workers is not None:
        workers = as_whole_number("workers", workers, 1, MAX_THREADS)
    return estimate(
        gallery,
        model.encode_videos,
        reading,
        open_sources(as_paths("videos", videos)),
        choose_segmentation(gallery, reading, segment, stride),
        on_duplicate=on_duplicate,
        max_batch=model.max_batch,
        workers=workers,
        shares_cores=model.placement.device == "cpu",
        shares_frames=shares_frames(model),
    )


def choose_segmentation(
    gallery: Gallery,
    reading: VideoReading,
    segment: str | float | Segmentation | None,
    stride: str | float | None,
) -> Segmentation:
    """Return the policy by which long videos are cut: the one asked for, or the gallery's.

    A gallery without a policy gets windows of the model's span by default. Raises
    GallerySegmentationError if the gallery has another policy, InvalidArgumentError.
    """
    sampling = reading.sampling
    span_s = sampling.max_frames / sampling.frames_per_second
    wanted = Segmentation.of(segment, stride, span_s)
    if segment is None and stride is None:
        wanted = gallery.segmentation or wanted
        # Windows are moved to cuts no more, so that such a gallery takes no others.
        wanted = replace(wanted, is_snapped=False)
    gallery.check_segmentation(wanted)
    return wanted
