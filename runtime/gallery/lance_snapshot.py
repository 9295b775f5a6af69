"""Reader of one version of a gallery's LanceDB table."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xclip_deploy.errors import GalleryIntegrityError
from xclip_deploy.runtime.arrays import FloatArray
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.filter_sql import quoted, to_sql
from xclip_deploy.runtime.gallery.filters import parse_filter
from xclip_deploy.runtime.gallery.flat import FlatVectors
from xclip_deploy.runtime.gallery.lance_errors import lance_errors
from xclip_deploy.runtime.gallery.lance_schema import (
    CONTENT_SHA256,
    FEATURES,
    LISTING,
    array_of,
    matrix_of,
    metadata_types,
    to_features,
    to_videos,
)
from xclip_deploy.runtime.gallery.records import GalleryVideo
from xclip_deploy.runtime.gallery.store import Nearest, NearestMethod, QueryVectors, Rows

VECTOR_INDEX = "video_features_ivf"
"""Prefix of the index's name. The number of partitions follows, which LanceDB does not report."""
_IDS_PER_QUERY = 500
_LISTING_BATCH = 4096


@dataclass(frozen=True)
class SearchLimits:
    """Limits of searches without an index, and of memory.

    The defaults suit a machine with a few gigabytes to spare for a gallery.
    """

    flat_videos: int = 50_000
    """Largest gallery that is searched in full although it has an index."""
    flat_bytes: int = 512 << 20
    """Most memory for ``video_features`` in FP32; beyond it LanceDB reads them at each search."""
    held_bytes: int = 1536 << 20
    """Most memory for all features in FP16; beyond it each exact search reads them from disk."""
    warm_bytes: int = 1536 << 20
    """Most memory for ``video_features`` in FP16 alone. A warmed-up gallery keeps them if all
    features exceed ``held_bytes``."""
    listing_bytes: int = 512 << 20
    """Most memory for the records of all videos, which a warmed-up gallery keeps."""
    partitions: float = 0.1
    """Share of the index's partitions that a query reads."""
    min_partitions: int = 20
    """Least partitions that a query reads."""
    index_from: int = 50_000
    """Number of videos from which ``optimize`` builds an index."""


class LanceSnapshot:
    """A :class:`Snapshot` of a LanceDB table; rows are its row ids at this version."""

    def __init__(self, uri: str, table: Any, limits: SearchLimits) -> None:
        """Read ``table``, which is checked out at the wanted version."""
        self._uri = uri
        self._table = table
        self._limits = limits
        self._lock = threading.Lock()
        with self._reading():
            self._schema: pa.Schema = table.schema
            self._count: int = table.count_rows()
            # A version never gains an index later.
            self._partitions = _partitions_of(table)
        self._flat: FlatVectors | None = None
        self._held: tuple[Rows, VideoFeatures] | None = None
        self._warm: _Columns | None = None
        self._listing: tuple[Rows, pa.Table] | None = None
        dim = self._schema.field("video_features").type.list_size
        frame_values = self._schema.field("frame_features").type.list_size
        self._shape = frame_values // dim, dim
        self._flat_bytes = 4 * dim * self._count
        self._warm_bytes = 2 * dim * self._count
        self._held_bytes = 2 * (dim + frame_values) * self._count

    def __len__(self) -> int:
        return self._count

    @property
    def num_partitions(self) -> int | None:
        """Number of partitions of the index; None without an index."""
        return self._partitions

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        return self._look_up("id", ids)

    def find_content(self, hashes: Sequence[str]) -> dict[str, int]:
        return self._look_up(CONTENT_SHA256, hashes)

    def videos(self, rows: Rows) -> list[GalleryVideo]:
        if self._listing is not None:
            known, table = self._listing
            return to_videos(table.take(np.searchsorted(known, rows)))
        with self._reading():
            return to_videos(self._take(rows, self._listed()))

    def features(self, rows: Rows) -> VideoFeatures:
        if self._held is not None:
            places = np.searchsorted(self._held[0], rows)
            features = self._held[1]
            return VideoFeatures(
                features.video_features[places],
                features.frame_features[places],
                features.num_frames[places],
            )
        warm = self._warm
        if warm is None:
            with self._reading():
                return to_features(self._take(rows, FEATURES))
        places = np.searchsorted(warm.rows, rows)
        vectors = warm.values["video_features"][places]
        with self._reading():
            frames = matrix_of(self._take(rows, ["frame_features"]), "frame_features")
        shape = (len(rows), -1, vectors.shape[1]) if len(rows) else (0, *self._shape)
        return VideoFeatures(vectors, frames.reshape(shape), warm.values["num_frames"][places])

    def video_features(self, rows: Rows) -> FloatArray:
        if self._flat is not None:
            return self._flat.take(rows)
        if self._held is not None:
            known, features = self._held
            return features.video_features[np.searchsorted(known, rows)]
        warm = self._warm
        if warm is not None:
            return warm.values["video_features"][np.searchsorted(warm.rows, rows)]
        with self._reading():
            vectors: FloatArray = matrix_of(self._take(rows, ["video_features"]), "video_features")
            return vectors

    def rows(self) -> Rows:
        return self._read_all(["num_frames"]).rows

    def matching(self, where: str) -> Rows:
        condition = self._condition(where)
        with self._reading():
            query = self._table.search().where(condition).select(["num_frames"]).with_row_id(True)
            return np.sort(_row_ids(query.to_arrow()))

    def nearest(self, queries: QueryVectors, limit: int, where: str | None = None) -> list[Nearest]:
        if self._is_flat():
            allowed = None if where is None else self.matching(where)
            return self._vectors().nearest(queries, limit, allowed)
        condition = None if where is None else self._condition(where)
        method: NearestMethod = "flat" if self._partitions is None else "index"
        found = []
        for query in np.asarray(queries, np.float32):
            table = self._search(query, limit, condition)
            # LanceDB's distance of inner products is 1 - product.
            similarities = 1 - table["_distance"].to_numpy()
            found.append(Nearest(_row_ids(table), similarities.astype(np.float32), method))
        return found

    def held(self) -> tuple[Rows, VideoFeatures] | None:
        if self._held_bytes > self._limits.held_bytes:
            return None
        with self._lock:
            if self._held is None:
                read = self._read_all(FEATURES)
                values = read.values
                frames = values["frame_features"].reshape(-1, *self._shape)
                features = VideoFeatures(values["video_features"], frames, values["num_frames"])
                self._held, self._warm = (read.rows, features), None
            return self._held

    def warm_up(self) -> None:
        if self._is_flat():
            self._vectors()
        if self.held() is None and self._warm_bytes <= self._limits.warm_bytes:
            with self._lock:
                if self._warm is None:
                    self._warm = self._read_all(["num_frames", "video_features"])
        with self._lock:
            if self._listing is None:
                self._listing = self._read_listing()

    def scan(
        self, num_videos: int, where: str | None = None
    ) -> Iterator[tuple[Rows, VideoFeatures]]:
        query = self._all(FEATURES)
        if where is not None:
            query = query.where(self._condition(where))
        with self._reading():
            for batch in query.to_batches(batch_size=num_videos):
                table = pa.Table.from_batches([batch])
                if len(table):
                    yield _row_ids(table), to_features(table)

    def listing(self) -> Iterator[GalleryVideo]:
        with self._reading():
            for batch in self._all(LISTING).to_batches(batch_size=_LISTING_BATCH):
                yield from to_videos(pa.Table.from_batches([batch]))

    def _vectors(self) -> FlatVectors:
        with self._lock:
            if self._flat is None:
                read = self._read_all(["video_features"])
                self._flat = FlatVectors(read.rows, read.values["video_features"])
            return self._flat

    def _read_all(self, columns: Sequence[str]) -> _Columns:
        """Return columns of every video, in the order of their rows."""
        rows = np.empty(self._count, np.int64)
        values: dict[str, npt.NDArray[Any]] = {}
        start = 0
        with self._reading():
            # Each batch is copied at once: joined at the end, all would be in memory twice.
            for batch in self._all(columns).to_batches(batch_size=_LISTING_BATCH):
                table = pa.Table.from_batches([batch])
                part = slice(start, start + len(table))
                rows[part] = _row_ids(table)
                for name in columns:
                    found = array_of(table, name)
                    if name not in values:
                        values[name] = np.empty((self._count, *found.shape[1:]), found.dtype)
                    values[name][part] = found
                start = part.stop
        if start != self._count:
            raise self._changed(start, self._count)
        for name in set(columns) - set(values):  # the gallery is empty
            values[name] = array_of(self._schema.empty_table(), name)
        order = np.argsort(rows, kind="stable")
        if not np.array_equal(order, np.arange(len(order))):
            rows, values = rows[order], {name: array[order] for name, array in values.items()}
        return _Columns(rows, values)

    def _read_listing(self) -> tuple[Rows, pa.Table] | None:
        """Return the records of all videos, ordered by row; None above ``listing_bytes``."""
        batches, size_bytes = [], 0
        with self._reading():
            for batch in self._all(self._listed()).to_batches(batch_size=_LISTING_BATCH):
                size_bytes += batch.nbytes
                if size_bytes > self._limits.listing_bytes:
                    return None
                batches.append(batch)
        if not batches:
            return None
        table = pa.Table.from_batches(batches)
        columns = dict(zip(table.column_names, table.columns, strict=True))
        del table
        batches.clear()
        rows = columns.pop("_rowid").to_numpy().astype(np.int64)
        order = np.argsort(rows, kind="stable")
        is_sorted = np.array_equal(order, np.arange(len(order)))
        for name in columns:  # one by one: all at once would be in memory twice
            columns[name] = columns[name].combine_chunks()
            if not is_sorted:
                columns[name] = columns[name].take(order)
        return rows[order], pa.table(columns)

    def _listed(self) -> list[str]:
        return [*LISTING, *metadata_types(self._schema)]

    def _is_flat(self) -> bool:
        """Tell whether searches compare vectors in memory, without LanceDB."""
        fits = self._flat_bytes <= self._limits.flat_bytes
        return fits and (self._partitions is None or self._count <= self._limits.flat_videos)

    def _search(self, vector: Any, limit: int, condition: str | None) -> pa.Table:
        if limit <= 0:
            limit, condition = 1, "false"  # LanceDB reads 0 as unlimited
        with self._reading():
            query = (
                self._table.search(vector, vector_column_name="video_features")
                .distance_type("dot")
                .limit(limit)
                .select(["_distance"])
                .with_row_id(True)
            )
            if self._partitions is not None:
                share = round(self._partitions * self._limits.partitions)
                query = query.nprobes(max(share, self._limits.min_partitions))
            if condition is not None:
                query = query.where(condition, prefilter=True)
            return query.to_arrow()

    def _look_up(self, column: str, values: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        # A file name may not be UTF-8; no gallery holds such a text.
        texts = [value for value in values if value.encode(errors="replace").decode() == value]
        for start in range(0, len(texts), _IDS_PER_QUERY):
            listed = ", ".join(map(quoted, texts[start : start + _IDS_PER_QUERY]))
            with self._reading():
                query = self._table.search().where(f"{column} in ({listed})")
                table = query.select([column]).with_row_id(True).to_arrow()
                names = table[column].to_pylist()
                found.update(zip(names, map(int, _row_ids(table)), strict=True))
        return found

    def _take(self, rows: Rows, columns: Sequence[str]) -> pa.Table:
        """Read columns of rows, in the order of ``rows``."""
        if not len(rows):
            return pa.schema([self._schema.field(name) for name in columns]).empty_table()
        query = self._table.take_row_ids([int(row) for row in rows])
        table = query.select(list(columns)).with_row_id().to_arrow()
        found = _row_ids(table)
        if np.array_equal(found, rows):
            return table
        places = {int(row): n for n, row in enumerate(found)}
        if len(places) != len(found) or not all(int(row) in places for row in rows):
            raise self._changed(len(found), len(rows))
        return table.take([places[int(row)] for row in rows])

    def _all(self, columns: Sequence[str]) -> Any:
        return self._table.search().select(list(columns)).with_row_id(True)

    def _changed(self, found: int, expected: int) -> GalleryIntegrityError:
        return GalleryIntegrityError(
            f"gallery {self._uri} gave {found} of {expected} videos; "
            "its files were changed while it was open: open it again"
        )

    def _reading(self) -> Any:
        return lance_errors(self._uri, "read")

    def _condition(self, where: str) -> str:
        return to_sql(parse_filter(where, metadata_types(self._schema)))


@dataclass(frozen=True, eq=False)
class _Columns:
    """Columns of all videos in memory."""

    rows: Rows
    """Row ids [N], ascending."""
    values: dict[str, npt.NDArray[Any]]
    """Arrays [N, ...] by column name."""


def _partitions_of(table: Any) -> int | None:
    for index in table.list_indices():
        partitions = index.name.removeprefix(VECTOR_INDEX)
        if index.name.startswith(VECTOR_INDEX) and partitions.isdigit():
            return int(partitions)
    return None


def partitions_for(num_videos: int) -> int:
    """Return the number of partitions of an index, about a thousand videos in each."""
    return min(max(num_videos // 1000, 16), 4096)


def _row_ids(table: pa.Table) -> Rows:
    rows: Rows = table["_rowid"].to_numpy().astype(np.int64)
    return rows
