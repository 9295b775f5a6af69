"""Reading of every row of a gallery that may be damaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from xclip_deploy.errors import GalleryIntegrityError
from xclip_deploy.runtime.arrays import BoolArray, slices
from xclip_deploy.runtime.gallery.checksums import Part
from xclip_deploy.runtime.gallery.lance_reader import BATCH_ROWS, RowReader, row_ids
from xclip_deploy.runtime.gallery.lance_schema import is_whole
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.gallery.reports import Verification
from xclip_deploy.runtime.progress import Progress, ProgressFunction

RowKey: TypeAlias = tuple[str, int] | int
"""Id and segment of a row; its row id where these may be damaged."""


def verify_rows(
    reader: RowReader, files: Sequence[str], progress: ProgressFunction
) -> Verification:
    """Read all rows and name the damaged ones. ``files``: damaged files beside them."""
    lost: list[str] = []
    done = num_videos = 0
    for rows, table in walk(reader):
        done += len(rows)
        if table is None:
            lost += [f"row {row}" for row in rows]
            num_videos += len(rows)
        else:
            lost += damaged_names(reader, table)
            num_videos += sum(segment == 0 for segment in table["_segment"].to_pylist())
        progress(Progress("verifying", done, reader.count, failed=len(lost)))
    return Verification(num_videos, tuple(lost), tuple(files))


def walk(reader: RowReader) -> Iterator[tuple[Rows, pa.Table | None]]:
    """Read all rows with all columns, without verifying them; None for a row that is not there.

    LanceDB reads pages of many rows. Where it fails, halves are read, down to single rows. Raises
    GalleryIntegrityError if not even the row ids can be read.
    """
    rows = reader.ids_unverified()
    for part in slices(len(rows), BATCH_ROWS):
        yield from _read(reader, rows[part])


def whole_rows(reader: RowReader, table: pa.Table) -> BoolArray:
    """Tell for each row of a table with all columns whether all its parts are whole."""
    whole = np.ones(len(table), np.bool_)
    for part in Part:
        whole &= _part_is_whole(reader, table, part)
    return whole


def damaged_names(reader: RowReader, table: pa.Table) -> list[str]:
    """Name the damaged rows of a table by id, or by row if the id may be damaged."""
    lost = np.flatnonzero(~whole_rows(reader, table))
    return [key_name(key) for key in keys_of(reader, table.take(pa.array(lost)))]


def keys_of(reader: RowReader, table: pa.Table) -> list[RowKey]:
    """Return the key of each row of a table."""
    if not len(table):
        return []
    is_named = _part_is_whole(reader, table, Part.SEGMENT)
    rows = row_ids(table)
    return [
        (table["id"][n].as_py(), table["_segment"][n].as_py()) if is_named[n] else int(rows[n])
        for n in range(len(table))
    ]


def key_name(key: RowKey) -> str:
    """Name a row in reports: by its video, or as ``row N``."""
    if isinstance(key, int):
        return f"row {key}"
    name, segment = key
    return f"{name}, segment {segment}" if segment else name


def _read(reader: RowReader, rows: Rows) -> Iterator[tuple[Rows, pa.Table | None]]:
    try:
        yield rows, reader.read_unverified(int(rows[0]), int(rows[-1]), len(rows))
    except GalleryIntegrityError:
        if len(rows) == 1:
            yield rows, None
            return
        middle = len(rows) // 2
        yield from _read(reader, rows[:middle])
        yield from _read(reader, rows[middle:])


def _part_is_whole(reader: RowReader, table: pa.Table, part: Part) -> BoolArray:
    """Tell for each row whether a part is whole; a column that defies hashing is not."""
    try:
        with reader.reading():
            return is_whole(table, part, reader.schema)
    except GalleryIntegrityError:
        if len(table) > 1:
            parts = [_part_is_whole(reader, table.slice(n, 1), part) for n in range(len(table))]
            return np.concatenate(parts)
        return np.zeros(len(table), np.bool_)
