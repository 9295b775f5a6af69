"""Direct reading of rows of a column of vectors from a table's files.

A two-stage search reads the frames of a few hundred rows all over a gallery. LanceDB takes 7 to
12 ms for 300 rows that the system's cache holds, most of it for planning; the bytes themselves
take one. A column of vectors lies in Lance's files as plain pages: row after row, without
compression. Their places are in the version's manifest and in each file's footer
(https://lance.org/format).

Nothing rests on this but speed. The caller compares each row with its checksum, and lets LanceDB
read what is not as expected. A layout that is not the plain one is left to LanceDB from the start.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.gallery.commit_record import TABLE, find_manifest
from xclip_deploy.runtime.gallery.records import Rows

_MAGIC = b"LANC"
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
_FRAGMENT_BITS = 32
"""A row id is the number of a fragment, then that of the row in it."""
_MOST_FILES = 64
"""Most files that are kept open. ``optimize`` merges those of many small additions."""
_MOST_BYTES = 1 << 28
"""Largest manifest or description of a column that is read."""
_FIELDS, _FRAGMENTS = 1, 2
_FIELD_NAME, _FIELD_ID = 2, 3
_FRAGMENT_ID, _FRAGMENT_FILES = 1, 2
_FILE_PATH, _FILE_FIELDS, _FILE_COLUMNS, _FILE_OTHERS = 1, 2, 3, {4, 5, 6}
_COLUMN_PAGES = 2
_PAGE_OFFSETS, _PAGE_SIZES, _PAGE_LENGTH, _PAGE_FIRST = 1, 2, 3, 5
"""Numbers of the fields of Lance's messages, which are Protocol Buffers."""
_Message: TypeAlias = list[tuple[int, int | bytes]]


class PagedColumn:
    """The places of a column's rows in the files of one version, which stay open."""

    def __init__(
        self, descriptors: Sequence[int], pages: npt.NDArray[np.int64], row_bytes: int
    ) -> None:
        """Read from open files.

        ``pages`` [P, 4]: first row id, number of rows, offset in the file in bytes, and place of
        the file in ``descriptors``; ordered by row.
        """
        self._descriptors = list(descriptors)
        self._firsts, self._counts, self._offsets, self._files = np.ascontiguousarray(pages.T)
        self._row_bytes = row_bytes
        weakref.finalize(self, _close, self._descriptors)

    @classmethod
    def open(cls, gallery: Path, version: int, column: str, row_bytes: int) -> PagedColumn | None:
        """Find the pages of a column in one version; None where they are not plain.

        ``row_bytes``: size of a value. Raises nothing: what cannot be read is left to LanceDB.
        """
        descriptors: list[int] = []
        try:
            manifest = find_manifest(gallery, version)
            if manifest is None:
                return None
            pages = []
            for fragment, name, number in _files(_manifest(manifest), column):
                if len(descriptors) == _MOST_FILES:
                    raise ValueError(f"the column is in more than {_MOST_FILES} files")
                path = gallery / f"{TABLE}.lance" / "data" / name
                descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                for first, count, offset in _pages(descriptors[-1], number, row_bytes):
                    row = (fragment << _FRAGMENT_BITS) + first
                    pages.append((row, count, offset, len(descriptors) - 1))
            if not pages:
                raise ValueError("the column has no pages")
            return cls(descriptors, np.array(sorted(pages), np.int64), row_bytes)
        except (OSError, ValueError, LookupError, TypeError, OverflowError, struct.error):
            _close(descriptors)
            return None

    def read(self, rows: Rows) -> npt.NDArray[np.uint8] | None:
        """Read rows as they are: uint8 [n, row_bytes]; None if one is not there."""
        pages = np.searchsorted(self._firsts, rows, "right") - 1
        within = rows - self._firsts[pages]
        if not len(rows) or pages.min() < 0 or (within >= self._counts[pages]).any():
            return None
        size = self._row_bytes
        offsets, files = self._offsets[pages] + within * size, self._files[pages]
        # Neighbours are read at once.
        breaks = np.flatnonzero((np.diff(offsets) != size) | (np.diff(files) != 0)) + 1
        starts = np.concatenate([[0], breaks])
        lengths = np.diff(np.append(starts, len(rows))) * size
        runs = list(
            zip(
                (starts * size).tolist(),
                lengths.tolist(),
                offsets[starts].tolist(),
                [self._descriptors[file] for file in files[starts].tolist()],
                strict=True,
            )
        )
        out = np.empty((len(rows), size), np.uint8)
        view = out.reshape(-1).data
        missing = [run for run in runs if not _read_cached(view, *run)] if _NOWAIT else runs
        try:
            if hasattr(os, "posix_fadvise"):
                # The disk gets all requests at once.
                for _, length, offset, file in missing:
                    os.posix_fadvise(file, offset, length, os.POSIX_FADV_WILLNEED)
            for start, length, offset, file in missing:
                if os.preadv(file, [view[start : start + length]], offset) != length:
                    return None
        except (OSError, OverflowError):
            return None
        return out


def _read_cached(view: memoryview, start: int, length: int, offset: int, file: int) -> bool:
    """Read what the system's cache holds; tell whether that is all of it."""
    try:
        return os.preadv(file, [view[start : start + length]], offset, _NOWAIT) == length
    except (OSError, OverflowError):  # not there, or a file system that cannot tell
        return False


def _manifest(path: Path) -> _Message:
    """Parse a version's manifest: the message stands where its last 16 bytes say."""
    content = path.read_bytes()
    if len(content) > _MOST_BYTES or content[-4:] != _MAGIC:
        raise ValueError("no manifest of Lance")
    (place,) = struct.unpack("<q", content[-16:-8])
    (size,) = struct.unpack_from("<I", content, place)
    return _parsed(content[place + 4 : place + 4 + size])


def _files(manifest: _Message, column: str) -> Iterator[tuple[int, str, int]]:
    """Yield for each fragment its number, its file with the column, and the column's place there.

    Raises ValueError for files that lie elsewhere than in the table's folder.
    """
    wanted = -1
    for content in _all(manifest, _FIELDS):
        field = dict(_parsed(content))
        if field.get(_FIELD_NAME) == column.encode():
            wanted = _whole(field.get(_FIELD_ID, 0))
    for content in _all(manifest, _FRAGMENTS):
        fragment = _parsed(content)
        number = _whole(dict(fragment).get(_FRAGMENT_ID, 0))
        for entry in _all(fragment, _FRAGMENT_FILES):
            file = dict(_parsed(entry))
            if file.keys() - {_FILE_PATH, _FILE_FIELDS, _FILE_COLUMNS} - _FILE_OTHERS:
                raise ValueError("a file of a kind that is not known")
            fields = _numbers(file[_FILE_FIELDS])
            if wanted in fields:
                place = _numbers(file[_FILE_COLUMNS])[fields.index(wanted)]
                name = _bytes(file[_FILE_PATH]).decode()
                if Path(name).name != name:
                    raise ValueError("a file outside the folder")
                yield number, name, place
                break
        else:
            raise ValueError("a fragment without the column")


def _pages(file: int, column: int, row_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield first row, number of rows and offset of each page of a column of a file.

    Raises ValueError for a page that is not one buffer of whole rows.
    """
    footer = os.pread(file, 40, os.fstat(file).st_size - 40)
    _, table, _, _, columns, _, _ = struct.unpack("<QQQIIHH", footer[:36])
    if footer[36:] != _MAGIC or column >= columns:
        raise ValueError("no file of Lance with this column")
    place, size = struct.unpack("<QQ", os.pread(file, 16, table + 16 * column))
    if size > _MOST_BYTES:
        raise ValueError("a description of this size is damaged")
    for content in _all(_parsed(os.pread(file, size, place)), _COLUMN_PAGES):
        page = dict(_parsed(content))
        count = _whole(page[_PAGE_LENGTH])
        # Empty buffers hold the levels of columns with lists or nulls.
        offsets, sizes = _numbers(page[_PAGE_OFFSETS]), _numbers(page[_PAGE_SIZES])
        if len(offsets) != 1 or sizes != [count * row_bytes]:
            raise ValueError("a page that is not plain")
        yield _whole(page.get(_PAGE_FIRST, 0)), count, offsets[0]


def _parsed(content: bytes) -> _Message:
    """Parse a message of Protocol Buffers: numbers of fields, with numbers or bytes."""
    found: _Message = []
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        if tag & 7 == 0:
            value, place = _varint(content, place)
            found.append((tag >> 3, value))
            continue
        if tag & 7 == 2:
            size, place = _varint(content, place)
        else:
            size = {1: 8, 5: 4}[tag & 7]
        if place + size > len(content):
            raise ValueError("a message is cut off")
        found.append((tag >> 3, content[place : place + size]))
        place += size
    return found


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Read a number of seven bits a byte; return it and the place after it."""
    number = shift = 0
    while True:
        byte = content[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
        shift += 7


def _all(message: _Message, field: int) -> list[bytes]:
    return [_bytes(value) for number, value in message if number == field]


def _numbers(value: int | bytes) -> list[int]:
    """Return the numbers of a repeated field, which is packed."""
    content, place, found = _bytes(value), 0, []
    while place < len(content):
        number, place = _varint(content, place)
        found.append(number)
    return found


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where a message belongs")
    return value


def _whole(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise TypeError("a message where a number belongs")
    return value


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
