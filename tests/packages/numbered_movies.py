"""Videos whose frames carry their number in their pixels, and whose sound tells the second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from written_once import written_once

SIDE = 96  # a square of 4x4 blocks, one bit each
BASE_HZ, STEP_HZ = 400, 80
MILLISECOND = Fraction(1, 1000)


def numbered(number: int, width: int = SIDE, height: int = SIDE) -> NDArray[np.uint8]:
    """Draw a number in black and white blocks: [height, width, 3]."""
    bits = np.array([number >> bit & 1 for bit in range(16)], np.uint8).reshape(4, 4) * 255
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return np.repeat(bits[rows][:, columns, None], 3, axis=2)


def number_in(picture: NDArray[Any]) -> int:
    """Read the number of a picture [height, width, 3], from the middles of its blocks."""
    height, width = picture.shape[:2]
    rows, columns = (np.arange(4) + 0.5) * height / 4, (np.arange(4) + 0.5) * width / 4
    blocks = picture[rows.astype(int)][:, columns.astype(int)].mean(axis=2).reshape(16)
    assert (np.abs(blocks - 127.5) > 60).all(), "a block is neither black nor white"
    return int(sum(1 << bit for bit in np.flatnonzero(blocks > 127)))


def tone(second: int) -> int:
    """Return the pitch of a second, Hz."""
    return BASE_HZ + STEP_HZ * second


@written_once
def write_movie(
    path: Path,
    seconds: float = 12,
    *,
    rate: int | Fraction = 10,
    times_ms: Sequence[int] | None = None,
    sounds: Sequence[tuple[float, float]] = ((0, 12),),
    sound_rate: int = 44_100,
    layout: str = "stereo",
    codecs: tuple[str, str] = ("libx264", "aac"),
    options: dict[str, str] | None = None,
    size: tuple[int, int] = (SIDE, SIDE),
    pixel_aspect: Fraction | None = None,
    pixel_format: str = "yuv420p",
    edit: Callable[[Any], None] = lambda _: None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode a movie. ``sounds``: start and end of each track, seconds."""
    chosen = {"g": "20", "bf": "2", "sc_threshold": "0"} if codecs[0] == "libx264" else {}
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        chosen |= options or {}
        stream: Any = container.add_stream(codecs[0], rate=rate, options=chosen)
        stream.width, stream.height = size
        stream.codec_context.thread_count = 1  # more threads make small pictures slower
        stream.pix_fmt = pixel_format
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if times_ms is not None:
            stream.codec_context.time_base = MILLISECOND
        edit(stream)
        tracks: list[Any] = []
        for _ in sounds:
            track: Any = container.add_stream(codecs[1], rate=sound_rate)
            track.codec_context.layout = layout
            tracks.append(track)
        for number in range(round(seconds * rate) if times_ms is None else len(times_ms)):
            frame = av.VideoFrame.from_ndarray(numbered(number, *size), format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for number, (track, span) in enumerate(zip(tracks, sounds, strict=True)):
            _write_tones(container, track, span, sound_rate, layout, number)
    return path


def _write_tones(
    container: Any, track: Any, span: tuple[float, float], rate: int, layout: str, number: int
) -> None:
    channels = av.AudioLayout(layout).nb_channels
    place = round(span[0] * rate)
    while place < round(span[1] * rate):
        count = min(1000, round(span[1] * rate) - place)
        time = (place + np.arange(count)) / rate
        # The second track is an octave and more above the first.
        pitch = (BASE_HZ + STEP_HZ * np.floor(time + 1e-9)) * (1 + 3 * number)
        samples = 0.5 * np.sin(2 * np.pi * pitch * time).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.tile(samples, (channels, 1)), "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, place, Fraction(1, rate)
        container.mux(track.encode(frame))
        place += count
    container.mux(track.encode(None))


@dataclass
class Heard:
    """What a file holds, decoded from its start to its end."""

    numbers: list[int]
    times_s: list[float]
    size: tuple[int, int]  # width and height as stored
    pixel_aspect: Fraction
    rate: int  # of the sound; 0 without
    channels: int
    sound_start_s: float
    samples: NDArray[np.float32]  # the first channel

    @property
    def sound_end_s(self) -> float:
        return self.sound_start_s + len(self.samples) / self.rate

    def pitch(self, time_s: float, span_s: float = 0.1) -> float:
        """Measure the pitch around a time, Hz; 0 for silence."""
        start = round((time_s - span_s / 2 - self.sound_start_s) * self.rate)
        assert start >= 0
        part = self.samples[start : start + round(span_s * self.rate)]
        if np.abs(part).max(initial=0.0) < 0.05:
            return 0.0
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 17))
        return float(spectrum.argmax() * self.rate / (1 << 17))


def decode(path: Path) -> Heard:
    """Decode a file with nothing but PyAV."""
    numbers: list[int] = []
    times: list[float] = []
    pieces: list[NDArray[np.float32]] = []
    start_s, rate, channels = 0.0, 0, 0
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        zero_s = (container.start_time or 0) / 1e6
        size, aspect = (stream.width, stream.height), stream.sample_aspect_ratio
        for frame in container.decode(video=0):
            numbers.append(number_in(frame.to_ndarray(format="rgb24")))
            times.append(float(frame.pts * frame.time_base) - zero_s)
    with av.open(str(path)) as container:
        for sound in container.decode(audio=0) if container.streams.audio else ():
            if not pieces:
                start_s = float(sound.pts * sound.time_base) - zero_s
                rate, channels = sound.sample_rate, sound.layout.nb_channels
            values = np.asarray(sound.to_ndarray())
            if not sound.format.is_planar:
                values = values.reshape(-1, channels).T
            loudest = np.iinfo(values.dtype).max if values.dtype.kind == "i" else 1
            pieces.append((values[0] / loudest).astype(np.float32))
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return Heard(numbers, times, size, Fraction(aspect or 1), rate, channels, start_s, samples)
