"""Reading frames with PyAV (FFmpeg): the default reader.

The reader demultiplexes the file once without decoding, which gives the true timestamp of
every frame. It chooses target frames from that list and recognises them by timestamp when they
leave the decoder, so an imprecise seek cannot give a wrong frame. If a target is missing or
anything looks damaged, the reader decodes the video from its start without shortcuts and trusts
the frames that come out.

FFmpeg's log stays off, PyAV's default, because a log hook acts on the whole process. Errors
carry FFmpeg's reason instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import VideoReadError
from xclip_deploy.runtime.video.frames import SampledBy, VideoFrames, VideoReading
from xclip_deploy.runtime.video.media_policy import current_policy
from xclip_deploy.runtime.video.packet_index import (
    FALLBACK_FRAME_RATE,
    PacketIndex,
    index_packets,
)
from xclip_deploy.runtime.video.pyav_container import open_video, read_packets
from xclip_deploy.runtime.video.sampling import (
    FrameSampling,
    has_constant_rate,
    sample_frame_numbers,
    sample_frame_times,
)
from xclip_deploy.runtime.video.taken_frames import TakenFrames

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# The index of these formats finds keyframes exactly. Others guess byte positions.
SEEKABLE_FORMATS = frozenset({"mov", "mp4", "matroska", "webm"})


def read_with_pyav(path: Path, reading: VideoReading) -> VideoFrames:
    """Read the sampled frames of one video with one decoder thread.

    Args:
        path: A regular file that exists.
        reading: Which frames to take, and their side S.

    Returns:
        Frames uint8 ``[n, S, S, 3]`` with their times and warnings.

    Raises:
        VideoReadError: the file is no video, or no frame of it can be decoded.
    """
    container, stream = open_video(path)
    with container:
        index = index_packets(container, stream)
        current_policy().check_duration(path, index.length_s)
        frames = TakenFrames(path, reading, index)
        targets, sampled_by = _targets(index, reading.sampling)
        is_seekable = not SEEKABLE_FORMATS.isdisjoint(container.format.name.split(","))
        if targets and is_seekable:
            _decode_by_seeking(container, stream, index, targets, frames)
    if targets and not is_seekable:
        container, stream = open_video(path)
        with container:
            _decode_run(container, stream, frozenset(targets), frames)
    if targets and frames.is_sound and frames.pictures.keys() == set(targets):
        shown: list[int | None] = index.timestamps.tolist()
        numbers = {target: int(np.searchsorted(index.timestamps, target)) for target in targets}
        return _result(index, shown, numbers, frames, sampled_by)
    return _read_without_shortcuts(path, index, frozenset(targets), reading)


def _targets(index: PacketIndex, sampling: FrameSampling) -> tuple[list[int], SampledBy]:
    if not index.is_reliable:
        return [], "frame numbers"
    times_s = np.asarray(index.timestamps * index.time_base, np.float64)
    numbers, sampled_by = _choose(index, len(times_s), times_s, sampling)
    targets: list[int] = index.timestamps[numbers].tolist()
    return targets, sampled_by


def _choose(
    index: PacketIndex,
    frame_count: int,
    times_s: NDArray[np.float64] | None,
    sampling: FrameSampling,
) -> tuple[NDArray[np.int64], SampledBy]:
    """Choose frame numbers; by times where these are known and the rate is not constant."""
    frame_rate = index.frame_rate or FALLBACK_FRAME_RATE
    if times_s is None or has_constant_rate(times_s, frame_rate):
        return sample_frame_numbers(frame_count, frame_rate, sampling), "frame numbers"
    return sample_frame_times(times_s, sampling), "times"


def _decode_by_seeking(
    container: InputContainer,
    stream: VideoStream,
    index: PacketIndex,
    targets: list[int],
    frames: TakenFrames,
) -> None:
    import av

    # MP4 and MOV index keyframes by decoding time, Matroska by presentation time.
    is_mov = "mov" in container.format.name.split(",")
    starts = [pts for pts, _ in index.keyframes]
    positions = np.searchsorted(starts, targets, side="right") - 1
    for position in np.unique(positions).tolist():
        if position < 0:
            return  # no keyframe before the target
        pts, dts = index.keyframes[position]
        wanted = frozenset(t for t, p in zip(targets, positions, strict=True) if p == position)
        try:
            container.seek(dts if is_mov else pts, stream=stream)
        except av.FFmpegError as error:
            frames.note_error(error)
            return
        _decode_run(container, stream, wanted, frames)
        if not frames.is_sound:
            return  # the caller then decodes everything without shortcuts


def _decode_run(
    container: InputContainer, stream: VideoStream, wanted: frozenset[int], frames: TakenFrames
) -> None:
    """Take the frames with the wanted timestamps, from the container's position on."""
    codec = stream.codec_context
    is_skipping = can_skip_unreferenced(codec.name, codec.extradata)
    unsent = set(wanted)
    last = -(2**63)
    for packet in packets_of(container, stream, frames):
        if is_skipping:
            codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        for frame in decode_packet(stream, packet, frames):
            if frame.pts is None:
                continue
            # Frames come out in display order. If their timestamps do not, these are wrong.
            frames.is_in_order = frames.is_in_order and frame.pts > last
            last = frame.pts
            if frame.pts in wanted:
                frames.take(frame.pts, frame)
        if packet.pts is not None:
            unsent.discard(packet.pts)
        if not unsent:
            break
    for frame in decode_packet(stream, None, frames):  # frames that the decoder still holds
        if frame.pts is not None and frame.pts in wanted:
            frames.take(frame.pts, frame)


def can_skip_unreferenced(codec: str, extradata: bytes | None) -> bool:
    """Return whether the decoder may skip frames that no other frame refers to.

    HEVC with temporal layers forbids it, because "not referenced" holds within a layer only.
    Byte 21 of the decoder configuration record gives the number of layers (ISO/IEC 14496-15,
    section 8.3.3.1). A raw stream has no such record.
    """
    if codec == "h264":
        return True
    if codec != "hevc" or not extradata or len(extradata) < 23 or extradata[0] != 1:
        return False
    return (extradata[21] >> 3) & 0b111 <= 1


def _read_without_shortcuts(
    path: Path, index: PacketIndex, targets: frozenset[int], reading: VideoReading
) -> VideoFrames:
    """Decode every frame from the start, and number frames in the order of output."""
    frames = TakenFrames(path, reading, index)
    shown: list[int | None] = []
    guesses = frozenset[int]() if targets else _guess(index, reading.sampling)
    container, stream = open_video(path)
    with container:
        for position, frame in enumerate(decode_all(container, stream, frames)):
            shown.append(frame.pts)
            if position in guesses:
                frames.take(position, frame)
            elif frame.pts is not None and frame.pts in targets:
                frames.take(frame.pts, frame)
    if not shown:
        reason = frames.last_error or "the video stream holds none"
        raise VideoReadError(f"{path}: no frame could be decoded ({reason})")
    is_as_indexed = shown == index.timestamps.tolist() and frames.pictures.keys() == targets
    if targets and is_as_indexed:
        numbers = {target: int(np.searchsorted(index.timestamps, target)) for target in targets}
        return _result(index, shown, numbers, frames, _targets(index, reading.sampling)[1])

    chosen, sampled_by = _choose(index, len(shown), _times_s(index, shown), reading.sampling)
    positions: list[int] = chosen.tolist()
    numbers = {position: position for position in positions}
    if guesses and frames.is_sound and frames.pictures.keys() == numbers.keys():
        return _result(index, shown, numbers, frames, sampled_by)

    # The frames to take are known only now. Decoding again costs time, but keeping every
    # candidate of an hours-long video would need unbounded memory.
    frames = TakenFrames(path, reading, index)
    container, stream = open_video(path)
    with container:
        for position, frame in enumerate(decode_all(container, stream, frames)):
            if position in numbers:
                frames.take(position, frame)
            if position == positions[-1]:
                break
    return _result(index, shown, numbers, frames, sampled_by)


def _guess(index: PacketIndex, sampling: FrameSampling) -> frozenset[int]:
    """Return the positions to take if every packet that is shown gives one frame.

    The guess saves decoding an intact file twice where its timestamps identify no frame.
    """
    count = len(index.timestamps)
    times_s = _times_s(index, index.timestamps.tolist())
    if not index.is_in_decoding_order and count != index.shown_count:
        count, times_s = index.shown_count, None
    if not count:
        return frozenset()
    return frozenset(_choose(index, count, times_s, sampling)[0].tolist())


def decode_all(
    container: InputContainer, stream: VideoStream, frames: TakenFrames
) -> Iterator[VideoFrame]:
    """Decode from the container's position to its end, past what is damaged.

    Yields:
        Frames in display order. ``frames`` notes the errors; no frame is put into it.
    """
    for packet in packets_of(container, stream, frames):
        yield from decode_packet(stream, packet, frames)
    yield from decode_packet(stream, None, frames)


def packets_of(
    container: InputContainer,
    stream: VideoStream,
    frames: TakenFrames,
    *,
    past_damage: bool = False,
) -> Iterator[Packet[Any]]:
    """Demultiplex from the container's position to its end, or to what cannot be read.

    ``frames`` notes the error. ``past_damage`` is that of :func:`read_packets`.
    """
    import av

    try:
        yield from read_packets(container, stream, past_damage=past_damage)
    except av.FFmpegError as error:
        frames.note_error(error)


def decode_packet(
    stream: VideoStream, packet: Packet[Any] | None, frames: TakenFrames
) -> list[VideoFrame]:
    """Return the frames that a packet brings out, and at None those that are left.

    ``frames`` notes an error; the list is then empty.
    """
    import av

    try:
        return stream.codec_context.decode(packet)
    except av.error.EOFError:
        return []
    except av.FFmpegError as error:
        frames.note_error(error)
        return []


def _result(
    index: PacketIndex,
    shown: list[int | None],
    numbers: dict[int, int],
    frames: TakenFrames,
    sampled_by: SampledBy,
) -> VideoFrames:
    """Assemble the result from the frames that were taken.

    Args:
        shown: Timestamps of all frames in display order.
        numbers: Frame number of every key of ``frames.pictures``.
    """
    rate = index.frame_rate or FALLBACK_FRAME_RATE
    keys = sorted(frames.pictures, key=numbers.__getitem__)
    frame_numbers = np.array([numbers[key] for key in keys], dtype=np.int64)
    times_s = _times_s(index, shown)
    if times_s is None:
        times_s = index.start_s + np.arange(len(shown)) / rate
    elif sampled_by == "times" and len(shown) > 1:
        rate = (len(shown) - 1) / float(times_s[-1] - times_s[0])
    missing = len(index.timestamps) - len(shown) if index.is_reliable else 0
    warnings = [*index.warnings, *frames.warnings()]
    if missing > 0:
        warnings.append(f"frames that could not be decoded: {missing} of {len(index.timestamps)}")
    return VideoFrames(
        frames=np.stack([frames.pictures[key] for key in keys]),
        times_s=times_s[frame_numbers].astype(np.float64),
        frame_numbers=frame_numbers,
        duration_s=index.end_s if index.is_reliable else float(times_s[-1]) + 1 / rate,
        frame_rate=rate,
        sampled_by=sampled_by,
        warnings=tuple(warnings),
    )


def _times_s(index: PacketIndex, shown: list[int | None]) -> NDArray[np.float64] | None:
    """Return the display times of decoded frames ``[n]``, None where timestamps do not tell."""
    if index.is_in_decoding_order:
        known = index.timestamps.tolist()
    else:
        known = [timestamp for timestamp in shown if timestamp is not None]
    is_complete = 0 < len(known) == len(shown) and bool((np.diff(known) > 0).all())
    if not is_complete or index.time_base <= 0:
        return None
    first = int(index.timestamps[0]) if index.is_reliable else known[0]
    ticks = np.array(known, dtype=np.int64) - first
    return np.asarray(index.start_s + ticks * index.time_base, np.float64)
