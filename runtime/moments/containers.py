"""Containers that cuts are written in, chosen by the ending of a file's name, and encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.media import CutQuality

if TYPE_CHECKING:
    from av.packet import Packet

_AAC_RATES = frozenset(
    (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
)
_OPUS_RATES = frozenset({48_000})
# The index comes first, so that a browser can play the file while it loads.
_INDEX_FIRST = {"movflags": "+faststart"}


@dataclass(frozen=True)
class OutputFormat:
    """A container, and what its streams are encoded with."""

    muxer: str
    """FFmpeg's name of the container."""
    video_codec: str = "libx264"
    """FFmpeg's encoder of the pictures."""
    sound_codec: str = "aac"
    """FFmpeg's encoder of the sound."""
    sound_rates: frozenset[int] = _AAC_RATES
    """Samples per second that the encoder of the sound takes."""
    keeps_pixel_aspect: bool = True
    """Whether PyAV writes the pixel aspect; else pictures are stretched to square pixels."""
    takes_surround: bool = True
    """Whether the sound may have six channels."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the container."""


FORMATS: Mapping[str, OutputFormat] = {
    ".mp4": OutputFormat("mp4", options=_INDEX_FIRST),
    ".m4v": OutputFormat("mp4", options=_INDEX_FIRST),
    ".mov": OutputFormat("mov", options=_INDEX_FIRST),
    ".mkv": OutputFormat("matroska"),
    ".webm": OutputFormat(
        "webm",
        "libvpx-vp9",
        "libopus",
        _OPUS_RATES,
        keeps_pixel_aspect=False,
        takes_surround=False,
    ),
}
"""Formats by the endings of names."""


@dataclass(frozen=True)
class Encoder:
    """Settings of an encoder of pictures."""

    options: Mapping[str, str]
    """Options that FFmpeg knows."""
    max_side: int | None = None
    """Longer side of the pictures, pixels, where they are larger; None keeps their size."""
    key_frames_s: float | None = None
    """Longest time from one key frame to the next, seconds; None leaves it to the encoder."""


# H.264 without B-frames needs no edit list, so that a player's time 0 is the first picture.
ENCODERS: Mapping[tuple[CutQuality, str], Encoder] = {
    ("full", "libx264"): Encoder({"preset": "veryfast", "crf": "18", "bf": "0"}),
    ("full", "libvpx-vp9"): Encoder({"crf": "30", "b": "0", "cpu-used": "5", "row-mt": "1"}),
    # A player waits for these pictures. They are smaller, and short groups make jumps quick.
    ("playback", "libx264"): Encoder(
        {"preset": "superfast", "crf": "23", "bf": "0", "tune": "fastdecode"}, 1280, 1.0
    ),
    ("playback", "libvpx-vp9"): Encoder(
        {"crf": "33", "b": "0", "deadline": "realtime", "cpu-used": "8", "row-mt": "1"}, 1280, 1.0
    ),
}
"""Encoders by purpose and FFmpeg's name."""


def format_of(path: Path) -> OutputFormat:
    """Return the format that a file's ending stands for. Raises InvalidArgumentError."""
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise InvalidArgumentError(
            f"out is {path.name!r:.100}, whose ending names no container that cuts are written "
            f"in; expected one of {', '.join(FORMATS)}"
        )
    return form


def decoding_time(packet: Packet[Any]) -> float:
    """Return when a packet is decoded, seconds. Muxers want packets in this order."""
    time = packet.dts if packet.dts is not None else packet.pts
    return float((time or 0) * packet.time_base)
