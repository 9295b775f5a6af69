"""64-bit checksums of a gallery's rows.

Each row carries five checksums, so that a reader verifies what it reads and reads nothing else::

    _check_record     id, files, content, duration, frame times, num_frames, version of reading
    _check_segment    id, place of the row in its video, policy of segmentation
    _check_metadata   the user's own fields, those without a value left out
    _check_video      num_frames, video_features
    _check_frames     frame_features

Features hash as Σ w_k m_k mod 2^64, over the row's 64-bit words w and fixed odd numbers m. A change
within one word always changes the sum, as an odd m is invertible. Texts and lists hash as
polynomials Σ b_k r^k with an odd r, which prefix sums give for all rows at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import Enum
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xclip_deploy.runtime.gallery.arrow_numbers import (
    in_one_piece,
    is_null,
    to_numbers,
    with_zeros,
)
from xclip_deploy.runtime.gallery.records import RECORD_COLUMNS, SEGMENT_COLUMNS

Words: TypeAlias = npt.NDArray[np.uint64]

_LONG_TEXT = 4096
"""Bytes of a text from which it is hashed by itself, with BLAKE2b."""
_BYTES_AT_ONCE = 1 << 20
"""Bytes of texts, or of the hashes of lists' elements, that are hashed at a time. The tables of
powers, which stay in memory, hold at most twice as many numbers unless one list is longer."""
_RATIO = np.uint64(0x9E3779B97F4A7C15)
_BASE = 0xD1342543DE82EF95
"""The polynomials' r; r mod 8 = 5, so that its powers repeat after 2^62."""
_NULL = np.uint64(0x5851F42D4C957F2D)
_LENGTH = np.uint64(0xA0761D6478BD642F)
_MASK = (1 << 64) - 1


class Part(Enum):
    """A part of a row with a checksum of its own; the value names the checksum's column."""

    RECORD = "_check_record"
    SEGMENT = "_check_segment"
    METADATA = "_check_metadata"
    VIDEO = "_check_video"
    FRAMES = "_check_frames"


COLUMNS: dict[Part, tuple[str, ...]] = {
    Part.RECORD: RECORD_COLUMNS,
    Part.SEGMENT: ("id", *SEGMENT_COLUMNS),
    Part.METADATA: (),
    Part.VIDEO: ("num_frames", "video_features"),
    Part.FRAMES: ("frame_features",),
}
"""Columns of each part; those of the metadata are the gallery's own."""

RECORDS = (Part.RECORD, Part.SEGMENT)
"""Parts of a row's record, apart from the metadata."""


def checksums(table: pa.Table, columns: Sequence[str]) -> Words:
    """Compute a checksum of ``columns`` for each row of ``table``: uint64 [N].

    A value that is null counts nothing in a column of metadata, so that a new field leaves the
    checksums as they are. The same holds for the reading version, which came later. In the
    gallery's other columns it counts like a value.
    """
    total = np.zeros(len(table), np.uint64)
    for name in columns:
        array = in_one_piece(table[name])
        hashed = _mix(_hash(array) ^ _seed(name))
        if array.null_count and name not in _OWN:
            hashed[is_null(array)] = 0
        total += hashed
    return _mix(total)


def vector_checksums(vectors: npt.NDArray[np.generic], name: str) -> Words:
    """Compute what :func:`checksums` does for one column of vectors [N, n], none of them null."""
    return _mix(_mix(_hash_vectors(vectors) ^ _seed(name)))


_OWN = frozenset(name for names in COLUMNS.values() for name in names)


def _hash(array: pa.Array) -> Words:
    """Hash each value of an array, by the bits of numbers and the bytes of texts."""
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        values = to_numbers(array.flatten())
        hashed = _hash_vectors(values.reshape(-1, kind.list_size))
    elif pa.types.is_list(kind):
        hashed = _hash_lists(array)
    elif pa.types.is_string(kind):
        hashed = _hash_texts(array)
    else:
        hashed = _mix(_bits(array))
    if array.null_count:
        hashed[is_null(array)] = _NULL
    return hashed


def _hash_vectors(vectors: npt.NDArray[np.generic]) -> Words:
    """Hash the rows of a matrix: Σ w_k m_k mod 2^64 over their 64-bit words."""
    count = len(vectors)
    row_bytes = vectors.shape[1] * vectors.itemsize
    if not count or not row_bytes:
        return np.zeros(count, np.uint64)
    raw = np.ascontiguousarray(vectors).view(np.uint8).reshape(count, row_bytes)
    if row_bytes % 8:
        raw = np.pad(raw, ((0, 0), (0, -row_bytes % 8)))
    if raw.ctypes.data % 8:  # a slice of an Arrow buffer
        raw = raw.copy()
    words = raw.view(np.uint64)
    # einsum multiplies 20 GB/s; the product @ of integers is a plain loop.
    hashed: Words = np.einsum("ij,j->i", words, _multipliers(words.shape[1]))
    return _mix(hashed)


def _hash_lists(array: pa.Array) -> Words:
    """Hash lists of numbers or texts, by the hashes of their elements."""
    lengths = with_zeros(pc.list_value_length(array))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    hashed = np.empty(len(array), np.uint64)
    start = 0
    while start < len(array):
        # As many lists as fit, or one long one.
        most = offsets[start] + _BYTES_AT_ONCE // 8
        stop = max(int(np.searchsorted(offsets, most, "right")) - 1, start + 1)
        flat = _hash(in_one_piece(array.slice(start, stop - start).flatten()))
        hashed[start:stop] = _hash_runs(flat, offsets[start : stop + 1] - offsets[start])
        start = stop
    return hashed


def _hash_texts(array: pa.Array) -> Words:
    """Hash texts by their UTF-8 bytes."""
    without_null = pc.fill_null(array, _empty_text()) if array.null_count else array
    filled = without_null.cast(pa.large_binary())
    offsets = np.frombuffer(filled.buffers()[1], np.int64)
    offsets = offsets[filled.offset : filled.offset + len(filled) + 1]
    data = filled.buffers()[2]
    raw = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    hashed = np.empty(len(array), np.uint64)
    lengths = np.diff(offsets)
    is_long = lengths > _LONG_TEXT
    start = 0
    while start < len(array):
        # As many short texts as fit, or one long one.
        stop = int(np.searchsorted(offsets, offsets[start] + _BYTES_AT_ONCE, "right")) - 1
        stop = min(max(stop, start + 1), len(array))
        if is_long[start:stop].any():
            first_long = start + int(is_long[start:stop].argmax())
            stop = max(first_long, start + 1)
        if is_long[start]:
            hashed[start] = _number(raw[offsets[start] : offsets[start + 1]].tobytes())
        else:
            here = offsets[start : stop + 1]
            values = raw[here[0] : here[-1]].astype(np.uint64) + np.uint64(1)
            hashed[start:stop] = _hash_runs(values, here - here[0])
        start = stop
    return hashed


def _hash_runs(values: Words, offsets: npt.NDArray[np.int64]) -> Words:
    """Hash runs of ``values`` between ``offsets`` [N + 1]: Σ v_k r^k, k from each run's start."""
    powers, inverses = _powers(_room(len(values) + 1))
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    starts, stops = offsets[:-1], offsets[1:]
    runs = (sums[stops] - sums[starts]) * inverses[starts]
    return _mix(runs + (stops - starts).astype(np.uint64) * _LENGTH)


def _bits(array: pa.Array) -> Words:
    """Return the bits of numbers and truth values, 0 for null."""
    values = with_zeros(array)
    unsigned = values.view(f"u{values.itemsize}")
    bits: Words = unsigned.astype(np.uint64)
    return bits


def _mix(values: Words) -> Words:
    """Scramble 64-bit numbers, one to one: the last steps of SplitMix64."""
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


@cache
def _empty_text() -> pa.Scalar:
    buffers = [None, pa.py_buffer(bytes(8)), pa.py_buffer(b"")]
    return pa.Array.from_buffers(pa.string(), 1, buffers)[0]


@cache
def _multipliers(count: int) -> Words:
    """Return fixed odd numbers that look random."""
    numbers: Words = _mix(np.arange(1, count + 1, dtype=np.uint64) * _RATIO) | np.uint64(1)
    return numbers


@cache
def _powers(count: int) -> tuple[Words, Words]:
    """Return r^k and r^-k mod 2^64 for k < ``count``."""
    return _geometric(_BASE, count), _geometric(pow(_BASE, -1, 1 << 64), count)


def _geometric(ratio: int, count: int) -> Words:
    series = np.full(count, ratio & _MASK, np.uint64)
    series[0] = 1
    powers: Words = np.cumprod(series, dtype=np.uint64)
    return powers


def _room(count: int) -> int:
    """Round up to a power of two, so that few tables of powers are made."""
    return max(1 << 12, 1 << (count - 1).bit_length())


@cache
def _seed(name: str) -> np.uint64:
    seed: np.uint64 = np.uint64(_number(name.encode()))
    return seed


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
