"""Clean apertures and Dolby Vision of MP4 and MOV files, which PyAV does not pass on.

A file is a tree of boxes: a size, a type and content, see ISO/IEC 14496-12, section 4.2. Both
stand in the sample entry of a track: moov / trak / mdia / minf / stbl / stsd.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from xclip_deploy.runtime.video.matroska import NO_CROP, Crop

_MOST_BOXES = 10_000
"""Boxes that are looked at; a file of more before its sample entry is damaged or hostile."""
_TO_SAMPLES = (b"mdia", b"minf", b"stbl", b"stsd")
_ENTRY_BYTES = 8 + 78
"""Header and fields of a video sample entry, before the boxes that it holds."""
_DOLBY_BOXES = (b"dvcC", b"dvvC", b"dvwC")
_RECORD_BYTES = 5
_SINGLE_LAYER, _MAY_BE_COMPATIBLE = 5, frozenset({10, 20})
"""Profiles of Dolby Vision: 5 is for its decoders alone, 10 and 20 are where their record says
so."""

Place = tuple[int, int]
"""Start and end of a box's content, in bytes."""


def clean_aperture_of(path: Path, track_id: int, width: int, height: int) -> Crop:
    """Return what the clean aperture of a video track hides; ``NO_CROP`` where it has none.

    A damaged file, and an aperture that lies outside the picture, have none.

    Args:
        path: An MP4 or MOV file.
        track_id: Number of the track in its header.
        width: Width of a stored picture, pixels.
        height: Height of a stored picture, pixels.
    """
    content = _box_of(path, track_id, (b"clap",), 32)
    if content is None:
        return NO_CROP
    numbers = struct.unpack(">IIIIiIiI", content)
    if 0 in numbers[1::2]:
        return NO_CROP
    wide, high, across, down = (
        Fraction(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)
    )
    # The offsets are between the centres of the picture and of the aperture.
    left = round((width - wide) / 2 + across)
    top = round((height - high) / 2 + down)
    crop = Crop(left, width - left - round(wide), top, height - top - round(high))
    return crop if wide > 0 < high and min(crop) >= 0 else NO_CROP


def dolby_vision_of(path: Path, track_id: int) -> bytes | None:
    """Return the first bytes of a track's record of Dolby Vision; None without one."""
    return _box_of(path, track_id, _DOLBY_BOXES, _RECORD_BYTES)


def is_compatible(record: bytes) -> bool:
    """Return whether a decoder without Dolby Vision shows its video in the right colours.

    Args:
        record: First five bytes of the record: version, profile, level, layers, compatibility.
    """
    profile, compatibility = record[2] >> 1, record[4] >> 4
    return profile != _SINGLE_LAYER and not (profile in _MAY_BE_COMPATIBLE and compatibility == 0)


def _box_of(path: Path, track_id: int, kinds: tuple[bytes, ...], size: int) -> bytes | None:
    """Read the first ``size`` bytes of a box in the sample entry of a track."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            return _Boxes(file).read_from_entry(end, track_id, kinds, size)
    except (OSError, struct.error):
        return None


class _Boxes:
    """Boxes of an open file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MOST_BOXES

    def read_from_entry(
        self, end: int, track_id: int, kinds: tuple[bytes, ...], size: int
    ) -> bytes | None:
        for movie in self._find((b"moov",), (0, end)):
            for track in self._find((b"trak",), movie):
                if self._track_id(track) != track_id:
                    continue
                place: Place | None = track
                for kind in _TO_SAMPLES:
                    place = next(self._find((kind,), place), None) if place else None
                if place is None:
                    return None
                # Version, flags and number of entries come first; then the entries.
                entry = place[0] + 8
                (length,) = struct.unpack(">I", self._read(entry, 4))
                inner = (entry + _ENTRY_BYTES, min(place[1], entry + length))
                found = next(self._find(kinds, inner), None)
                return self._read(found[0], size) if found else None
        return None

    def _track_id(self, track: Place) -> int | None:
        for start, _ in self._find((b"tkhd",), track):
            # Times take 4 bytes each in version 0, 8 in version 1.
            (version,) = self._read(start, 1)
            (number,) = struct.unpack(">I", self._read(start + (20 if version else 12), 4))
            return int(number)
        return None

    def _find(self, kinds: tuple[bytes, ...], place: Place) -> Iterator[Place]:
        start, end = place
        while start + 8 <= end and self._left > 0:
            self._left -= 1
            size, kind = struct.unpack(">I4s", self._read(start, 8))
            header = 8
            if size == 1:
                (size,) = struct.unpack(">Q", self._read(start + 8, 8))
                header = 16
            stop = end if size == 0 else min(end, start + size)
            if size and size < header:
                return
            if kind in kinds:
                yield start + header, stop
            start = stop

    def _read(self, start: int, size: int) -> bytes:
        """Read exactly ``size`` bytes. Raises struct.error where the file ends before."""
        self._file.seek(start)
        content = self._file.read(size)
        if len(content) < size:
            raise struct.error("the file ends")
        return content
