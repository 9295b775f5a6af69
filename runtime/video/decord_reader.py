"""Reading frames with decord: optional, for those whose numbers were made with it.

decord has had no release since 2021. Measured with version 0.6.0, the last one:

- no wheels for arm64 or macOS, and no AV1;
- ``.ts`` files make it hang in a way that nothing can interrupt, and for ``.wmv`` it
  returns frames up to 24 off without saying so: both are refused here, also under another
  name;
- for cuts that were copied without encoding anew (an edit list that starts between two
  keyframes), it silently returns frames up to 18 off;
- it goes on decoding in the background: after one frame of 1080p, 118 MB grew to 5.2 GB
  within 12 idle seconds. Here a reader lives only while one video is read;
- it fails on very small frames, such as 16x16;
- it tells of no damage, so that ``VideoFrames.warnings`` stays empty.

PyAV, the default, has none of these.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from xclip_deploy.errors import MissingExtraError, VideoReadError
from xclip_deploy.runtime.video.containers import check_container
from xclip_deploy.runtime.video.frames import VideoFrames, VideoReading
from xclip_deploy.runtime.video.preprocessing import resize_and_crop
from xclip_deploy.runtime.video.sampling import sample_frame_numbers

_ASF_SIGNATURE = bytes.fromhex("3026b2758e66cf11")
_TRANSPORT_SUFFIXES = frozenset({".ts", ".mts", ".m2ts", ".m2t"})
_WINDOWS_MEDIA_SUFFIXES = frozenset({".wmv", ".asf"})


def import_decord() -> Any:  # noqa: ANN401 - the package has no types
    """Import decord, with its log turned off.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        decord = importlib.import_module("decord")
    except ImportError as error:
        raise MissingExtraError("decord", "decord", "Reading video with decord") from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def read_with_decord(path: Path, reading: VideoReading) -> VideoFrames:
    """Read the sampled frames of one video with one decoder thread.

    Time 0 is the first frame, since decord does not know when other streams start.

    Args:
        path: A regular file that exists.
        reading: Which frames to take, and their side S.

    Returns:
        Frames uint8 ``[n, S, S, 3]`` and what is known about them.

    Raises:
        VideoReadError: no video, a kind that decord reads wrongly, or no frame of it can be
            decoded.
        MissingExtraError: decord is not installed.
    """
    _refuse_hazards(path)
    check_container(path, must_be_known=True)
    decord = import_decord()
    try:
        video = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        frame_rate = float(video.get_avg_fps())
        numbers = sample_frame_numbers(len(video), frame_rate, reading.sampling)
        # One by one: at full resolution, 64 frames of 1080p are 400 MB.
        size = reading.image_size
        frames = [resize_and_crop(video[int(n)].asnumpy(), size) for n in numbers]
        spans = video.get_frame_timestamp(np.append([0, len(video) - 1], numbers))  # [2 + n, 2]
    except (decord.DECORDError, RuntimeError, IndexError, ValueError) as error:
        # The first line; the others are addresses inside the library.
        reason = str(error).strip().partition("\n")[0]
        raise VideoReadError(f"{path}: decord cannot read it: {reason}") from error
    start_s = float(spans[0, 0])
    return VideoFrames(
        frames=np.stack(frames),
        times_s=spans[2:, 0].astype(np.float64) - start_s,
        frame_numbers=numbers,
        duration_s=float(spans[1, 1]) - start_s,
        frame_rate=frame_rate,
    )


def _refuse_hazards(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(4 + 3 * 192)
    suffix = path.suffix.lower()
    # MPEG-TS packets start with 0x47 and are 188 bytes long, or 192 with a 4-byte prefix.
    is_transport = any(
        head[first : first + 3 * size : size] == b"GGG" for first, size in ((0, 188), (4, 192))
    )
    if is_transport or suffix in _TRANSPORT_SUFFIXES:
        raise VideoReadError(
            f"{path}: is an MPEG transport stream, on which decord hangs; use reader='pyav'"
        )
    if head.startswith(_ASF_SIGNATURE) or suffix in _WINDOWS_MEDIA_SUFFIXES:
        raise VideoReadError(
            f"{path}: is Windows Media, of which decord returns wrong frames; use reader='pyav'"
        )
