"""What the annotations say of a split, before its video files are looked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video as its dataset describes it; whether it has a file is not known yet."""

    id: str
    """As the dataset names it, and what its file is called, with or without an ending."""
    captions: tuple[str, ...]
    """At least one; none empty, whitespace collapsed."""
    other_names: tuple[str, ...] = ()
    """What else its file may be called."""
    end_s: float | None = None
    """Only what is before this time is looked at, seconds; None: the whole video."""
