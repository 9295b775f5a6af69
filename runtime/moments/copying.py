"""Copy the streams of some seconds of a video, without encoding anew.

A copy can begin at key frames only, and it holds every frame that one of its frames refers to.
It is therefore longer than what was asked for, and says by how much.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xclip_deploy.errors import InvalidArgumentError, VideoReadError
from xclip_deploy.runtime.moments.containers import OutputFormat, decoding_time
from xclip_deploy.runtime.moments.source import TOLERANCE_S, MomentSource
from xclip_deploy.runtime.video.matroska import NO_CROP
from xclip_deploy.runtime.video.pyav_container import open_video, read_packets

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

_ASPECT_TOLERANCE = 0.01


@dataclass(frozen=True)
class _Plan:
    """Packets of the video stream that are copied, from a key frame on, as they are decoded."""

    key: tuple[int, int]  # (presentation, decoding) timestamp of the key frame
    times: dict[int, int]  # decoding timestamp in the copy, by position after the key frame
    start_s: float
    end_s: float


def copy(
    source: MomentSource, start_s: float, end_s: float, target: Path, form: OutputFormat
) -> tuple[float, float, bool]:
    """Copy the packets of a range to a file, from the key frame at or before its start.

    Returns:
        Start and end of the copy in the video, seconds, and whether it has sound.

    Raises:
        InvalidArgumentError: the file has no timestamps, or the container does not take a codec.
        VideoReadError: the packets cannot be found again.
        av.FFmpegError: the file cannot be read or written.
    """
    import av

    plan = _plan(source, start_s, end_s)
    if source.index.crop != NO_CROP:
        source.warnings["the copy shows edges that the video hides; mode='exact' cuts them"] = None
    if plan.start_s < source.times_s[0] - TOLERANCE_S:
        source.warnings["the copy begins with frames that an edit list of the video hides"] = None
    video, stream = open_video(source.path)
    sound, _ = open_video(source.path)
    with (
        video,
        sound,
        av.open(str(target), "w", format=form.muxer, container_options=dict(form.options)) as out,
    ):
        copied = _added(out, stream, source, form)
        copied.codec_context.sample_aspect_ratio = source.index.pixel_aspect
        streams = [_video_packets(source, video, stream, copied, plan)]
        has_sound = source.has_sound
        if has_sound:
            first = sound.streams.audio[0]
            other = _added(out, first, source, form)
            streams.append(_sound_packets(source, sound, first, other, plan))
            if source.num_sounds > 1:
                source.warnings[f"the first of {source.num_sounds} sounds is kept"] = None
        for packet in heapq.merge(*streams, key=decoding_time):
            out.mux(packet)
    _check_pixel_aspect(source, target)
    return plan.start_s, plan.end_s, has_sound


def _check_pixel_aspect(source: MomentSource, target: Path) -> None:
    """Note where the pixel aspect stood in the container alone, which PyAV cannot write."""
    container, stream = open_video(target)
    with container:
        found = float(stream.sample_aspect_ratio or 1)
    aspect = source.index.pixel_aspect
    if abs(found / float(aspect) - 1) > _ASPECT_TOLERANCE:
        source.warnings[
            f"the copy lost that pixels are {aspect.numerator}:{aspect.denominator}, so players "
            "show it too wide or too narrow; mode='exact' keeps it"
        ] = None


def _plan(source: MomentSource, start_s: float, end_s: float) -> _Plan:
    """Choose the packets, by reading those from the key frame to the end of the range."""
    index = source.index
    if not index.is_reliable or not index.keyframes:
        raise InvalidArgumentError(
            f"{source.path} has no timestamps or key frames to copy by; use mode='exact'"
        )
    key = index.keyframes[source.key_frame(start_s) or 0]
    shown: list[int | None] = []  # presentation timestamps, in decoding order
    decoded: list[int | None] = []
    last = 0
    container, stream = open_video(source.path)
    with container:
        for position, packet in enumerate(_from_key_frame(source, container, stream, key)):
            if packet.dts is not None and source.time_of(packet.dts) >= end_s - TOLERANCE_S:
                break
            shown.append(packet.pts)
            decoded.append(packet.dts)
            if packet.pts is not None and source.time_of(packet.pts) < end_s - TOLERANCE_S:
                last = position
    # Frames that are shown before the key frame need others, which are not copied.
    kept = [
        position
        for position, pts in enumerate(shown[: last + 1])
        if pts is not None and pts >= key[0]
    ]
    if not kept:
        raise VideoReadError(f"{source.path}: its key frames are not found; use mode='exact'")
    times = [(shown[position] or 0) - key[0] for position in kept]
    order = [decoded[position] for position in kept]
    first_after = int(np.searchsorted(index.timestamps, max(times) + key[0], "right"))
    is_last = first_after == len(index.timestamps)
    return _Plan(
        key=key,
        times=dict(zip(kept, _decoding_times(times, order, key[0]), strict=True)),
        start_s=source.time_of(key[0]),
        end_s=index.end_s if is_last else float(source.times_s[first_after]),
    )


def _decoding_times(shown: list[int], decoded: list[int | None], start: int) -> list[int]:
    """Return the file's decoding timestamps, or where it has none that are right, new ones."""
    stored = [time - start for time in decoded if time is not None]
    is_complete = len(stored) == len(shown)
    if (
        is_complete
        and all(later > earlier for earlier, later in pairwise(stored))
        and all(dts <= pts for dts, pts in zip(stored, shown, strict=True))
    ):
        return stored
    # The times of the frames in order, shifted until none is decoded after it is shown.
    ordered = sorted(shown)
    delay = max(dts - pts for dts, pts in zip(ordered, shown, strict=True))
    return [dts - delay for dts in ordered]


def _from_key_frame(
    source: MomentSource, container: InputContainer, stream: VideoStream, key: tuple[int, int]
) -> Iterator[Packet[Any]]:
    if source.is_seekable:
        container.seek(key[1] if source.is_mov else key[0], stream=stream)
    is_found = False
    for packet in read_packets(container, stream):
        # Decoding timestamps that FFmpeg works out can differ after a seek.
        is_found = is_found or (packet.is_keyframe and packet.pts == key[0])
        if is_found:
            yield packet


def _video_packets(
    source: MomentSource,
    container: InputContainer,
    stream: VideoStream,
    copied: Stream,
    plan: _Plan,
) -> Iterator[Packet[Any]]:
    last = max(plan.times)
    for position, packet in enumerate(_from_key_frame(source, container, stream, plan.key)):
        if position in plan.times:
            packet.pts = (packet.pts or 0) - plan.key[0]
            packet.dts = plan.times[position]
            packet.stream = copied
            yield packet
        if position == last:
            return


def _sound_packets(
    source: MomentSource,
    container: InputContainer,
    stream: AudioStream,
    copied: Stream,
    plan: _Plan,
) -> Iterator[Packet[Any]]:
    time_base = float(stream.time_base or 1)
    start = round((plan.start_s + source.zero_s) / time_base)
    end = (plan.end_s + source.zero_s) / time_base
    if source.is_seekable:
        container.seek(start, stream=stream)
    last = -(2**63)
    for packet in read_packets(container):
        is_of_it = packet.stream_index == stream.index
        if not is_of_it or packet.pts is None or packet.pts < start:
            continue
        if packet.pts >= end:
            return
        packet.pts = packet.dts = packet.pts - start
        if packet.pts > last:
            last = packet.pts
            packet.stream = copied
            yield packet


def _added(
    container: OutputContainer,
    template: Stream,
    source: MomentSource,
    form: OutputFormat,
) -> Any:  # noqa: ANN401 - the kind of stream that the template is
    """Add a stream of the same codec. Raises InvalidArgumentError if the container takes none."""
    try:
        return container.add_stream_from_template(template, opaque=True)
    except (ValueError, AttributeError) as error:
        codec = getattr(template.codec_context, "name", "an unknown codec")
        raise InvalidArgumentError(
            f"{source.path} holds {codec}, which a file of {form.muxer} cannot; name it .mkv, or "
            "use mode='exact'"
        ) from error
