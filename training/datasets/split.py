"""One split of a dataset: videos, captions, and which belongs to which."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SplitVideo:
    """One video of a split."""

    id: str
    """As the dataset names it."""
    path: Path
    end_s: float | None = None
    """Only what is before this time is looked at, seconds; None: the whole video."""


@dataclass(frozen=True, eq=False)
class Split:
    """Videos with one or several captions each.

    In training every caption makes a pair with its video; in evaluation all captions of a
    video are right for it.
    """

    name: str
    """Dataset and split, for people: ``msrvtt/test``."""
    videos: tuple[SplitVideo, ...]
    """Without repetition, in the order of the annotations."""
    captions: tuple[str, ...]
    """Those of one video next to each other, videos in the order of ``videos``."""
    video_of_caption: npt.NDArray[np.int64]
    """[captions]: index into ``videos``, never decreasing; every video has at least one."""
    missing: tuple[str, ...] = ()
    """Ids of annotated videos without a file; they and their captions are left out."""
