"""Reading frames with decord: optional, for results that must match older ones made with it.

decord has had no release since 2021. These facts were measured with version 0.6.0, the last:

- It has no wheels for arm64 or macOS, and it does not decode AV1.
- It hangs on ``.ts`` files, and nothing can interrupt it. For ``.wmv`` it silently returns
  frames up to 24 off. This module refuses both kinds, under any file name.
- For cuts that were copied without re-encoding (an edit list that starts between two
  keyframes), it silently returns frames up to 18 off.
- It goes on decoding in the background: after one frame of 1080p, 118 MB grew to 5.2 GB
  within 12 idle seconds. Here a reader lives only while one video is read.
- It fails on very small frames, such as 16x16.
- It reports no damage, so ``VideoFrames.warnings`` tells of none behind the first frame.
- It reads HDR, mirrors, crops, transparency and edit lists that end early wrongly, and takes a
  variable rate for a constant one. PyAV looks at the file first, so ``VideoFrames.warnings``
  tells of these.

PyAV, the default, has none of these faults.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from xclip_deploy.errors import MissingExtraError, VideoReadError
from xclip_deploy.runtime.video.colour import needs_conversion, opacity_of
from xclip_deploy.runtime.video.containers import check_container, container_of, read_head
from xclip_deploy.runtime.video.frames import VideoFrames, VideoReading
from xclip_deploy.runtime.video.matroska import NO_CROP
from xclip_deploy.runtime.video.orientation import UPRIGHT, orientation_of
from xclip_deploy.runtime.video.packet_index import index_packets
from xclip_deploy.runtime.video.preprocessing import resize_and_crop
from xclip_deploy.runtime.video.pyav_container import open_video
from xclip_deploy.runtime.video.pyav_reader import decode_all
from xclip_deploy.runtime.video.sampling import has_constant_rate, sample_frame_numbers
from xclip_deploy.runtime.video.taken_frames import TakenFrames

_TRANSPORT_SUFFIXES = frozenset({".ts", ".mts", ".m2ts", ".m2t"})
_WINDOWS_MEDIA_SUFFIXES = frozenset({".wmv", ".asf"})


def import_decord() -> Any:  # noqa: ANN401 - the package has no types
    """Import decord and turn its log off.

    Raises:
        MissingExtraError: decord is not installed.
    """
    try:
        decord = importlib.import_module("decord")
    except ImportError as error:
        raise MissingExtraError("decord", "decord", "Reading video with decord") from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def read_with_decord(path: Path, reading: VideoReading) -> VideoFrames:
    """Read the sampled frames of one video with one decoder thread.

    Time 0 is the first frame, because decord does not tell when other streams start.

    Args:
        path: A regular file that exists.
        reading: Which frames to take, and their side S.

    Returns:
        Frames uint8 ``[n, S, S, 3]`` with their times.

    Raises:
        VideoReadError: the file is no video, is of a kind that decord reads wrongly, or holds
            no frame that can be decoded.
        MissingExtraError: decord is not installed.
    """
    _refuse_hazards(path)
    check_container(path, must_be_known=True)
    decord = import_decord()
    pixel_aspect, warnings = _look(path, reading)
    try:
        video = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        frame_rate = float(video.get_avg_fps())
        numbers = sample_frame_numbers(len(video), frame_rate, reading.sampling)
        # One by one, because 64 frames of 1080p at full resolution take 400 MB.
        size = reading.image_size
        frames = [resize_and_crop(video[int(n)].asnumpy(), size, pixel_aspect) for n in numbers]
        spans = video.get_frame_timestamp(np.append([0, len(video) - 1], numbers))  # [2 + n, 2]
    except (decord.DECORDError, RuntimeError, IndexError, ValueError) as error:
        # The first line alone; the others are addresses inside the library.
        reason = str(error).strip().partition("\n")[0]
        raise VideoReadError(f"{path}: decord cannot read it: {reason}") from error
    start_s = float(spans[0, 0])
    return VideoFrames(
        frames=np.stack(frames),
        times_s=spans[2:, 0].astype(np.float64) - start_s,
        frame_numbers=numbers,
        duration_s=float(spans[1, 1]) - start_s,
        frame_rate=frame_rate,
        warnings=tuple(warnings),
    )


def _look(path: Path, reading: VideoReading) -> tuple[Fraction, list[str]]:
    """Look with PyAV at what decord does not know.

    Returns the width of a shown pixel over its height, and warnings of what decord reads wrongly.
    Raises VideoReadError for what PyAV refuses to open: decord keeps neither to the list of
    formats nor to the limit of pixels.
    """
    import av

    container, stream = open_video(path)
    with container:
        index = index_packets(container, stream)
        times_s = np.asarray(index.timestamps * index.time_base, np.float64)
    frames = TakenFrames(path, reading, index)
    container, stream = open_video(path)
    is_hdr, is_transparent, orientation = False, False, UPRIGHT
    with container:
        frame = next(decode_all(container, stream, frames), None)
        if frame is not None:
            is_hdr, orientation = needs_conversion(frame), orientation_of(frame)
            with suppress(av.FFmpegError, ValueError):  # decord may convert what PyAV cannot
                is_transparent = opacity_of(frame, index.codec) is not None
    is_variable = index.is_reliable and not has_constant_rate(times_s, index.frame_rate or 0.0)
    found = {
        "HDR or wide gamuts": is_hdr,
        "transparency": is_transparent,
        "mirrors and odd angles": orientation.is_mirror or orientation.is_odd,
        "crops": index.crop != NO_CROP,
        "edit lists": index.hidden_count > 0,
        "variable frame rates": is_variable,
        "packed B-frames": index.is_in_decoding_order,
    }
    wrong = [what for what, is_there in found.items() if is_there]
    warnings = list(frames.warnings())
    if wrong:
        warnings.append(f"decord does not know {' and '.join(wrong)}; use reader='pyav'")
    aspect = 1 / frames.pixel_aspect if orientation.is_transposed else frames.pixel_aspect
    return aspect, warnings


def _refuse_hazards(path: Path) -> None:
    container = container_of(read_head(path))
    suffix = path.suffix.lower()
    if container == "mpegts" or suffix in _TRANSPORT_SUFFIXES:
        raise VideoReadError(
            f"{path}: is an MPEG transport stream, on which decord hangs; use reader='pyav'"
        )
    if container == "asf" or suffix in _WINDOWS_MEDIA_SUFFIXES:
        raise VideoReadError(
            f"{path}: is Windows Media, of which decord returns wrong frames; use reader='pyav'"
        )
