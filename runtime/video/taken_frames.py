"""Turn PyAV's frames into pictures for the model."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import VideoReadError
from xclip_deploy.runtime.video.colour import opacity_of, over_black, to_rgb
from xclip_deploy.runtime.video.containers import check_pixels
from xclip_deploy.runtime.video.frames import VideoReading
from xclip_deploy.runtime.video.orientation import orientation_of
from xclip_deploy.runtime.video.packet_index import PacketIndex
from xclip_deploy.runtime.video.preprocessing import resize_and_crop

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_SQUARE_ENOUGH = 0.01
"""Pixel aspects this close to 1 come from rounding sizes and raise no warning."""


class TakenFrames:
    """Pictures taken from one video so far, with counts of what went wrong."""

    def __init__(self, path: Path, reading: VideoReading, index: PacketIndex) -> None:
        """Start without pictures.

        ``reading`` says how large pictures are and whether the pixel aspect of ``index`` counts.
        """
        pixel_aspect = index.pixel_aspect
        self.crop = index.crop
        self.codec = index.codec
        self.path = path
        self.image_size = reading.image_size
        self.pixel_aspect = pixel_aspect if reading.square_pixels else Fraction(1)
        self.pictures: dict[int, NDArray[np.uint8]] = {}  # [S, S, 3] by timestamp or position
        self.sizes: set[tuple[int, int]] = set()
        self.corrupt_count = 0
        self.error_count = 0
        self.last_error = ""
        self.is_in_order = True
        self._notes: dict[str, None] = {}  # in order, without repetition
        for warning in index.unread:
            self._note(warning)
        if abs(pixel_aspect - 1) > _SQUARE_ENOUGH and not reading.square_pixels:
            self._note(
                f"anamorphic: pixels are {pixel_aspect.numerator}:{pixel_aspect.denominator} and "
                "count as square; a bundle exported with --square-pixels shows them as players do"
            )

    @property
    def is_sound(self) -> bool:
        """True while nothing has gone wrong."""
        return self.is_in_order and not (self.corrupt_count or self.error_count)

    def take(self, key: int, frame: VideoFrame) -> None:
        """Keep a frame, upright, resized and cropped.

        Args:
            key: Timestamp or position under which ``pictures`` holds the frame.
            frame: Output of the decoder.

        Raises:
            VideoReadError: the frame is too large, or its format cannot be converted to RGB.
        """
        import av

        check_pixels(self.path, frame.width, frame.height)
        try:
            rgb, colour_warning = to_rgb(frame)
            pixels = rgb.to_ndarray().astype(np.uint8, copy=False)
            opacity = opacity_of(frame, self.codec)
        except (av.FFmpegError, ValueError) as error:
            raise VideoReadError(
                f"{self.path}: cannot convert pixel format {frame.format.name} to RGB: {error}"
            ) from error
        if opacity is not None:
            pixels = over_black(pixels, opacity)
        orientation = orientation_of(frame)
        upright = orientation.apply(self.crop.apply(pixels))
        aspect = 1 / self.pixel_aspect if orientation.is_transposed else self.pixel_aspect
        self.pictures[key] = resize_and_crop(upright, self.image_size, aspect)
        if colour_warning:
            self._note(colour_warning)
        if orientation.is_odd:
            self._note(
                f"the display matrix ({orientation}) is no quarter turn or mirror; it is rounded"
            )
        self.sizes.add((frame.width, frame.height))
        self.corrupt_count += frame.is_corrupt

    def _note(self, warning: str) -> None:
        self._notes[warning] = None

    def note_error(self, error: Exception) -> None:
        """Count something that FFmpeg could not read or decode."""
        self.error_count += 1
        self.last_error = getattr(error, "strerror", None) or str(error)

    def warnings(self) -> Iterator[str]:
        """Say what went wrong, one line each."""
        if self.error_count:
            yield f"packets that could not be decoded: {self.error_count} ({self.last_error})"
        if self.corrupt_count:
            yield f"frames taken that are damaged and were concealed: {self.corrupt_count}"
        if len(self.sizes) > 1:
            sizes = ", ".join(f"{width}x{height}" for width, height in sorted(self.sizes))
            yield f"the resolution changes ({sizes})"
        yield from self._notes
