"""Index videos whose frames are in memory: no file, no decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import as_choice, as_texts
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, MetadataValue
from xclip_deploy.runtime.gallery.records import check_metadata
from xclip_deploy.runtime.indexing.records import OnDuplicate
from xclip_deploy.runtime.indexing.report import IndexReport
from xclip_deploy.runtime.video import VideoReading, as_videos, take_frames


def index_frames(
    gallery: Gallery,
    encode: Callable[[Sequence[NDArray[np.uint8]]], VideoFeatures],
    reading: VideoReading,
    videos: object,
    ids: str | Sequence[str] | None,
    metadata: Mapping[str, MetadataValue] | None,
    on_duplicate: OnDuplicate,
) -> IndexReport:
    """Encode and add videos in memory, all or none.

    ``videos``: one or several, as ``take_frames`` takes them. ``ids``: one for each.
    ``metadata``: the same for all. For an id that the gallery has, ``skip`` leaves the video and
    ``error`` raises. ``update`` and ``replace`` both replace it, as changes of frames in memory
    cannot be detected. Raises InvalidArgumentError, DuplicateIdError, MetadataError, GalleryError.
    """
    started_s = time.monotonic()
    as_choice("on_duplicate", on_duplicate, OnDuplicate)
    given = as_videos(videos)
    if ids is None:
        raise InvalidArgumentError("frames in memory have no name; give ids, one for each video")
    names = [ids] if isinstance(ids, str) else as_texts("ids", ids)
    if len(names) != len(given):
        raise InvalidArgumentError(f"found {len(names)} ids for {len(given)} videos")
    if not all(names) or len(set(names)) != len(names):
        raise InvalidArgumentError(f"ids {names}: expected texts that are unique and not empty")
    if metadata is not None:
        check_metadata(metadata)
    if on_duplicate == "error":
        gallery.check_new(names)
    there = set(gallery.snapshot().find(names))
    wanted = [
        (name, take_frames(video, reading))
        for name, video in zip(names, given, strict=True)
        if not (on_duplicate == "skip" and name in there)
    ]
    if wanted:
        records = [
            GalleryVideo(
                id=name,
                duration_s=frames.duration_s,
                frame_times_s=tuple(float(time_s) for time_s in frames.times_s),
                metadata=metadata or {},
            )
            for name, frames in wanted
        ]
        gallery.add(records, encode([each.frames for _, each in wanted]), replace=True)
    added = [name for name, _ in wanted]
    return IndexReport(
        indexed=tuple(name for name in added if name not in there),
        changed=tuple(name for name in added if name in there),
        unchanged=tuple(name for name in names if name not in added),
        seconds=time.monotonic() - started_s,
    )
