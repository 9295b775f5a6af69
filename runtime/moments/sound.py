"""Sound of some seconds of a video, right to one sample and without gaps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.runtime.moments.source import MomentSource
from xclip_deploy.runtime.video.pyav_container import open_video, read_packets

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

_LEAD_S = 1.0  # codecs overlap frames, so decoding begins this much before the start
_JITTER_S = 0.02  # timestamps are rounded; sound that is this far off is not moved
_PIECE = 48_000  # silence is written in pieces of this many samples


class SoundFormat(NamedTuple):
    """Form of the samples that a sound is converted to."""

    rate: int
    """Samples per second."""
    layout: str
    """FFmpeg's name of the channels: ``mono``, ``stereo`` or ``5.1``."""
    channels: int
    """Number of channels."""


def sound_format(source: MomentSource, rates: frozenset[int], *, surround: bool) -> SoundFormat:
    """Choose the form nearest to the first sound of a file.

    ``rates``: those that the encoder takes; 48,000 stands in for others. ``surround``: whether it
    takes six channels. Other layouts become stereo.
    """
    container, _ = open_video(source.path)
    with container:
        codec = container.streams.audio[0].codec_context
        rate = codec.sample_rate if codec.sample_rate in rates else 48_000
        channels = codec.layout.nb_channels
    if channels == 1:
        return SoundFormat(rate, "mono", 1)
    if channels == 6 and surround:
        return SoundFormat(rate, "5.1", 6)
    return SoundFormat(rate, "stereo", 2)


def samples_between(
    source: MomentSource, start_s: float, end_s: float, form: SoundFormat
) -> Iterator[NDArray[np.float32]]:
    """Decode the first sound of a file, from ``start_s`` to ``end_s`` or its own end.

    Silence stands in where the sound starts later or has a gap.

    Yields:
        Samples float32 ``[channels, n]``, each piece following the one before; nothing if the
        range has no sound.
    """
    total = round((end_s - start_s) * form.rate)
    jitter = round(_JITTER_S * form.rate)
    position = 0
    for time_s, samples in _converted(source, start_s, form):
        offset = round((time_s - start_s) * form.rate)
        if offset >= total or position >= total:
            break
        if position == 0 or abs(offset - position) > jitter:
            missing = offset - position
            if missing < 0:  # before the start, or heard already
                samples = samples[:, -missing:]
            while missing > 0:
                silence = min(missing, _PIECE)
                yield np.zeros((form.channels, silence), np.float32)
                missing -= silence
                position += silence
        samples = samples[:, : total - position]
        if samples.shape[1]:
            position += samples.shape[1]
            yield samples


def _converted(
    source: MomentSource, start_s: float, form: SoundFormat
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Decode from some time before a start. Yield the time and the samples of each piece."""
    import av

    resampler: Any = None
    kind: object = None
    next_s = 0.0
    for time_s, frame in _decoded(source, start_s):
        if (frame.format.name, frame.layout.name, frame.sample_rate) != kind:
            if resampler is not None:
                yield from _timed(resampler.resample(None), next_s, form)
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            resampler = av.AudioResampler("fltp", form.layout, form.rate)
            next_s = time_s
        frame.pts = None
        pieces = resampler.resample(frame)
        is_kept_in_step = frame.sample_rate == form.rate
        next_s = time_s if is_kept_in_step else next_s
        for each_s, samples in _timed(pieces, next_s, form):
            yield each_s, samples
            next_s = each_s + samples.shape[1] / form.rate
        # The resampler holds samples back. They are given out with a later frame.
        if not is_kept_in_step and abs(next_s - time_s) > 1.0:
            kind = None
    if resampler is not None:
        yield from _timed(resampler.resample(None), next_s, form)


def _timed(
    frames: list[AudioFrame], time_s: float, form: SoundFormat
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    for frame in frames:
        samples = np.asarray(frame.to_ndarray(), np.float32).reshape(form.channels, -1)
        yield time_s, samples
        time_s += samples.shape[1] / form.rate


def _decoded(source: MomentSource, start_s: float) -> Iterator[tuple[float, AudioFrame]]:
    import av

    container, _ = open_video(source.path)
    with container:
        stream = container.streams.audio[0]
        time_base = float(stream.time_base or 0)
        lead = start_s - _LEAD_S + source.zero_s  # on the file's own clock
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
        if source.is_seekable and time_base > 0 and start_s > _LEAD_S:
            try:
                container.seek(int(lead / time_base), stream=stream)
            except av.FFmpegError:  # then read from the file's start
                container.seek(0)
        last_s: float | None = None
        for packet in _packets(container, stream, source):
            pts = getattr(packet, "pts", None)
            if pts is not None and time_base > 0 and pts * time_base < lead:
                continue
            try:
                frames = stream.codec_context.decode(packet)
            except av.error.EOFError:
                return
            except av.FFmpegError as error:
                source.warnings[f"sound could not be decoded in part ({error.strerror})"] = None
                continue
            for frame in frames:
                if frame.pts is not None and frame.time_base:
                    time_s = float(frame.pts * frame.time_base) - source.zero_s
                else:
                    time_s = last_s if last_s is not None else 0.0
                last_s = time_s + frame.samples / frame.sample_rate
                yield time_s, frame


def _packets(container: InputContainer, stream: AudioStream, source: MomentSource) -> Iterator[Any]:
    """Yield the packets of one stream, and at the end None, which empties the decoder."""
    import av

    try:
        for packet in read_packets(container):
            if packet.stream_index == stream.index:
                yield packet
    except av.FFmpegError as error:
        source.warnings[f"sound could not be read to its end ({error.strerror})"] = None
    yield None
