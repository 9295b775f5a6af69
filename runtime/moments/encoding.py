"""Encode some seconds of a video anew, so that they begin and end where they should.

Pictures are turned upright, as players would turn them, and become 8 bits, 4:2:0. HDR and wide
gamuts are mapped to BT.709 as for the model. Other colours keep their tags.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import VideoReadError
from xclip_deploy.runtime.moments.containers import Encoder, OutputFormat, decoding_time
from xclip_deploy.runtime.moments.frames import shown_size
from xclip_deploy.runtime.moments.sound import SoundFormat, samples_between, sound_format
from xclip_deploy.runtime.moments.source import MomentSource, UnsoundError
from xclip_deploy.runtime.video.colour import needs_conversion, to_rgb
from xclip_deploy.runtime.video.containers import check_pixels
from xclip_deploy.runtime.video.matroska import NO_CROP
from xclip_deploy.runtime.video.orientation import orientation_of

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame

_TIME_BASE = Fraction(1, 90_000)  # exact for 24, 25, 30, 50 and 60 frames a second
_UNSPECIFIED = 2  # of ITU-T H.273
_BT709 = 1
_LIMITED, _FULL = 1, 2  # FFmpeg's AVCOL_RANGE_MPEG and AVCOL_RANGE_JPEG
_BITS_PER_CHANNEL = 80_000


class _Picture(NamedTuple):
    """An upright picture, 8 bits, 4:2:0, with even sides."""

    planes: tuple[NDArray[np.uint8], ...]  # Y, U and V
    colours: tuple[int, int, int]  # matrix, transfer and primaries, of ITU-T H.273
    pixel_aspect: Fraction

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.planes[0].shape
        return width, height


def encode(
    source: MomentSource,
    start_s: float,
    end_s: float,
    target: Path,
    form: OutputFormat,
    encoder: Encoder,
    back: int | None,
) -> bool:
    """Write the seconds of a video from ``start_s`` to ``end_s`` to a file.

    Args:
        encoder: Settings of the format's encoder of pictures.
        back: Where decoding begins, see :meth:`MomentSource.shown`.

    Returns:
        Whether the file has sound.

    Raises:
        UnsoundError: ``back`` is 0, and a frame is missing or damaged; or no frame is left.
        VideoReadError: the pixel format cannot be converted.
        av.FFmpegError: the file cannot be written.
    """
    import av

    frames = _pictures(source, start_s, end_s, back, encoder.max_side)
    first = next(frames, None)
    if first is None:
        raise UnsoundError(
            f"{source.path}: no frame could be decoded between {start_s:.3f} s and {end_s:.3f} s"
        )
    options = dict(form.options)
    with av.open(str(target), "w", format=form.muxer, container_options=options) as container:
        pictures = chain([first], frames)
        video = _encoded_video(
            container, source, pictures, first[1], end_s - start_s, form, encoder
        )
        sound = _sound_stream(container, source, start_s, end_s, form)
        streams = [video] if sound is None else [video, sound]
        # Packets are merged by time, so that the muxer need not keep one stream waiting.
        for packet in heapq.merge(*streams, key=decoding_time):
            container.mux(packet)
    return sound is not None


def _pictures(
    source: MomentSource, start_s: float, end_s: float, back: int | None, max_side: int | None
) -> Iterator[tuple[int, _Picture]]:
    """Yield the time of each picture in units of ``_TIME_BASE`` from the start, increasing."""
    total = round((end_s - start_s) / _TIME_BASE)
    last = -1
    for time_s, frame in source.shown(start_s, end_s, back):
        tick = max(round((time_s - start_s) / _TIME_BASE), 0)
        # The first frame of a video that begins after the range stands for what is not there.
        tick = 0 if tick >= total and last < 0 else tick
        if last < tick < total:
            last = tick
            yield tick, _picture(source, frame, max_side)


def _encoded_video(
    container: OutputContainer,
    source: MomentSource,
    pictures: Iterator[tuple[int, _Picture]],
    picture: _Picture,
    length_s: float,
    form: OutputFormat,
    encoder: Encoder,
) -> Iterator[Packet[Any]]:
    """Add the video stream. Return its packets, which are encoded as they are taken.

    ``picture``: the first one, which sets size, colours and pixel aspect.
    """
    rate = Fraction(source.index.frame_rate or 25).limit_denominator(1001)
    stream: Any = container.add_stream(form.video_codec, rate=rate or Fraction(25))
    codec = stream.codec_context
    keeps_aspect = form.keeps_pixel_aspect and encoder.max_side is None
    size = picture.size if keeps_aspect else _square_size(picture, encoder.max_side)
    codec.width, codec.height = size
    codec.pix_fmt = "yuv420p"
    codec.time_base = _TIME_BASE
    codec.sample_aspect_ratio = picture.pixel_aspect if keeps_aspect else Fraction(1)
    codec.colorspace, codec.color_trc, codec.color_primaries = picture.colours
    codec.color_range = _LIMITED
    codec.options = {**codec.options, **encoder.options}
    if encoder.key_frames_s is not None:
        codec.gop_size = max(1, round(rate * encoder.key_frames_s))
    durations: dict[int, int] = {}

    def packets() -> Iterator[Packet[Any]]:
        total = round(length_s / _TIME_BASE)
        tick, shown = next(pictures)
        for next_tick, following in pictures:
            durations[tick] = next_tick - tick
            yield from finished(stream.encode(_frame(shown, tick, size)))
            if following.size != shown.size:
                source.warnings["the resolution changes; the cut has that of its start"] = None
            tick, shown = next_tick, following
        durations[tick] = total - tick
        yield from finished(stream.encode(_frame(shown, tick, size)))
        yield from finished(stream.encode(None))

    def finished(encoded: list[Packet[Any]]) -> Iterator[Packet[Any]]:
        for packet in encoded:
            tick = round((packet.pts or 0) * packet.time_base / _TIME_BASE)
            duration = durations.pop(tick, None)
            if duration is not None:
                packet.duration = round(duration * _TIME_BASE / packet.time_base)
            yield packet

    return packets()


def _square_size(picture: _Picture, max_side: int | None) -> tuple[int, int]:
    """Return the even width and height of a picture stretched to square pixels."""
    width, height = picture.size
    width, height = shown_size((height, width), picture.pixel_aspect, max_side)
    return width + width % 2, height + height % 2


def _frame(shown: _Picture, tick: int, size: tuple[int, int]) -> VideoFrame:
    """Make a frame to encode, of a width and height."""
    from av.video.frame import VideoFrame

    width, height = shown.size
    packed = np.concatenate([plane.reshape(-1) for plane in shown.planes])
    frame = VideoFrame.from_ndarray(packed.reshape(height * 3 // 2, width), format="yuv420p")
    if shown.size != size:
        width, height = size
        frame = frame.reformat(width=width, height=height, interpolation="BICUBIC", threads=1)
    frame.pts, frame.time_base = tick, _TIME_BASE
    return frame


def _picture(source: MomentSource, frame: VideoFrame, max_side: int | None) -> _Picture:
    """Convert a frame to 8 bits, 4:2:0, limited range; crop it and turn it upright.

    ``max_side`` makes a frame that is not cropped smaller first, which spares most of the work.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace

    check_pixels(source.path, frame.width, frame.height)
    colours = _colours(frame)
    decoded = frame
    is_full = frame.color_range == _FULL or frame.format.name.startswith(("yuvj", "gray"))
    try:
        if max_side is not None and source.index.crop == NO_CROP:
            frame = _reduced(frame, max_side)
        if needs_conversion(frame):
            frame, warning = to_rgb(frame)
            if warning:
                source.warnings[warning] = None
        if frame.format.is_rgb or "pal" in frame.format.name:
            colours = _BT709, _BT709, _BT709
            yuv = frame.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation="BICUBIC",
                threads=1,
            )
        else:
            yuv = frame.reformat(
                format="yuv420p",
                src_color_range=ColorRange.JPEG if is_full else ColorRange.MPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation="BICUBIC",
                threads=1,
            )
    except (av.FFmpegError, ValueError) as error:
        raise VideoReadError(
            f"{source.path}: cannot convert pixel format {frame.format.name}: {error}"
        ) from error
    return _upright(source, decoded, yuv, colours)


def _reduced(frame: VideoFrame, max_side: int) -> VideoFrame:
    """Make a frame smaller whose longer side exceeds a limit. Its colours keep their tags."""
    if "pal" in frame.format.name or max(frame.width, frame.height) <= max_side:
        return frame  # swscale makes no palettes
    scale = max_side / max(frame.width, frame.height)
    width, height = (max(2, 2 * round(side * scale / 2)) for side in (frame.width, frame.height))
    return frame.reformat(width=width, height=height, interpolation="BILINEAR", threads=1)


def _upright(
    source: MomentSource, frame: VideoFrame, yuv: VideoFrame, colours: tuple[int, int, int]
) -> _Picture:
    orientation = orientation_of(frame)
    crop = source.index.crop
    planes = []
    for number, plane in enumerate(_planes(yuv)):
        step = 1 if number == 0 else 2
        edges = crop._replace(**{name: value // step for name, value in crop._asdict().items()})
        planes.append(orientation.apply(edges.apply(plane)))
    luma = planes[0]
    # 4:2:0 needs even sides: the last line or column is repeated.
    even = tuple(side + side % 2 for side in luma.shape[:2])
    sizes = (even, *[(even[0] // 2, even[1] // 2)] * 2)
    fitted = tuple(_fitted(plane, size) for plane, size in zip(planes, sizes, strict=True))
    aspect = source.index.pixel_aspect
    return _Picture(fitted, colours, 1 / aspect if orientation.is_transposed else aspect)


def _planes(frame: VideoFrame) -> list[NDArray[np.uint8]]:
    """Return views of the planes of a 4:2:0 frame, without the padding of their lines."""
    return [
        np.frombuffer(memoryview(plane), np.uint8)[: plane.line_size * plane.height].reshape(
            plane.height, plane.line_size
        )[:, : plane.width]
        for plane in frame.planes
    ]


def _fitted(plane: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    plane = plane[: size[0], : size[1]]
    missing = ((0, size[0] - plane.shape[0]), (0, size[1] - plane.shape[1]))
    return np.ascontiguousarray(np.pad(plane, missing, mode="edge"))


def _colours(frame: VideoFrame) -> tuple[int, int, int]:
    if needs_conversion(frame):
        return _BT709, _BT709, _BT709
    matrix, transfer, primaries = frame.colorspace, frame.color_trc, frame.color_primaries
    # 0 stands for RGB, or is reserved.
    return matrix or _UNSPECIFIED, transfer or _UNSPECIFIED, primaries or _UNSPECIFIED


def _sound_stream(
    container: OutputContainer,
    source: MomentSource,
    start_s: float,
    end_s: float,
    form: OutputFormat,
) -> Iterator[Packet[Any]] | None:
    """Add the stream of sound, and return its packets; None where the range has no sound."""
    import av

    if not source.has_sound:
        return None
    try:
        wanted = sound_format(source, form.sound_rates, surround=form.takes_surround)
    except (AttributeError, av.FFmpegError):
        source.warnings["this FFmpeg has no decoder for the sound, which is left out"] = None
        return None
    pieces = samples_between(source, start_s, end_s, wanted)
    first = next(pieces, None)
    if first is None:
        source.warnings["the video has no sound in these seconds"] = None
        return None
    if source.num_sounds > 1:
        source.warnings[f"the first of {source.num_sounds} sounds is kept"] = None
    stream: Any = container.add_stream(form.sound_codec, rate=wanted.rate)
    stream.codec_context.layout = wanted.layout
    stream.codec_context.bit_rate = _BITS_PER_CHANNEL * wanted.channels
    stream.codec_context.time_base = Fraction(1, wanted.rate)
    return _encoded_sound(stream, chain([first], pieces), wanted)


def _encoded_sound(
    stream: Any,  # noqa: ANN401 - an AudioStream whose attributes PyAV forwards
    pieces: Iterator[NDArray[np.float32]],
    form: SoundFormat,
) -> Iterator[Packet[Any]]:
    from av.audio.frame import AudioFrame

    position = 0
    for samples in pieces:
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", form.layout)
        frame.sample_rate, frame.pts = form.rate, position
        frame.time_base = Fraction(1, form.rate)
        position += samples.shape[1]
        yield from stream.encode(frame)
    yield from stream.encode(None)
