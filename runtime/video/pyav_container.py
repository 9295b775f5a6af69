"""Open a file with PyAV and find its video stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xclip_deploy.errors import VideoReadError
from xclip_deploy.runtime.video.containers import (
    check_container,
    check_pixels,
    max_pixels,
    open_options,
)
from xclip_deploy.runtime.video.media_policy import current_policy

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

# FFmpeg renders these character codes to pictures; a text file is no video.
# Calls without a packet after which a file counts as read: 4 GiB of a transport stream, or as often
# as a format with an end marks one part after the other as damaged.
_MOST_TRIES, _MOST_REPEATS = 1 << 16, 64
_TEXT_CODECS = frozenset({"ansi", "bintext", "idf", "xbin"})


def open_video(path: Path) -> tuple[InputContainer, VideoStream]:
    """Open a file with one decoder thread. The caller closes the container.

    Raises:
        VideoReadError: not a video that this FFmpeg can decode, a playlist, frames of more than
            ``max_pixels()``, or what the policy of this thread refuses.
    """
    current_policy().check_place(path)
    check_container(path)
    container = _open(path, open_options())
    try:
        return container, _choose_stream(container, path)
    except BaseException:
        container.close()
        raise


def read_packets(
    container: InputContainer, stream: VideoStream | None = None, *, past_damage: bool = False
) -> Iterator[Packet[Any]]:
    """Demultiplex from the container's position to its end.

    Args:
        stream: Stream whose packets are returned; None returns those of all streams.
        past_damage: Go on behind what cannot be read, where the format allows it.

    Yields:
        Packets with content. An empty packet would tell a decoder that the video ends.

    Raises:
        av.FFmpegError: the rest of the file cannot be read.
    """
    import av

    tries = count = 0
    policy = current_policy()
    while True:
        try:
            for packet in container.demux() if stream is None else container.demux(stream):
                count += 1
                if policy.max_packets is not None:
                    policy.check_packets(container.name, count)
                if packet.size:
                    tries = 0
                    yield packet
        except IndexError:
            # PyAV fails like this at the end of a file in which streams appeared on the way, as
            # they do in a damaged transport stream. By then all packets have been read.
            return
        except av.error.BlockingIOError:
            # A transport stream has no packet within 64 KiB; the next call looks further.
            tries += 1
            if not past_damage or tries > _MOST_TRIES:
                raise
        except av.error.InvalidDataError:
            tries += 1
            if not past_damage or tries > _MOST_REPEATS:
                raise
        else:
            return


def _open(path: Path, options: dict[str, str]) -> InputContainer:
    import av

    # Tags that are no text must not cost the video. PyAV 19 does not read them on opening.
    is_before_19 = int(av.__version__.partition(".")[0]) < 19
    lenient: dict[str, Any] = {"metadata_errors": "replace"} if is_before_19 else {}
    try:
        # An absolute path cannot be taken for a URL. The options keep a playlist that calls
        # itself .mp4 from reading other files.
        container: InputContainer = av.open(
            str(path.absolute()), mode="r", options=options, **lenient
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoReadError(f"{path}: {_why_not_opened(path, error)}") from error
    return container


def _choose_stream(container: InputContainer, path: Path) -> VideoStream:
    import av.stream

    picture = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    found = [stream for stream in container.streams.video if not stream.disposition & picture]
    if not found:
        types = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        what = "only a cover picture" if container.streams.video else "no video"
        raise VideoReadError(
            f"{path}: has {what} (streams: {types}); expected a file with a video stream"
        )
    _check_codecs(container, path)
    # The authors' reader takes the first stream, not the one that FFmpeg ranks best.
    stream = found[0]
    codec = stream.codec_context
    if codec is None:
        raise VideoReadError(f"{path}: this FFmpeg has no decoder for the video stream's codec")
    if codec.name in _TEXT_CODECS:
        raise VideoReadError(f"{path}: is text ({codec.name}); expected video")
    if not codec.width:
        _check_stated_size(path, container.format.name)
    check_pixels(path, codec.width, codec.height)
    codec.options = {**codec.options, "max_pixels": str(max_pixels())}
    codec.thread_count = 1
    return stream


def _check_codecs(container: InputContainer, path: Path) -> None:
    """Hold all pictures and sound to the policy, as other parts may decode them later."""
    policy = current_policy()
    if policy.codecs is None:
        return
    for stream in (*container.streams.video, *container.streams.audio):
        context = stream.codec_context
        name = None if context is None else context.codec.canonical_name
        policy.check_codec(path, stream.type, name)


def _check_stated_size(path: Path, format_name: str) -> None:
    """Refuse frames that no decoder was opened for because they exceed the limit of pixels.

    The container, or a parser, may still state their size. FFmpeg keeps it where no decoder runs.

    Raises:
        VideoReadError: the stated size exceeds the limit, a single picture has none, or the file
            cannot be opened again.
    """
    with _open(path, {**open_options(), "codec_whitelist": "none"}) as stated:
        for stream in stated.streams.video:
            if stream.codec_context is not None:
                check_pixels(path, stream.codec_context.width, stream.codec_context.height)
    if format_name.endswith("_pipe"):
        raise VideoReadError(
            f"{path}: is a damaged picture, or one with too many pixels; expected at most "
            f"{max_pixels():,}"
        )


def _why_not_opened(path: Path, error: Exception) -> str:
    import av

    if isinstance(error, av.error.ArgumentError) and current_policy().formats is not None:
        return "is in no container that is accepted; expected MP4, MOV, Matroska, WebM, AVI or MPEG"
    if isinstance(error, av.error.ArgumentError):
        return "is in no format that is opened, as texts and playlists are; expected video"
    reason = getattr(error, "strerror", None) or str(error)
    if not isinstance(error, (av.error.InvalidDataError, av.error.EOFError)):
        return f"cannot be opened as video: {reason}"
    # FFmpeg gives one reason for every kind of damage, so look at the file.
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return (
            "is MP4 or MOV without a usable index (moov): damaged, or its recording or download "
            f"did not finish ({reason})"
        )
    return f"is in no video format that FFmpeg knows, or damaged at its start ({reason})"
