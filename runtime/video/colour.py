"""Convert decoded frames to RGB, HDR and wide gamuts to BT.709, and lay them over black.

swscale of PyAV 18 and later converts transfer and primaries. The first frame of a size costs it
2.6 s of CPU time, which goes into a table of colours; each further frame of 1080p costs 0.08 s.
Reformatters are therefore kept and used again.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

# Code points of ITU-T H.273.
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
_WIDE_PRIMARIES = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_UNKNOWN_MATRICES = {14: "ICtCp", 15: "IPT"}
_KEPT_REFORMATTERS = 8

_kept = threading.local()


def to_rgb(frame: VideoFrame) -> tuple[VideoFrame, str | None]:
    """Convert a frame to RGB, 8 bits.

    PQ, HLG, BT.2020 and P3 are mapped to BT.709. Other frames keep transfer and primaries.

    Returns:
        The frame, and a warning if its colours are wrong because they cannot be converted.

    Raises:
        av.FFmpegError, ValueError: the pixel format cannot be converted.
    """
    if not (kinds := _kinds(frame)):
        # threads=1, because the pool over videos already keeps the cores busy.
        return frame.reformat(format="rgb24", interpolation="BICUBIC", threads=1), None
    import av
    from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

    what = " ".join(kinds)
    if int(av.__version__.partition(".")[0]) < 18:
        rgb = frame.reformat(format="rgb24", interpolation="BICUBIC", threads=1)
        return rgb, (
            f"{what} is not converted to BT.709, so colours are wrong: PyAV {av.__version__} "
            "cannot; install PyAV 18 or later"
        )
    rgb = _reformatter(frame).reformat(
        frame,
        format="rgb24",
        interpolation="BICUBIC",
        threads=1,
        dst_colorspace=Colorspace.ITU709,
        dst_color_trc=ColorTrc.BT709,
        dst_color_primaries=ColorPrimaries.BT709,
    )
    is_known = frame.colorspace not in _UNKNOWN_MATRICES
    return rgb, None if is_known else f"FFmpeg cannot convert {what}, so colours are wrong"


def opacity_of(frame: VideoFrame, codec: str) -> NDArray[np.uint8] | None:
    """Return how opaque each pixel is, ``[H, W]``; None for a frame that is opaque throughout.

    Args:
        frame: Output of the decoder.
        codec: Name of the decoder.

    Raises:
        av.FFmpegError, ValueError: the pixel format cannot be converted.
    """
    has_palette = frame.format.name == "pal8"
    if not has_palette and not any(part.is_alpha for part in frame.format.components):
        return None
    rgba = frame.reformat(format="rgba", interpolation="BICUBIC", threads=1)
    opacity = rgba.to_ndarray()[..., 3].astype(np.uint8, copy=False)
    # Uncompressed AVI of 32 bits a pixel leaves the fourth byte unused, and mostly 0.
    is_unused = (has_palette or codec == "rawvideo") and not opacity.any()
    return None if is_unused or bool((opacity == 255).all()) else opacity


def over_black(picture: NDArray[np.uint8], opacity: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay a picture ``[H, W, 3]`` over black, rounded as Pillow rounds images."""
    products = picture.astype(np.uint16) * opacity[..., np.newaxis] + np.uint16(128)
    laid: NDArray[np.uint8] = ((products + (products >> 8)) >> 8).astype(np.uint8)
    return laid


def needs_conversion(frame: VideoFrame) -> bool:
    """Return whether a frame is HDR or of a wide gamut."""
    return bool(_kinds(frame))


def _kinds(frame: VideoFrame) -> list[str]:
    codes = (
        (_HDR_TRANSFERS, frame.color_trc),
        (_WIDE_PRIMARIES, frame.color_primaries),
        (_UNKNOWN_MATRICES, frame.colorspace),
    )
    return [names[code] for names, code in codes if code in names]


def _reformatter(frame: VideoFrame) -> VideoReformatter:
    """Return this thread's reformatter for frames like this one."""
    from av.video.reformatter import VideoReformatter

    reformatters: dict[object, VideoReformatter] | None = getattr(_kept, "reformatters", None)
    if reformatters is None:
        reformatters = _kept.reformatters = {}
    key = (frame.width, frame.height, frame.format.name, frame.color_trc, frame.color_primaries)
    found = reformatters.pop(key, None) or VideoReformatter()
    reformatters[key] = found  # the one used last stands last
    if len(reformatters) > _KEPT_REFORMATTERS:
        del reformatters[next(iter(reformatters))]
    return found
