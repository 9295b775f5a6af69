"""The pictures and the sound of a search hit, taken out of the file that was indexed."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import MomentSourceError
from xclip_deploy.runtime.gallery.records import GalleryVideo, VideoFile
from xclip_deploy.runtime.gallery.thumbnails import (
    THUMBNAIL_SIDE,
    ThumbnailStore,
    thumbnail_key,
)
from xclip_deploy.runtime.media import Cut, CutMode
from xclip_deploy.runtime.moments.cutting import cut
from xclip_deploy.runtime.moments.frames import frame_at, frames_between
from xclip_deploy.runtime.presentation import listed


@dataclass(frozen=True)
class HitMedia:
    """The files of a hit's video, as they were when they were indexed.

    A file that is gone or has changed since is never read: MomentSourceError says so.
    """

    video_id: str
    files: tuple[VideoFile, ...]
    content_sha256: str | None
    thumbnails: Path | None
    """Folder of the gallery's thumbnails; None for a gallery in memory."""

    @classmethod
    def of(cls, video: GalleryVideo, thumbnails: Path | None) -> HitMedia:
        """Return the media of a row of a gallery."""
        return cls(video.id, video.files, video.content_sha256, thumbnails)

    def thumbnail(self, start_s: float, time_s: float) -> NDArray[np.uint8]:
        """Return the segment's stored thumbnail, or else the frame at ``time_s``, made small.

        Returns uint8 RGB ``[height, width, 3]``. Raises VideoError.
        """
        if self.thumbnails is not None and self.content_sha256 is not None:
            store = ThumbnailStore(self.thumbnails)
            stored = store.read(thumbnail_key(self.content_sha256, start_s))
            if stored is not None:
                return stored
        file = self._file()
        return frame_at(file.path, time_s, max_side=THUMBNAIL_SIDE, expected=file)

    def frames(
        self, start_s: float, end_s: float, max_frames: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Return frames uint8 ``[n, height, width, 3]`` and their times. Raises VideoError."""
        file = self._file()
        return frames_between(file.path, start_s, end_s, max_frames=max_frames, expected=file)

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
        """Write a part of the video to a file; see :func:`cut`. Raises VideoError."""
        file = self._file()
        return cut(
            file.path,
            start_s,
            end_s,
            out,
            mode=mode,
            pad_s=pad_s,
            expected=file,
            overwrite=overwrite,
        )

    def _file(self) -> VideoFile:
        """Return the first file that is there. Raises MomentSourceError if none is."""
        if not self.files:
            raise MomentSourceError(
                f"video {self.video_id!r:.200} was added without a file, so it has no pictures; "
                "expected a video that was indexed from a file"
            )
        there = (file for file in self.files if Path(file.path).is_file())
        found = next(there, None)
        if found is None:
            paths = listed([file.path for file in self.files])
            raise MomentSourceError(
                f"the file of video {self.video_id!r:.200} is gone ({paths}); put it back, or run: "
                "xclip-deploy index VIDEOS --gallery GALLERY --prune"
            )
        return found
