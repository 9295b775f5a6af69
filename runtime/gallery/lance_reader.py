"""Verified reading of rows of one version of a LanceDB table."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xclip_deploy.errors import GalleryIntegrityError
from xclip_deploy.runtime.gallery.arrow_numbers import from_numbers, to_numbers
from xclip_deploy.runtime.gallery.checksums import RECORDS, Part, Words
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.lance_errors import damaged, lance_errors
from xclip_deploy.runtime.gallery.lance_schema import (
    array_of,
    columns_of,
    is_whole,
)
from xclip_deploy.runtime.gallery.records import Rows

BATCH_ROWS = 4096
_FRAGMENT_ROWS = 1 << 32
"""Row ids of a fragment, LanceDB's unit of writing; later fragments have higher ids."""


@dataclass
class Trust:
    """The rows that this process has verified, as row ids below which all are whole.

    Written rows never change, and new rows have higher ids. So a later version needs no second
    pass over the rows of an earlier one.
    """

    below: dict[tuple[object, ...], int] = field(default_factory=dict)

    def copy(self) -> Trust:
        """Copy what is known, for a later version."""
        return Trust(dict(self.below))


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of all videos in memory."""

    rows: Rows
    """Row ids [N], ascending."""
    values: dict[str, npt.NDArray[Any]]
    """Arrays [N, ...] by column name."""


class RowReader:
    """A reader of rows that verifies each part of a row that it reads.

    Every method raises GalleryIntegrityError for a row that is not as it was written.
    """

    def __init__(self, uri: str, table: Any, trust: Trust) -> None:  # noqa: ANN401
        """Read ``table``, which is checked out at the wanted version."""
        self._uri = uri
        self._table = table
        self.trusted = trust
        self._lock = threading.Lock()
        self._ensured: set[tuple[Part, int]] = set()
        with self.reading():
            self.schema: pa.Schema = table.schema
            self.count: int = table.count_rows()

    def reading(self) -> AbstractContextManager[None]:
        """Translate LanceDB's errors."""
        return lance_errors(self._uri, "read")

    def take(
        self, rows: Rows, parts: Sequence[Part], sums: Mapping[Part, Words] | None = None
    ) -> pa.Table:
        """Read parts of rows, in the order of ``rows``.

        ``sums``: checksums of the rows that were read before. For rows all over a gallery, they
        take LanceDB nearly as long to read as the frames.
        """
        sums = sums or {}
        held = {part.value for part in sums}
        names = [name for name in self._names(parts) if name not in held]
        if not len(rows):
            return pa.schema([self.schema.field(name) for name in names]).empty_table()
        with self.reading():
            query = self._table.take_row_ids([int(row) for row in rows])
            table = query.select(names).with_row_id().to_arrow()
            found = row_ids(table)
            if not np.array_equal(found, rows):
                places = {int(row): n for n, row in enumerate(found)}
                if len(places) != len(found) or not all(int(row) in places for row in rows):
                    raise self._changed(len(found), len(rows))
                table = table.take(from_numbers(np.array([places[int(row)] for row in rows])))
            for part, values in sums.items():
                table = table.append_column(part.value, from_numbers(values))
            self._verify(table, parts)
            return table

    def batches(
        self,
        parts: Sequence[Part],
        condition: str | None = None,
        size: int = BATCH_ROWS,
        sums_of: Sequence[Part] = (),
    ) -> Iterator[pa.Table]:
        """Read parts of all rows, or of those that meet an SQL condition, in batches.

        ``sums_of``: parts whose checksums alone are read, too.
        """
        names = [*self._names(parts), *(part.value for part in sums_of)]
        query = self._table.search().select(names).with_row_id(True)
        if condition is not None:
            query = query.where(condition)
        count = 0
        with self.reading():
            for batch in query.to_batches(batch_size=size):
                if not len(batch):
                    continue
                table = pa.Table.from_batches([batch])
                self._verify(table, parts)
                count += len(table)
                yield table
        if condition is None and count != self.count:
            raise self._changed(count, self.count)

    def matching(self, condition: str) -> pa.Table:
        """Read the records of the rows that meet an SQL condition."""
        with self.reading():
            query = self._table.search().where(condition).select(self._names(RECORDS))
            table = query.with_row_id(True).to_arrow()
            self._verify(table, RECORDS)
            return table

    def first(self, condition: str, part: Part) -> pa.Table:
        """Read a part of one row that meets an SQL condition, if there is one."""
        with self.reading():
            query = self._table.search().where(condition).limit(1).select(self._names([part]))
            table = query.with_row_id(True).to_arrow()
            self._verify(table, [part])
            return table

    def ids_unverified(self) -> Rows:
        """Read all row ids, whatever their number is meant to be."""
        with self.reading():
            query = self._table.search().select(["_rowid"]).with_row_id(True)
            return np.sort(row_ids(query.to_arrow()))

    def read_unverified(self, first: int, last: int, count: int) -> pa.Table:
        """Read all columns of the ``count`` rows from ``first`` to ``last``, ordered by row."""
        with self.reading():
            names = [name for name in self.schema.names if not name.startswith("_row")]
            query = self._table.search().where(f"_rowid >= {first} and _rowid <= {last}")
            table = query.select(names).with_row_id(True).to_arrow()
            if len(table) != count:
                raise self._changed(len(table), count)
            return table.take(from_numbers(np.argsort(row_ids(table), kind="stable")))

    def read_all(self, part: Part | None, *more: Part, sums_of: Sequence[Part] = ()) -> Columns:
        """Read columns of every row, ordered by row; without parts, the row ids alone.

        ``sums_of``: parts whose checksums alone are read, too, for :meth:`take`.
        """
        parts = [] if part is None else [part, *more]
        names = [name for each in parts for name in columns_of(each, self.schema)]
        names += [each.value for each in sums_of]
        rows = np.empty(self.count, np.int64)
        values: dict[str, npt.NDArray[Any]] = {}
        start = 0
        # Each batch is copied at once: joined at the end, all would be in memory twice.
        for table in self.batches(parts, sums_of=sums_of):
            stop = start + len(table)
            if stop > self.count:
                raise self._changed(stop, self.count)
            rows[start:stop] = row_ids(table)
            for name in names:
                found = array_of(table, name)
                if name not in values:
                    values[name] = np.empty((self.count, *found.shape[1:]), found.dtype)
                values[name][start:stop] = found
            start = stop
        for name in set(names) - set(values):  # the gallery is empty
            values[name] = array_of(self.schema.empty_table(), name)
        order = np.argsort(rows, kind="stable")
        if not np.array_equal(order, np.arange(len(order))):
            rows, values = rows[order], {name: array[order] for name, array in values.items()}
        return Columns(rows, values)

    def ensure(self, part: Part, start: int = 0) -> None:
        """Verify a part of all rows from id ``start`` on, unless this process has done so.

        LanceDB searches and filters columns by itself. It must not see damaged values, which could
        hide a row as well as show one. This version never gets more rows, so that the answer is
        remembered: LanceDB takes 10 ms to find that there are none.
        """
        if (part, start) in self._ensured:
            return
        key = self._key(part)
        with self._lock:
            if (part, start) in self._ensured:
                return
            known = self.trusted.below
            below = max(known.get(key, 0), known.get((*key, start), start))
            highest = -1
            condition = f"_rowid >= {below}" if below else None
            for table in self.batches([part], condition):
                highest = max(highest, int(row_ids(table).max()))
            known[(*key, start) if start else key] = max(below, end_of_fragment(highest))
            self._ensured.add((part, start))

    def note_verified(self, parts: Sequence[Part], highest: int) -> None:
        """Note that all rows of this version were verified; ``highest``: the last row's id."""
        below = end_of_fragment(highest)
        with self._lock:
            for part in parts:
                key = self._key(part)
                self.trusted.below[key] = max(below, self.trusted.below.get(key, 0))

    def _key(self, part: Part) -> tuple[object, ...]:
        # A new field adds files to rows that are there.
        return (part, *columns_of(part, self.schema))

    def _names(self, parts: Sequence[Part]) -> list[str]:
        names = [name for part in parts for name in (*columns_of(part, self.schema), part.value)]
        return list(dict.fromkeys(names)) or ["_rowid"]

    def _verify(self, table: pa.Table, parts: Sequence[Part]) -> None:
        for part in parts:
            whole = is_whole(table, part, self.schema)
            if not whole.all():
                found = f"{int((~whole).sum())} of {len(whole)} rows that were read"
                what = part.name.lower()
                raise damaged(self._uri, f"{found} differ from what was written ({what})")

    def _changed(self, found: int, expected: int) -> GalleryIntegrityError:
        return GalleryIntegrityError(
            f"gallery {self._uri} gave {found} of {expected} videos; "
            "its files were changed while it was open: open it again"
        )


def end_of_fragment(row: int) -> int:
    """Return the row id after the last of ``row``'s fragment; 0 for row -1."""
    return (row // _FRAGMENT_ROWS + 1) * _FRAGMENT_ROWS


def row_ids(table: pa.Table) -> Rows:
    """Return the row ids of a table that was read with them."""
    rows: Rows = to_numbers(table["_rowid"]).astype(np.int64)
    return rows


def read_groups(reader: RowReader) -> Groups:
    """Read the video and the place in it of every row. Raises GalleryIntegrityError."""
    ids: list[pa.Array] = []
    rows, segments, times = [], [], []
    for table in reader.batches([Part.SEGMENT]):
        ids += table["id"].chunks
        rows.append(row_ids(table))
        segments.append(to_numbers(table["_segment"]))
        times.append([to_numbers(table[name]) for name in ("_start_s", "_end_s")])  # NaN for null
    if not rows:
        nothing = np.empty(0, np.int64)
        return Groups.of_codes(nothing, nothing, nothing, *np.empty((2, 0)))
    found = np.concatenate(rows)
    codes = to_numbers(pa.concat_arrays(ids).dictionary_encode().indices)
    order = np.argsort(found, kind="stable")
    reader.note_verified([Part.SEGMENT], int(found.max()))
    start_s, end_s = np.concatenate(times, axis=1)[:, order]
    numbers = np.concatenate(segments)[order]
    return Groups.of_codes(found[order], codes[order], numbers, start_s, end_s)
