"""The records of a whole gallery in memory, as a warmed-up gallery keeps them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xclip_deploy.runtime.gallery.arrow_numbers import from_numbers, to_numbers
from xclip_deploy.runtime.gallery.checksums import RECORDS, Part
from xclip_deploy.runtime.gallery.lance_reader import RowReader
from xclip_deploy.runtime.gallery.lance_schema import to_videos
from xclip_deploy.runtime.gallery.records import GalleryVideo, Rows
from xclip_deploy.runtime.gallery.row_places import RowPlaces

_TIMES = "frame_times_s"


class Listing:
    """Records and metadata of all rows of a version. It never changes."""

    def __init__(self, rows: Rows, table: pa.Table) -> None:
        """Keep ``table``, whose rows are ``rows`` [N], ascending, and whose columns are whole."""
        self._table = table
        self._places = RowPlaces(rows)
        times = table[_TIMES].chunk(0)
        self._offsets: npt.NDArray[np.integer[Any]] = to_numbers(times.offsets)
        # Offsets count from the first value of the buffer, of which the column may be a part.
        self._times: npt.NDArray[np.float64] = to_numbers(times.values)

    @classmethod
    def read(cls, reader: RowReader, most_bytes: int) -> Listing | None:
        """Read the records of all rows; None for none, and above ``most_bytes``.

        Raises GalleryIntegrityError.
        """
        tables, size_bytes = [], 0
        parts = [*RECORDS, Part.METADATA]
        for table in reader.batches(parts):
            size_bytes += table.nbytes
            if size_bytes > most_bytes:
                return None
            tables.append(table.drop_columns([part.value for part in parts]))
        if not tables:
            return None
        table = pa.concat_tables(tables)
        columns = dict(zip(table.column_names, table.columns, strict=True))
        del table
        tables.clear()
        rows = to_numbers(columns.pop("_rowid")).astype(np.int64)
        reader.note_verified(parts, int(rows.max()))
        order = np.argsort(rows, kind="stable")
        is_sorted = np.array_equal(order, np.arange(len(order)))
        for name in columns:  # one by one: all at once would be in memory twice
            columns[name] = columns[name].combine_chunks()
            if not is_sorted:
                columns[name] = columns[name].take(from_numbers(order))
        return cls(rows[order], pa.table(columns))

    def videos(self, rows: Rows) -> list[GalleryVideo]:
        """Return the records of existing rows, in their order."""
        return to_videos(self._table.take(from_numbers(self._places.of(rows))))

    def frame_times(self, rows: Rows) -> list[tuple[float, ...]]:
        """Return the times of the valid frames of existing rows, seconds."""
        places = self._places.of(rows)
        # Arrow's own take of a list costs four times as long for the few rows of a page.
        starts, stops = self._offsets[places].tolist(), self._offsets[places + 1].tolist()
        return [
            tuple(self._times[start:stop].tolist())
            for start, stop in zip(starts, stops, strict=True)
        ]
