"""Cut some seconds out of a video, into a file of their own."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xclip_deploy.errors import InvalidArgumentError, VideoReadError
from xclip_deploy.runtime.arguments import PathName, as_choice, as_number, as_path, as_truth
from xclip_deploy.runtime.files import replaced_file
from xclip_deploy.runtime.media import Cut, CutMode, CutQuality
from xclip_deploy.runtime.moments.containers import ENCODERS, Encoder, OutputFormat, format_of
from xclip_deploy.runtime.moments.copying import copy
from xclip_deploy.runtime.moments.encoding import encode
from xclip_deploy.runtime.moments.source import STEPS_BACK, MomentSource, UnsoundError

if TYPE_CHECKING:
    from xclip_deploy.runtime.gallery.records import VideoFile


def cut(
    path: PathName,
    start_s: float,
    end_s: float,
    out: PathName,
    *,
    mode: CutMode = "exact",
    pad_s: float = 0.0,
    quality: CutQuality = "full",
    expected: VideoFile | None = None,
    overwrite: bool = False,
) -> Cut:
    """Write the seconds of a video from ``start_s`` to ``end_s`` to a file of their own.

    ``exact`` encodes them anew, right to one frame: H.264 and AAC, in ``.webm`` VP9 and Opus.
    ``copy`` keeps the streams as they are, which is fast and loses nothing. It begins at the key
    frame at or before the start and ends with the frames that others need, so look at the result.

    Args:
        path: A video file.
        start_s: Start, seconds in the video.
        end_s: End, seconds in the video.
        out: File to write. Its ending chooses the container; it stays untouched on any error.
        mode: ``exact`` or ``copy``.
        pad_s: Seconds to add at both ends, as far as the video goes.
        quality: ``full`` keeps size and detail. ``playback`` is made for playing at once: it is
            encoded faster, with square pixels, sides of 1,280 pixels at most and a key frame
            every second.
        expected: State of the file when it was indexed.
        overwrite: Replace a file at ``out``.

    Returns:
        What was written: its actual start and end, and warnings.

    Raises:
        InvalidArgumentError: ``mode`` is ``copy`` and ``quality`` is not ``full``; the range is
            empty, reversed or outside the video; ``out`` exists,
            is the video, has an unknown ending or cannot be written; the container does not take
            the copied streams.
        MomentSourceError: the file is gone, or changed since it was indexed or meanwhile.
        VideoNotFoundError, VideoReadError: the video cannot be read.
    """
    as_choice("mode", mode, CutMode)
    as_choice("quality", quality, CutQuality)
    as_truth("overwrite", overwrite)
    if mode == "copy" and quality != "full":
        raise InvalidArgumentError(
            f"quality is {quality!r} and mode 'copy'; expected 'full', as a copy stays as it is"
        )
    pad = as_number("pad_s", pad_s, 0)
    video, target = as_path("path", path), as_path("out", out)
    form = format_of(target)
    _check_target(video, target, overwrite=overwrite)
    source = MomentSource(video, expected)
    start, end = source.clipped(start_s, end_s, pad)
    try:
        with replaced_file(target) as partial:
            start, end, has_sound = _write(
                source, start, end, partial, form, mode, ENCODERS[quality, form.video_codec]
            )
            source.note_gaps(start, end)
            source.check_unchanged()
            if not overwrite and os.path.lexists(target):
                raise _exists(target)
    except OSError as error:  # FFmpeg's errors of the system are among them
        raise InvalidArgumentError(
            f"{target} cannot be written: {error.strerror or error}"
        ) from error
    return Cut(target, start, end, has_sound, mode, tuple(source.warnings))


def _write(
    source: MomentSource,
    start_s: float,
    end_s: float,
    partial: Path,
    form: OutputFormat,
    mode: CutMode,
    encoder: Encoder,
) -> tuple[float, float, bool]:
    import av

    try:
        if mode == "copy":
            return copy(source, start_s, end_s, partial, form)
        return start_s, end_s, _encode(source, start_s, end_s, partial, form, encoder)
    except OSError:
        raise
    except av.FFmpegError as error:
        raise VideoReadError(
            f"{source.path}: cannot be cut: {error.strerror or error}; "
            + ("use mode='exact'" if mode == "copy" else "expected a video that FFmpeg can encode")
        ) from error


def _encode(
    source: MomentSource,
    start_s: float,
    end_s: float,
    partial: Path,
    form: OutputFormat,
    encoder: Encoder,
) -> bool:
    """Encode; where frames are damaged, begin anew further back. Return whether there is sound."""
    *tries, last = STEPS_BACK
    for back in tries:
        with suppress(UnsoundError):
            return encode(source, start_s, end_s, partial, form, encoder, back)
    return encode(source, start_s, end_s, partial, form, encoder, last)


def _check_target(video: Path, target: Path, *, overwrite: bool) -> None:
    if target.is_dir():
        raise InvalidArgumentError(f"out is the folder {target}; expected the name of a file")
    if target.exists() and video.exists() and target.samefile(video):
        raise InvalidArgumentError(f"out is the video itself: {target}; expected another file")
    if os.path.lexists(target) and not overwrite:
        raise _exists(target)
    if not target.absolute().parent.is_dir():
        raise InvalidArgumentError(f"{target}: there is no folder {target.parent}; make it first")


def _exists(target: Path) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{target} exists; expected a new name, or overwrite=True (--overwrite)"
    )
