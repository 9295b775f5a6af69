"""Open the videos and texts of a verification: the user's, or a small built-in set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError, VideoNotFoundError
from xclip_deploy.export.reference_inputs import drawn_videos
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.datasets import Split
from xclip_deploy.runtime.evaluation import FramesOrError, read_split
from xclip_deploy.runtime.files import require_regular_file
from xclip_deploy.runtime.video import VideoReader, find_videos, read_videos

_NUM_DRAWN_VIDEOS = 12
_SUBJECTS = ("a man in a red jacket", "two dogs", "a woman", "the crowd", "a small blue robot")
_ACTIONS = (
    "rides a bicycle down a steep mountain road",
    "runs after a ball",
    "cuts an onion into small pieces, heats oil in a pan, adds the onion with salt and pepper, "
    "stirs until it is golden, pours in the beaten eggs and serves it on a white plate",
    "dances",
)
BUILT_IN_TEXTS = (
    *(f"{subject} {action}" for subject in _SUBJECTS for action in _ACTIONS),
    "cooking",
    "Ünïcödé, 東京 & emoji 🐕",
    "!",
    "",
)
"""Texts from no words to more than a model takes."""


@dataclass(frozen=True)
class Inputs:
    """Videos and texts, before any is read."""

    source: str
    """Name for people."""
    texts: Sequence[str]
    video_ids: Sequence[str]
    frames: Iterable[FramesOrError] = field(repr=False)
    """Frames or errors in the order of ``video_ids``; iterable once."""
    video_of_text: npt.NDArray[np.int64] | None = None
    """Index into ``video_ids`` for each text [texts]; None where texts belong to no video."""
    synthetic_videos: bool = False
    built_in_texts: bool = False
    missing: Sequence[str] = ()


def open_inputs(
    bundle: Bundle,
    *,
    split: Split | None,
    videos: str | PathLike[str] | None,
    texts: Sequence[str] | None,
    reader: VideoReader,
    workers: int | None,
) -> Inputs:
    """Choose videos and texts, and begin to read them, ``workers`` videos at the same time.

    Raises InvalidArgumentError, VideoNotFoundError where a folder holds no video, and the errors of
    ``find_videos``.
    """
    manifest = bundle.manifest
    reading = manifest.video_reading(reader)
    if texts is not None and not texts:
        raise InvalidArgumentError("texts is empty; expected at least one, or None")
    if split is not None:
        if videos is not None or texts is not None:
            raise InvalidArgumentError(
                "a split has videos and captions of its own; expected no other videos or texts"
            )
        if not split.videos or not split.captions:
            raise InvalidArgumentError(f"{split.name}: holds no videos with captions")
        return Inputs(
            source=split.name,
            texts=split.captions,
            video_ids=[video.id for video in split.videos],
            frames=read_split(split.videos, reading, threads=workers),
            video_of_text=split.video_of_caption,
            missing=split.missing,
        )
    shown = BUILT_IN_TEXTS if texts is None else tuple(texts)
    if videos is None:
        drawn = drawn_videos(_NUM_DRAWN_VIDEOS, reading.sampling.max_frames, reading.image_size)
        return Inputs(
            source="built-in",
            texts=shown,
            video_ids=[f"drawn-{n + 1}" for n in range(len(drawn))],
            frames=drawn,
            synthetic_videos=True,
            built_in_texts=texts is None,
        )
    paths = find_videos([videos])
    if not paths:
        raise VideoNotFoundError(f"{videos}: holds no video; expected at least one")
    outcomes = read_videos(paths, reading, num_threads=workers)
    return Inputs(
        source=str(videos),
        texts=shown,
        video_ids=[str(path) for path in paths],
        frames=(outcome for _, outcome in outcomes),
        built_in_texts=texts is None,
    )


def read_texts(path: str | PathLike[str]) -> list[str]:
    """Read texts from a UTF-8 file, one a line. Empty lines are skipped.

    Raises InvalidArgumentError where there are none or the file cannot be read.
    """
    try:
        require_regular_file(Path(path), "texts, one a line")
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"{path}: is not UTF-8 text; expected one text a line"
        ) from error
    except OSError as error:
        raise InvalidArgumentError(f"{path}: cannot be read ({error.strerror})") from error
    texts = [text for line in lines if (text := " ".join(line.split()))]
    if not texts:
        raise InvalidArgumentError(f"{path}: holds no text; expected at least one, one a line")
    return texts
