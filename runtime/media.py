"""What a search hit can give of its video: pictures, frames, and a file that is cut out."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.runtime.presentation import time_text

CutMode = Literal["exact", "copy"]
"""How seconds are cut out: encoded anew, or copied from the key frame before."""
CutQuality = Literal["full", "playback"]
"""Purpose of seconds that are encoded anew: ``full`` to keep them, ``playback`` to play them."""


@dataclass(frozen=True)
class Cut:
    """A file that holds some seconds of a video."""

    path: Path
    """File that was written."""
    start_s: float
    """Where it begins, seconds in the video. A copy begins at the key frame before."""
    end_s: float
    """Where it ends, seconds in the video."""
    has_sound: bool
    """Whether it has sound."""
    mode: CutMode
    """How it was cut."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the video or differs from it, one line each."""

    def __str__(self) -> str:
        start, end = time_text(self.start_s, 1), time_text(self.end_s, 1)
        sound = "with sound" if self.has_sound else "without sound"
        return f"{self.path}: {start} to {end} ({self.mode}, {sound})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "path": str(self.path),
            "start_s": self.start_s,
            "end_s": self.end_s,
            "has_sound": self.has_sound,
            "mode": self.mode,
            "warnings": list(self.warnings),
        }


class Media(Protocol):
    """The file of a hit, as :class:`SearchResult` reads and cuts it."""

    def thumbnail(self, start_s: float, time_s: float) -> NDArray[np.uint8]:
        """Return the thumbnail of the segment at ``start_s``, or the frame at ``time_s``."""
        ...

    def frames(
        self, start_s: float, end_s: float, max_frames: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Return frames and their times."""
        ...

    def cut(
        self,
        start_s: float,
        end_s: float,
        out: str | PathLike[str],
        mode: CutMode,
        pad_s: float,
        *,
        overwrite: bool,
    ) -> Cut:
        """Write a part of the video to a file."""
        ...
