"""Open a dataset of moments by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import PathName, as_path, as_share, as_text
from xclip_deploy.runtime.datasets.catalogue import SPLITS
from xclip_deploy.runtime.datasets.matching import match_videos
from xclip_deploy.runtime.datasets.moments.activitynet import read_activitynet_moments
from xclip_deploy.runtime.datasets.moments.didemo import read_didemo_moments
from xclip_deploy.runtime.datasets.moments.lines import read_own_moments, read_tvr_moments
from xclip_deploy.runtime.datasets.moments.records import AnnotatedMoments, MomentSplit
from xclip_deploy.runtime.datasets.split import AnnotatedVideo, SplitName

_READERS: dict[str, Callable[[Path, SplitName], AnnotatedMoments]] = {
    "didemo": read_didemo_moments,
    "activitynet": read_activitynet_moments,
    "tvr": read_tvr_moments,
    "folder": read_own_moments,
}

MOMENT_DATASETS: tuple[str, ...] = tuple(_READERS)
"""Names that ``open_moments`` knows."""


def open_moments(
    name: str,
    split: str,
    annotations: PathName,
    videos: PathName,
    *,
    max_missing_share: float = 0.1,
) -> MomentSplit:
    """Read the moments of a split and find its videos. No video is decoded.

    Args:
        name: One of ``MOMENT_DATASETS``.
        split: One of ``SPLITS``.
        annotations: Folder that holds the annotation file, or the file itself.
        videos: Folder that holds the videos, searched at any depth.
        max_missing_share: Largest share of videos without a file, 0 to 1. They and their
            queries are left out.

    Raises:
        InvalidArgumentError: The name or split is unknown, or the share lies outside 0 to 1.
        AnnotationError: The annotation file is missing, unreadable or malformed.
        VideoNotFoundError, VideoReadError: The folder ``videos`` cannot be listed.
        AmbiguousVideoError: Several files match one video, or one file matches several.
        MissingVideosError: More videos than allowed, or all, have no file.
    """
    if as_text("dataset", name) not in _READERS:
        raise InvalidArgumentError(
            f"dataset is {name!r:.200}; expected one with moments: {', '.join(MOMENT_DATASETS)}"
        )
    if as_text("split", split) not in SPLITS:
        raise InvalidArgumentError(f"split is {split!r:.200}; expected one of {', '.join(SPLITS)}")
    share = as_share("max_missing_share", max_missing_share)
    annotation_path, folder = as_path("annotations", annotations), as_path("videos", videos)
    read = _READERS[name](annotation_path, cast("SplitName", split))
    texts: dict[str, list[str]] = {}
    for query in read.queries:
        texts.setdefault(query.video_id, []).append(query.text)
    annotated = [
        AnnotatedVideo(
            video_id,
            tuple(captions),
            other_names=tuple(prefix + video_id for prefix in read.prefixes),
        )
        for video_id, captions in texts.items()
    ]
    found = match_videos(f"{name}/{split}", annotated, folder, max_missing_share=share)
    there = {video.id for video in found.videos}
    return MomentSplit(
        name=found.name,
        dataset=name,
        videos=found.videos,
        queries=tuple(query for query in read.queries if query.video_id in there),
        missing=found.missing,
    )
