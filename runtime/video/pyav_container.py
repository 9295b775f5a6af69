"""Open a file with PyAV and find its video stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xclip_deploy.errors import VideoReadError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

MAX_SIDE = 16384
"""Largest width or height that is decoded, pixels. Larger frames mean damage or an attack."""

# FFmpeg renders these text formats to pictures, but a text file is no video.
_TEXT_CODECS = frozenset({"ansi", "bintext", "idf", "xbin"})


def open_video(path: Path) -> tuple[InputContainer, VideoStream]:
    """Open a file with one decoder thread. The caller closes the container.

    Raises:
        VideoReadError: this FFmpeg cannot decode the file as video, or its frames are larger
            than ``MAX_SIDE``.
    """
    import av

    # Undecodable tags must not cost the video. PyAV 19 does not read tags on opening.
    is_before_19 = int(av.__version__.partition(".")[0]) < 19
    lenient: dict[str, Any] = {"metadata_errors": "replace"} if is_before_19 else {}
    try:
        # The absolute path keeps FFmpeg from reading a file name as a URL. The whitelist keeps
        # a playlist with a video's name from making a server fetch what it lists.
        container = av.open(
            str(path.absolute()),
            mode="r",
            options={"protocol_whitelist": "file"},
            **lenient,
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoReadError(f"{path}: {_why_not_opened(path, error)}") from error
    try:
        return container, _choose_stream(container, path)
    except BaseException:
        container.close()
        raise


def read_packets(
    container: InputContainer, stream: VideoStream | None = None
) -> Iterator[Packet[Any]]:
    """Demultiplex from the container's position to its end.

    Args:
        stream: Stream whose packets are returned; None returns those of all streams.

    Yields:
        Packets with content. An empty packet would tell a decoder that the video ends.

    Raises:
        av.FFmpegError: the rest of the file cannot be read.
    """
    try:
        for packet in container.demux() if stream is None else container.demux(stream):
            if packet.size:
                yield packet
    except IndexError:
        # PyAV fails like this at the end of a file in which streams appeared on the way, as
        # they do in a damaged transport stream. By then all packets have been read.
        return


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse frames that are larger than ``MAX_SIDE``.

    Raises:
        VideoReadError: ``width`` or ``height``, pixels, exceeds it.
    """
    if max(width, height) > MAX_SIDE:
        raise VideoReadError(
            f"{path}: frames are {width}x{height} pixels; expected at most {MAX_SIDE} a side"
        )


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
    # The authors' reader takes the first stream, not the one that FFmpeg ranks best.
    stream = found[0]
    codec = stream.codec_context
    if codec is None:
        raise VideoReadError(f"{path}: this FFmpeg has no decoder for the video stream's codec")
    if codec.name in _TEXT_CODECS:
        raise VideoReadError(f"{path}: is text ({codec.name}); expected video")
    check_size(path, codec.width, codec.height)
    codec.thread_count = 1
    return stream


def _why_not_opened(path: Path, error: Exception) -> str:
    import av

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
