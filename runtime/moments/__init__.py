"""Moments of a video, taken out of it: as a file, as frames, as thumbnails and as a picture.

Importing this package loads no video library.
"""

from __future__ import annotations

from xclip_deploy.runtime.media import Cut, CutMode
from xclip_deploy.runtime.moments.cutting import cut
from xclip_deploy.runtime.moments.frames import frame_at, frames_between
from xclip_deploy.runtime.moments.grid import GridCell, plot_results

__all__ = [
    "Cut",
    "CutMode",
    "GridCell",
    "cut",
    "frame_at",
    "frames_between",
    "plot_results",
]
