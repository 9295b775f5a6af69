"""Reader of one version of a gallery's LanceDB table."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xclip_deploy.runtime.arrays import FloatArray
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.arrow_numbers import from_numbers, to_numbers
from xclip_deploy.runtime.gallery.checksums import RECORDS, Part
from xclip_deploy.runtime.gallery.commit_record import damaged_files, missing_files
from xclip_deploy.runtime.gallery.filter_sql import named_sql, outside, quoted, to_sql
from xclip_deploy.runtime.gallery.filters import parse_filter
from xclip_deploy.runtime.gallery.flat import FlatVectors
from xclip_deploy.runtime.gallery.groups import Groups, in_order
from xclip_deploy.runtime.gallery.lance_commits import CommittedTable
from xclip_deploy.runtime.gallery.lance_errors import damaged, lance_errors
from xclip_deploy.runtime.gallery.lance_listing import Listing
from xclip_deploy.runtime.gallery.lance_reader import (
    RowReader,
    Trust,
    read_groups,
    row_ids,
)
from xclip_deploy.runtime.gallery.lance_schema import (
    CONTENT_SHA256,
    matrix_of,
    metadata_types,
    to_features,
    to_videos,
)
from xclip_deploy.runtime.gallery.lance_warm import WarmFeatures
from xclip_deploy.runtime.gallery.records import GalleryVideo, Rows, has_name
from xclip_deploy.runtime.gallery.row_places import RowPlaces
from xclip_deploy.runtime.gallery.store import (
    FeatureKeys,
    Nearest,
    NearestMethod,
    QueryVectors,
    SearchLimits,
)

COLUMN_INDICES = {"id": "id_idx", CONTENT_SHA256: "fingerprint_idx"}
"""Names of the indices by which videos are looked up, by column."""
VECTOR_INDEX = "video_features_ivf"
"""Prefix of the index's name. The number of partitions follows, which LanceDB does not report."""
_IDS_PER_QUERY = 500


class LanceSnapshot:
    """A :class:`Snapshot` of a LanceDB table; rows are its row ids at this version."""

    def __init__(
        self, committed: CommittedTable, limits: SearchLimits, trust: Trust, whole_files: set[str]
    ) -> None:
        """Open the newest recorded version.

        ``trust``: rows that were verified already; it learns of those that are verified here.
        ``whole_files``: files that were, likewise. Raises GalleryIntegrityError.
        """
        self._uri = committed.uri
        self._directory, self._record = committed.directory, committed.record
        self._whole_files = whole_files
        self._check_files({} if self._record is None else self._record.deletions)
        self._table = committed.at_version()
        self.reader = RowReader(self._uri, self._table, trust)
        self._limits = limits
        self._lock = threading.Lock()
        self._schema, self._count = self.reader.schema, self.reader.count
        with self.reader.reading():
            # A version never gains an index later.
            names = [index.name for index in self._table.list_indices()]
        self._partitions = _partitions_of(names)
        indexed_below = 0 if self._record is None else self._record.indexed_below
        self._found_below = {
            column: indexed_below for column, name in COLUMN_INDICES.items() if name in names
        }
        self._vectors_below = 0 if self._partitions is None else indexed_below
        self._flat: FlatVectors | None = None
        self._held: tuple[Rows, VideoFeatures, RowPlaces] | None = None
        self._warm: WarmFeatures | None = None
        self._listing: Listing | None = None
        self._segmentation: tuple[str | None] | None = None
        self._groups: Groups | None = None
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

    @property
    def segmentation(self) -> str | None:
        with self._lock:
            if self._segmentation is None:
                found = self.reader.first("_segmentation is not null", Part.SEGMENT)
                self._segmentation = (
                    found["_segmentation"].to_pylist()[0] if len(found) else None,
                )
            return self._segmentation[0]

    @property
    def num_videos(self) -> int:
        groups = self.groups()
        return self._count if groups is None else len(groups)

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        return {name: min(places)[1] for name, places in self._look_up("id", ids).items()}

    def find_content(self, hashes: Sequence[str]) -> dict[str, int]:
        found = self._look_up(CONTENT_SHA256, hashes)
        return {name: min(places)[1] for name, places in found.items()}

    def named(self, paths: Sequence[str], name: str | None) -> list[GalleryVideo]:
        self._check_indices()
        for part in RECORDS:
            self.reader.ensure(part)
        table = self.reader.matching(named_sql(paths, name))
        with self.reader.reading():
            videos = to_videos(table.take(from_numbers(np.argsort(row_ids(table)))))
        return [video for video in videos if has_name(video, paths, name)]

    def segments(self, ids: Sequence[str]) -> dict[str, Rows]:
        return {name: in_order(places) for name, places in self._look_up("id", ids).items()}

    def places(self, ids: Sequence[str]) -> dict[tuple[str, int], int]:
        """Return the row of each segment of these ids, by id and segment."""
        found = self._look_up("id", ids)
        return {(name, n): row for name, places in found.items() for n, row in places}

    def groups(self) -> Groups | None:
        if self.segmentation in (None, "whole"):
            return None
        with self._lock:
            if self._groups is None:
                self._groups = read_groups(self.reader)
            return None if len(self._groups) == self._count else self._groups

    def videos(self, rows: Rows) -> list[GalleryVideo]:
        if self._listing is not None:
            return self._listing.videos(rows)
        table = self.reader.take(rows, [*RECORDS, Part.METADATA])
        with self.reader.reading():
            return to_videos(table)

    def frame_times(self, rows: Rows) -> list[tuple[float, ...]]:
        if self._listing is not None:
            return self._listing.frame_times(rows)
        table = self.reader.take(rows, [Part.RECORD])
        return [tuple(times_s) for times_s in table["frame_times_s"].to_pylist()]

    def features(self, rows: Rows) -> VideoFeatures:
        if self._held is not None:
            _, features, places = self._held
            return features[places.of(rows)]
        if (warm := self._warm) is not None:  # another thread may drop it
            return warm.features(rows)
        return to_features(self.reader.take(rows, [Part.VIDEO, Part.FRAMES]))

    def video_features(self, rows: Rows) -> FloatArray:
        if self._flat is not None:
            return self._flat.take(rows)
        if self._held is not None:
            _, features, places = self._held
            return features.video_features[places.of(rows)]
        if (warm := self._warm) is not None:
            return warm.videos(rows)
        vectors: FloatArray = matrix_of(self.reader.take(rows, [Part.VIDEO]), "video_features")
        return vectors

    def rows(self) -> Rows:
        return self.reader.read_all(None).rows

    def feature_keys(self) -> tuple[Rows, FeatureKeys]:
        sums = self.reader.read_all(None, sums_of=[Part.VIDEO, Part.FRAMES])
        keys = [sums.values[part.value] for part in (Part.VIDEO, Part.FRAMES)]
        return sums.rows, np.stack(keys, axis=1)

    def matching(self, where: str) -> Rows:
        condition = self._condition(where)
        with self.reader.reading():
            query = self._table.search().where(condition).select(["num_frames"]).with_row_id(True)
            return np.sort(row_ids(query.to_arrow()))

    def count_older(self, reading_version: int) -> int:
        column = "_reading_version"
        condition = f"_segment = 0 and ({column} is null or {column} < {reading_version})"
        with self.reader.reading():
            # A gallery of one release answers without a look at the hashes, which are longer.
            if not self._table.count_rows(condition):
                return 0
            count: int = self._table.count_rows(f"{condition} and {CONTENT_SHA256} is not null")
            return count

    def nearest(
        self,
        queries: QueryVectors,
        limit: int,
        where: str | None = None,
        without: Rows | None = None,
    ) -> list[Nearest]:
        if self._is_flat():
            allowed = None if where is None else self.matching(where)
            return self._vectors().nearest(queries, limit, allowed, without)
        condition = None if where is None else self._condition(where)
        # The nearest partitions may hold little but what is left out.
        reads_on = without is not None and len(without) > 0
        if without is not None and reads_on:
            condition = outside(without, condition)
        # LanceDB reads the vectors that no index holds.
        self._check_indices()
        self.reader.ensure(Part.VIDEO, self._vectors_below)
        method: NearestMethod = "flat" if self._partitions is None else "index"
        found = []
        for query in np.asarray(queries, np.float32):
            table = self._search(query, limit, condition, reads_on=reads_on)
            # LanceDB's distance of inner products is 1 - product.
            similarities = 1 - to_numbers(table["_distance"])
            found.append(Nearest(row_ids(table), similarities.astype(np.float32), method))
        return found

    def held(self) -> tuple[Rows, VideoFeatures] | None:
        if self._held_bytes > self._limits.held_bytes:
            return None
        with self._lock:
            if self._held is None:
                read = self.reader.read_all(Part.VIDEO, Part.FRAMES)
                values = read.values
                frames = values["frame_features"].reshape(-1, *self._shape)
                features = VideoFeatures(values["video_features"], frames, values["num_frames"])
                self._held = read.rows, features, RowPlaces(read.rows)
                self._warm = None
            return self._held[:2]

    def warm_up(self) -> None:
        if self._is_flat():
            self._vectors()
        if self.held() is None and self._warm_bytes <= self._limits.warm_bytes:
            with self._lock:
                if self._warm is None:
                    version = 0 if self._record is None else self._record.version
                    self._warm = WarmFeatures(self.reader, self._directory, version)
        with self._lock:
            if self._listing is None:
                self._listing = Listing.read(self.reader, self._limits.listing_bytes)

    def scan(
        self, num_videos: int, where: str | None = None
    ) -> Iterator[tuple[Rows, VideoFeatures]]:
        warm = self._warm
        if warm is not None and warm.pages is not None and where is None:
            # LanceDB takes several times as long, and reads nothing while a part is scored.
            yield from warm.scan(num_videos)
            return
        condition = None if where is None else self._condition(where)
        for table in self.reader.batches([Part.VIDEO, Part.FRAMES], condition, num_videos):
            yield row_ids(table), to_features(table)

    def listing(self) -> Iterator[GalleryVideo]:
        highest = -1
        for table in self.reader.batches(RECORDS):
            highest = max(highest, int(row_ids(table).max()))
            with self.reader.reading():
                videos = to_videos(table.filter(pc.equal(table["_segment"], 0)))
            yield from videos
        self.reader.note_verified(RECORDS, highest)

    def damaged_files(self) -> list[str]:
        """Read all files beside the rows; name those that changed or are gone."""
        if self._record is None or self._directory is None:
            return []
        files = self._record.files
        with lance_errors(self._uri, "read"):
            changed = damaged_files(self._directory, files)
            return sorted({*changed, *missing_files(self._directory, files)})

    def _check_indices(self) -> None:
        self._check_files({} if self._record is None else self._record.files)

    def _check_files(self, files: dict[str, str]) -> None:
        """Raise GalleryIntegrityError for files that changed, unless they were read already."""
        if self._directory is None:
            return
        with lance_errors(self._uri, "read"):
            changed = damaged_files(self._directory, files, verified=self._whole_files)
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise damaged(self._uri, f"its file {changed[0]}{more} is not as it was written")

    def _vectors(self) -> FlatVectors:
        with self._lock:
            if self._flat is None:
                read = self.reader.read_all(Part.VIDEO)
                self._flat = FlatVectors(read.rows, read.values["video_features"])
            return self._flat

    def _is_flat(self) -> bool:
        """Tell whether searches compare vectors in memory, without LanceDB."""
        fits = self._flat_bytes <= self._limits.flat_bytes
        return fits and (self._partitions is None or self._count <= self._limits.flat_videos)

    def _search(
        self, vector: Any, limit: int, condition: str | None, *, reads_on: bool
    ) -> pa.Table:
        """Search with LanceDB. ``reads_on``: whether to read more partitions to fill ``limit``."""
        if limit <= 0:
            limit, condition = 1, "false"  # LanceDB reads 0 as unlimited
        with self.reader.reading():
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
                if reads_on:
                    query = query.maximum_nprobes(0)
            if condition is not None:
                query = query.where(condition, prefilter=True)
            return query.to_arrow()

    def _look_up(self, column: str, values: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        """Return segment and row of the rows with each of the values."""
        found: dict[str, list[tuple[int, int]]] = {}
        # A file name may not be UTF-8; no gallery holds such a text.
        texts = [value for value in values if value.encode(errors="replace").decode() == value]
        if texts:
            self._check_indices()
            self.reader.ensure(Part.RECORD, self._found_below.get(column, 0))
        for start in range(0, len(texts), _IDS_PER_QUERY):
            listed = ", ".join(map(quoted, texts[start : start + _IDS_PER_QUERY]))
            table = self.reader.matching(f"{column} in ({listed})")
            places = zip(table["_segment"].to_pylist(), map(int, row_ids(table)), strict=True)
            for name, place in zip(table[column].to_pylist(), places, strict=True):
                found.setdefault(name, []).append(place)
        return found

    def _condition(self, where: str) -> str:
        """Translate a filter; verify all that LanceDB reads to evaluate it."""
        condition = to_sql(parse_filter(where, metadata_types(self._schema)))
        self._check_indices()
        for part in (*RECORDS, Part.METADATA):
            self.reader.ensure(part)
        return condition


def _partitions_of(names: Sequence[str]) -> int | None:
    for name in names:
        partitions = name.removeprefix(VECTOR_INDEX)
        if name.startswith(VECTOR_INDEX) and partitions.isdigit():
            return int(partitions)
    return None


def partitions_for(num_videos: int) -> int:
    """Return the number of partitions of an index, about a thousand videos in each."""
    return min(max(num_videos // 1000, 16), 4096)
