"""The true timestamps of a video, found without decoding.

Frame counts and durations in file headers are often missing or wrong. Demultiplexing a short
video takes milliseconds. It gives the display time of every frame and the points where decoding
can start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.runtime.video.matroska import NO_CROP, Crop, crop_of
from xclip_deploy.runtime.video.matroska import dolby_vision_of as matroska_dolby_vision_of
from xclip_deploy.runtime.video.mp4_boxes import (
    clean_aperture_of,
    dolby_vision_of,
    is_compatible,
)
from xclip_deploy.runtime.video.pyav_container import read_packets
from xclip_deploy.runtime.video.sampling import has_constant_rate

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

# A declared rate this many times off the timestamps is a default of the writer, as of screen
# recorders and browsers. It would sample the wrong seconds. Variable frame rates stay below.
_IMPLAUSIBLE_RATE_RATIO = 2.0
# A file that misses more than this counts as truncated; encoders round by less.
_TRUNCATION_TOLERANCE_S = 1.0
_TRUNCATION_TOLERANCE_FRAMES = 0.5  # where the number of frames says the same
# As FFmpeg finds it: "DivX503b1393p", with a p for packed.
_PACKED = re.compile(rb"\x00\x00\x01\xb2DivX\d+(b|Build)\d+p")
_PACKETS_SEARCHED = 3
# FFmpeg assumes this rate for raw streams, which have neither a rate nor timestamps.
FALLBACK_FRAME_RATE = 25.0
# FFmpeg's own decoders of VP8 and VP9 pass over the stream of opacity in Matroska and WebM.
_WITHOUT_ALPHA = frozenset({"vp8", "vp9"})


@dataclass(frozen=True)
class PacketIndex:
    """Facts about a video stream from demultiplexing. Timestamps are in its time base."""

    timestamps: NDArray[np.int64]
    """Presentation timestamps of the packets that are shown, increasing. Decoding timestamps,
    where the file stores only these: sorted, they are the times of the frames in display order."""
    keyframes: tuple[tuple[int, int], ...]
    """(presentation, decoding) timestamp of every keyframe, sorted by presentation."""
    is_reliable: bool
    """Whether every shown packet has a presentation timestamp of its own."""
    is_in_decoding_order: bool
    """Whether the file stores decoding order only. Then the decoder's output tells in which
    order frames are shown, and no frame can be recognised by its timestamp."""
    time_base: float
    """Seconds per unit of the timestamps. It is kept here because PyAV reads freed memory if a
    stream is asked for its time base after its container was closed."""
    packet_count: int
    """Number of packets, including those that are decoded but not shown."""
    shown_count: int
    """Number of packets that are shown."""
    hidden_count: int
    """Number of packets that an edit list hides."""
    start_s: float
    """Time of the first frame on the player's clock, seconds."""
    end_s: float
    """End of the last frame on the player's clock, seconds; 0 without timestamps."""
    frame_rate: float | None
    """Frames per second, declared or measured; None if neither is known."""
    pixel_aspect: Fraction
    """Width of a stored pixel in units of its height."""
    crop: Crop
    """Pixels that the container hides at each edge of a stored picture."""
    codec: str
    """Name of the decoder."""
    unread: tuple[str, ...]
    """Parts of the stream that this FFmpeg or PyAV does not read, as warnings."""
    warnings: tuple[str, ...]
    """Faults of the file, one line each."""

    @property
    def length_s(self) -> float:
        """Seconds to the end of the video, counted by frames where timestamps do not tell."""
        if self.is_reliable:
            return self.end_s
        return self.shown_count / (self.frame_rate or FALLBACK_FRAME_RATE)


def index_packets(
    container: InputContainer,
    stream: VideoStream,
    note: Callable[[Packet[Any], bool], None] | None = None,
) -> PacketIndex:
    """Demultiplex a whole file without decoding. The container ends up at its end.

    ``note`` gets every packet of the stream, in the order of the file, and whether it is shown;
    also those behind damage that ends the reading without it.
    """
    import av

    time_base = float(stream.time_base) if stream.time_base else 0.0
    shown: list[int] = []
    keyframes: list[tuple[int, int]] = []
    packet_count = shown_count = hidden_count = last_duration = 0
    last_pts = -(2**63)
    latest_end_s = 0.0
    decoded: list[int] = []
    latest_ticks = 0
    is_mpeg4 = stream.codec_context.name == "mpeg4"
    is_packed = is_mpeg4 and _has_packed_b_frames(stream.codec_context.extradata)
    # Recordings of browsers announce opacity and hold none.
    may_have_opacity = (
        stream.codec_context.name in _WITHOUT_ALPHA and stream.metadata.get("alpha_mode") == "1"
    )
    has_opacity = False
    warnings: list[str] = []
    # If the video stream declares no duration, only all streams together can be compared with
    # the duration of the file.
    is_whole_file = stream.duration is None
    if not is_whole_file:
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
    try:
        for packet in read_packets(
            container, None if is_whole_file else stream, past_damage=note is not None
        ):
            if is_whole_file:
                latest_end_s = max(latest_end_s, _end_s(packet))
            if packet.stream_index != stream.index:
                continue
            packet_count += 1
            has_opacity |= may_have_opacity and packet.has_sidedata("matroska_block_additional")
            if is_mpeg4 and packet_count <= _PACKETS_SEARCHED and not is_packed:
                is_packed = _has_packed_b_frames(memoryview(packet))
            if packet.dts is not None:
                decoded.append(packet.dts)
            latest_ticks = max(latest_ticks, (packet.dts or 0) + (packet.duration or 0))
            if packet.pts is not None and packet.is_keyframe:
                dts = packet.dts if packet.dts is not None else packet.pts
                keyframes.append((packet.pts, dts))
            hidden_count += packet.is_discard
            is_shown = is_ever_shown(packet, stream.codec_context.name)
            if note is not None:
                note(packet, is_shown)
            if not is_shown:
                continue
            shown_count += 1
            if packet.pts is not None:
                shown.append(packet.pts)
                if packet.pts > last_pts:
                    last_pts, last_duration = packet.pts, packet.duration or 0
    except av.FFmpegError as error:
        warnings.append(f"reading stopped early: {error.strerror or error}")

    timestamps = np.unique(np.array(shown, dtype=np.int64))
    is_reliable = 0 < len(timestamps) == shown_count and time_base > 0
    # AVI stores decoding order only. FFmpeg guesses the presentation order from it, and errs
    # where a packet holds two frames. Decoder output is in presentation order always.
    is_in_decoding_order = is_packed or (
        container.format.name == "avi" and bool(stream.codec_context.has_b_frames)
    )
    if is_in_decoding_order:
        is_reliable = False
        timestamps = np.unique(np.array(decoded, dtype=np.int64))
    start_s = end_s = 0.0
    frame_rate = float(stream.average_rate or stream.guessed_rate or 0) or None
    if is_reliable:
        first, last = int(timestamps[0]), int(timestamps[-1])
        start_s = _start_s(container, first * time_base)
        frame_rate, rate_warning = _plausible_rate(
            frame_rate, len(timestamps), (last - first) * time_base
        )
        # Frames of a variable rate are chosen by their times, whatever the header says.
        if has_constant_rate(np.asarray(timestamps * time_base, np.float64), frame_rate or 0.0):
            warnings.extend(rate_warning)
        last_s = last_duration * time_base or (1 / frame_rate if frame_rate else 0.0)
        end_s = start_s + (last - first) * time_base + last_s
        video_end_s = end_s - start_s + first * time_base  # on the file's clock
        warnings.extend(
            _truncation(container, stream, packet_count, video_end_s, latest_end_s, frame_rate)
        )
    elif is_in_decoding_order:
        end = latest_ticks * time_base
        warnings.extend(_truncation(container, stream, packet_count, end, end, frame_rate))
    return PacketIndex(
        timestamps=timestamps,
        keyframes=tuple(sorted(keyframes)),
        is_reliable=is_reliable,
        is_in_decoding_order=is_in_decoding_order,
        time_base=time_base,
        packet_count=packet_count,
        shown_count=shown_count,
        hidden_count=hidden_count,
        start_s=start_s,
        end_s=end_s,
        frame_rate=frame_rate,
        pixel_aspect=_pixel_aspect(stream),
        crop=_crop(container, stream),
        codec=stream.codec_context.name,
        unread=tuple(_unread(container, stream, has_opacity=has_opacity)),
        warnings=tuple(warnings),
    )


def _end_s(packet: Packet[Any]) -> float:
    if packet.pts is None or not packet.time_base:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _has_packed_b_frames(content: bytes | memoryview | None) -> bool:
    """Return whether MPEG-4 user data says that a packet can hold two frames (DivX 5, XviD)."""
    return content is not None and _PACKED.search(content) is not None


def _pixel_aspect(stream: VideoStream) -> Fraction:
    aspect = stream.sample_aspect_ratio
    return Fraction(aspect) if aspect else Fraction(1)


def _crop(container: InputContainer, stream: VideoStream) -> Crop:
    path, formats = Path(container.name), container.format.name.split(",")
    if "matroska" in formats:
        return crop_of(path, _position(container, stream))
    if "mov" in formats:
        codec = stream.codec_context
        return clean_aperture_of(path, stream.id, codec.width, codec.height)
    return NO_CROP


def _unread(container: InputContainer, stream: VideoStream, *, has_opacity: bool) -> Iterator[str]:
    """Warn of what the decoder leaves out, which changes the picture.

    ``has_opacity``: whether the container holds the opacity of frames beside the frames.
    """
    if has_opacity:
        yield "transparency is not read, so hidden colours show: this decoder leaves it out"
    path, formats = Path(container.name), container.format.name.split(",")
    record = None
    if "matroska" in formats:
        record = matroska_dolby_vision_of(path, _position(container, stream))
    elif "mov" in formats:
        record = dolby_vision_of(path, stream.id)
    if record is not None and not is_compatible(record):
        yield (
            f"Dolby Vision profile {record[2] >> 1} is not converted, so colours are wrong: its "
            "picture is meant for Dolby's decoders alone"
        )


def _position(container: InputContainer, stream: VideoStream) -> int:
    return [video.index for video in container.streams.video].index(stream.index)


def is_ever_shown(packet: Packet[Any], codec: str) -> bool:
    """Return whether a packet of this codec holds a picture that players show."""
    # VP8 writes alternative reference frames as separate packets. Bit 4 of the first byte is
    # show_frame (RFC 6386, section 9.1).
    is_reference = codec in {"vp8", "libvpx"} and not memoryview(packet)[0] & 0x10
    return not (packet.is_discard or is_reference)


def _start_s(container: InputContainer, first_s: float) -> float:
    if container.start_time is None:
        return 0.0
    lead_s = first_s - container.start_time / 1_000_000
    # A lead below a millisecond comes from rounding start_time to microseconds.
    return lead_s if lead_s >= 0.001 else 0.0


def _plausible_rate(
    declared: float | None, frame_count: int, span_s: float
) -> tuple[float | None, list[str]]:
    if frame_count < 2 or span_s <= 0:
        return declared, []
    measured = (frame_count - 1) / span_s
    if declared is None:
        return measured, []
    ratio = max(declared / measured, measured / declared)
    # A few frames measure nothing, because the span lacks the duration of the last one.
    if ratio <= _IMPLAUSIBLE_RATE_RATIO or frame_count < 5:
        return declared, []
    return measured, [
        f"the header announces {declared:.3f} frames per second, the timestamps give "
        f"{measured:.3f}; the latter is used"
    ]


def _truncation(
    container: InputContainer,
    stream: VideoStream,
    packet_count: int,
    video_end_s: float,
    latest_end_s: float,
    frame_rate: float | None,
) -> list[str]:
    announced_count = stream.frames
    is_mov = "mov" in container.format.name.split(",")
    if is_mov and len(stream.index_entries):
        # FFmpeg leaves out what edit lists hide.
        announced_count = min(announced_count, len(stream.index_entries))
    if stream.duration is not None and stream.time_base:
        start = stream.start_time or 0
        announced_s, found_s = float((start + stream.duration) * stream.time_base), video_end_s
    elif container.duration is not None:
        announced_s = ((container.start_time or 0) + container.duration) / 1_000_000
        found_s = latest_end_s
    else:
        announced_s = found_s = 0.0
    missing_s = announced_s - found_s
    # AVI counts frames that its writer dropped, too: they are missing only if their time is.
    is_short = missing_s > _TRUNCATION_TOLERANCE_FRAMES / (frame_rate or 1)
    if announced_count > packet_count and (is_mov or announced_s == 0 or is_short):
        return [
            f"truncated: {packet_count} of the {announced_count} frames that the header "
            "announces are there"
        ]
    if missing_s <= _TRUNCATION_TOLERANCE_S:
        return []
    return [f"truncated: ends at {found_s:.2f} s, the header announces {announced_s:.2f} s"]
