"""Crop tags and Dolby Vision of Matroska files, which FFmpeg reads and PyAV does not pass on.

A file is a tree of EBML elements: an identifier, a length and content, see RFC 8794. The crop
stands in Segment / Tracks / TrackEntry / Video, see RFC 9559, section 5.1.4.1.28. The record of
Dolby Vision stands in TrackEntry / BlockAdditionMapping, section 5.1.4.1.17.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SEGMENT, _TRACKS, _TRACK, _TYPE, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0x83, 0xE0
_CROPS = {0x54CC: "left", 0x54DD: "right", 0x54BB: "top", 0x54AA: "bottom"}
_VIDEO_TYPE = 1
_MAPPING, _MAPPING_TYPE, _MAPPING_DATA = 0x41E4, 0x41E7, 0x41ED
_DOLBY_TYPES = frozenset(int.from_bytes(name, "big") for name in (b"dvcC", b"dvvC"))
_RECORD_BYTES = 5
_MOST_ELEMENTS = 10_000
"""Elements that are looked at; a file of more without tracks is damaged or hostile."""


class Crop(NamedTuple):
    """Pixels to remove at each edge of a stored picture."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a view of ``picture`` ``[H, W, 3]`` without its edges, if any of it is left."""
        height, width = picture.shape[:2]
        if self.left + self.right >= width or self.top + self.bottom >= height:
            return picture
        return picture[self.top : height - self.bottom, self.left : width - self.right]


NO_CROP = Crop()


def crop_of(path: Path, position: int) -> Crop:
    """Return the crop of a video track; ``NO_CROP`` where the file has none or is damaged.

    Args:
        path: A Matroska or WebM file.
        position: Number of the track among the file's video tracks, counted from 0.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            return _Tree(file).crop(end, position)
    except (OSError, ValueError):
        return NO_CROP


def dolby_vision_of(path: Path, position: int) -> bytes | None:
    """Return the first bytes of a track's record of Dolby Vision; None without one.

    Args:
        path: A Matroska or WebM file.
        position: Number of the track among the file's video tracks, counted from 0.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            return _Tree(file).dolby_vision(end, position)
    except (OSError, ValueError):
        return None


class _Tree:
    """Elements of an open file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MOST_ELEMENTS

    def crop(self, end: int, position: int) -> Crop:
        track = self._track(end, position)
        for video in self._find(_VIDEO, track) if track else ():
            found = {
                _CROPS[name]: self._number(place)
                for name, place in self._elements(*video)
                if name in _CROPS
            }
            return Crop(**found)
        return NO_CROP

    def dolby_vision(self, end: int, position: int) -> bytes | None:
        track = self._track(end, position)
        for mapping in self._find(_MAPPING, track) if track else ():
            places = dict(self._elements(*mapping))
            is_dolby = _MAPPING_TYPE in places and self._number(places[_MAPPING_TYPE])
            if is_dolby in _DOLBY_TYPES and _MAPPING_DATA in places:
                self._file.seek(places[_MAPPING_DATA][0])
                record = self._file.read(_RECORD_BYTES)
                return record if len(record) == _RECORD_BYTES else None
        return None

    def _track(self, end: int, position: int) -> tuple[int, int] | None:
        """Return the place of a video track."""
        for segment in self._find(_SEGMENT, (0, end)):
            for tracks in self._find(_TRACKS, segment):
                videos = [t for t in self._find(_TRACK, tracks) if self._is_video(t)]
                return videos[position] if position < len(videos) else None
        return None

    def _is_video(self, track: tuple[int, int]) -> bool:
        return any(self._number(place) == _VIDEO_TYPE for place in self._find(_TYPE, track))

    def _find(self, name: int, place: tuple[int, int]) -> Iterator[tuple[int, int]]:
        return (inner for found, inner in self._elements(*place) if found == name)

    def _elements(self, start: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """List the elements between two offsets: identifier, start and end of the content."""
        while start < end and self._left > 0:
            self._left -= 1
            self._file.seek(start)
            name, _ = self._variable(keeps_marker=True)
            length, is_unknown = self._variable(keeps_marker=False)
            start = self._file.tell()
            # Live streams leave the length of the segment open.
            stop = end if is_unknown else min(end, start + length)
            yield name, (start, stop)
            start = stop

    def _variable(self, *, keeps_marker: bool) -> tuple[int, bool]:
        """Read a number whose first set bit tells its length; True if all others are ones."""
        first = self._file.read(1)
        if not first or not first[0]:
            raise ValueError("no EBML")
        count = 9 - first[0].bit_length()
        rest = self._file.read(count - 1)
        if len(rest) < count - 1:
            raise ValueError("the file ends")
        value = int.from_bytes(first + rest, "big")
        without_marker = value & ((1 << 7 * count) - 1)
        is_all_ones = without_marker == (1 << 7 * count) - 1
        return value if keeps_marker else without_marker, is_all_ones

    def _number(self, place: tuple[int, int]) -> int:
        start, end = place
        self._file.seek(start)
        return int.from_bytes(self._file.read(min(8, end - start)), "big")
