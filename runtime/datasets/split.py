"""One split of a dataset, before and after its files are found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class AnnotatedVideo:
    """A video as the annotations describe it, before its file is looked for."""

    id: str
    """Name that the dataset gives the video. Its file has this name, with or without an ending."""
    captions: tuple[str, ...]
    """At least one caption; none is empty, and whitespace is collapsed."""
    other_names: tuple[str, ...] = ()
    """Further names that the file may have."""
    end_s: float | None = None
    """End of the part that is read, in seconds. None takes the whole video."""
    annotated_end_s: float | None = None
    """Duration in the annotations, rounded up to whole seconds; None where they have none."""


@dataclass(frozen=True)
class SplitVideo:
    """One video of a split."""

    id: str
    """Name that the dataset gives the video."""
    path: Path
    end_s: float | None = None
    """End of the part that is read, in seconds. None takes the whole video."""


@dataclass(frozen=True, eq=False)
class Split:
    """Videos with one or several captions each.

    In training, every caption makes a pair with its video. In evaluation, each caption of a
    video is a right answer for it.
    """

    name: str
    """Dataset and split, such as ``msrvtt/test``."""
    videos: tuple[SplitVideo, ...]
    """Videos without repetition, in the order of the annotations."""
    captions: tuple[str, ...]
    """Captions in the order of ``videos``. Those of one video stand next to each other."""
    video_of_caption: npt.NDArray[np.int64]
    """Index into ``videos`` of each caption, [captions], never decreasing. Every video has one."""
    missing: tuple[str, ...] = ()
    """Ids of annotated videos without a file. They and their captions are left out."""
