"""Open a dataset by its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast, get_args

from xclip_deploy.errors import AnnotationError, InvalidArgumentError
from xclip_deploy.runtime.arguments import as_path, as_share, as_text, as_truth
from xclip_deploy.runtime.datasets.activitynet import read_activitynet
from xclip_deploy.runtime.datasets.captions import enumerate_ids
from xclip_deploy.runtime.datasets.didemo import read_didemo
from xclip_deploy.runtime.datasets.folder import read_folder
from xclip_deploy.runtime.datasets.lsmdc import read_lsmdc
from xclip_deploy.runtime.datasets.matching import match_videos
from xclip_deploy.runtime.datasets.msrvtt import TRAIN_7K, TRAIN_9K, read_msrvtt
from xclip_deploy.runtime.datasets.msvd import read_msvd
from xclip_deploy.runtime.datasets.split import AnnotatedVideo, Split, SplitName

_READERS: dict[str, Callable[[Path, SplitName], list[AnnotatedVideo]]] = {
    "msrvtt": read_msrvtt,
    "msrvtt-9k": partial(read_msrvtt, train_lists=(TRAIN_9K,)),
    "msrvtt-7k": partial(read_msrvtt, train_lists=(TRAIN_7K,)),
    "msvd": read_msvd,
    "lsmdc": read_lsmdc,
    "didemo": read_didemo,
    "activitynet": read_activitynet,
    "folder": read_folder,
}

DATASETS: tuple[str, ...] = tuple(_READERS)
"""Names that ``open_dataset`` knows. ``msrvtt`` trains on the list of 9000 videos where it
exists, else on that of 7000. ``msrvtt-9k`` and ``msrvtt-7k`` fix the list."""

SPLITS: tuple[str, ...] = get_args(SplitName)
"""Names of splits. MSR-VTT and ActivityNet are validated on what they are tested on."""


def open_dataset(
    name: str,
    split: str,
    annotations: str | os.PathLike[str],
    videos: str | os.PathLike[str],
    *,
    max_missing_share: float = 0.1,
    cut_at_annotated_end: bool = False,
) -> Split:
    """Read a split's annotations and find its videos.

    The annotation files have their published names, which ``read_…`` in the module of each
    dataset describes. All text is UTF-8. Videos are found by the names in the annotations, at
    any depth, with or without the file's ending. No video is decoded.

    Args:
        name: One of ``DATASETS``.
        split: One of ``SPLITS``.
        annotations: Folder that holds the annotation files. For ``folder``, the CSV or JSONL
            file itself is accepted too.
        videos: Folder that holds the videos.
        max_missing_share: Largest share of annotated videos that may have no file, 0 to 1.
            ``Split.missing`` names those left out.
        cut_at_annotated_end: Read videos up to the duration in the annotations, rounded up to
            whole seconds, as the authors do with ActivityNet. Other datasets have none, and are
            read as without.

    Raises:
        InvalidArgumentError: The name or split is unknown, or the share lies outside 0 to 1.
        AnnotationError: An annotation file is missing, unreadable or malformed.
        VideoNotFoundError: The folder ``videos`` does not exist.
        VideoReadError: A folder of videos cannot be listed.
        AmbiguousVideoError: Several files match one video, or one file matches several.
        MissingVideosError: More videos than allowed, or all, have no file.
    """
    if as_text("dataset", name) not in _READERS:
        raise InvalidArgumentError(
            f"dataset is {name!r:.200}; expected one of {', '.join(DATASETS)}"
        )
    if as_text("split", split) not in SPLITS:
        raise InvalidArgumentError(f"split is {split!r:.200}; expected one of {', '.join(SPLITS)}")
    share = as_share("max_missing_share", max_missing_share)
    annotation_path, folder = as_path("annotations", annotations), as_path("videos", videos)
    annotated = _READERS[name](annotation_path, cast("SplitName", split))
    if as_truth("cut_at_annotated_end", cut_at_annotated_end) and name == "activitynet":
        unknown = [video.id for video in annotated if video.annotated_end_s is None]
        if unknown:
            raise AnnotationError(
                f"{annotation_path}: {len(unknown)} videos have no duration "
                f"({enumerate_ids(unknown)}); expected one each, to cut at"
            )
        annotated = [replace(video, end_s=video.annotated_end_s) for video in annotated]
    return match_videos(f"{name}/{split}", annotated, folder, max_missing_share=share)
