"""A gallery in a LanceDB database: a directory, or a URI that LanceDB opens."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xclip_deploy.errors import (
    DuplicateIdError,
    GalleryError,
    GalleryModelError,
    XclipDeployError,
)
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.filter_sql import quoted
from xclip_deploy.runtime.gallery.lance_commits import CommittedTable
from xclip_deploy.runtime.gallery.lance_errors import change_in_turn, lance_errors
from xclip_deploy.runtime.gallery.lance_files import (
    take_lock,
)
from xclip_deploy.runtime.gallery.lance_reader import RowReader, Trust, end_of_fragment
from xclip_deploy.runtime.gallery.lance_schema import (
    SQL_TYPES,
    TableHeader,
    keys_of,
    metadata_types,
    to_table,
)
from xclip_deploy.runtime.gallery.lance_snapshot import (
    COLUMN_INDICES,
    VECTOR_INDEX,
    LanceSnapshot,
    partitions_for,
)
from xclip_deploy.runtime.gallery.lance_walk import verify_rows
from xclip_deploy.runtime.gallery.records import GalleryVideo, merged_types
from xclip_deploy.runtime.gallery.reports import Verification
from xclip_deploy.runtime.gallery.store import (
    KEEP_VERSIONS,
    FeatureKeys,
    FeatureModel,
    SearchLimits,
)
from xclip_deploy.runtime.progress import Progress, ProgressFunction

_ROWS_PER_WRITE = 1024
_NEVER = timedelta(days=36_500)
"""Age of versions that LanceDB deletes while it compacts: it may delete none."""


class LanceStore:
    """A :class:`GalleryStore` in a LanceDB table.

    In a directory, also one that a ``file://`` URI names, a lock file admits one writer at a time,
    across the machine's processes. Object storage has no such lock. There, id and segment are the
    table's key: of two processes that add the same video at once, LanceDB refuses one, which then
    merges with what the other wrote. A gallery that an older release made there has no key, and
    needs one writer.
    """

    def __init__(
        self,
        uri: str,
        limits: SearchLimits | None = None,
        *,
        pinned: int | None = None,
        adopts_unrecorded: bool = False,
    ) -> None:
        """Open an existing gallery. Raises GalleryVersionError, GalleryIntegrityError.

        ``pinned``: version to stay at, which nothing is written to; None follows the newest.
        ``adopts_unrecorded``: see :class:`CommittedTable`.
        """
        self._uri = uri
        self._pinned = pinned
        self._limits = limits or SearchLimits()
        self._committed = CommittedTable(uri, pinned=pinned, adopts_unrecorded=adopts_unrecorded)
        self._version = self._committed.version
        self._snapshot: LanceSnapshot | None = None
        self._trust = Trust()
        self._whole_files: set[str] = set()
        self._is_writing = False
        # Guards the attributes above. It is held briefly: searches go on during a write.
        self._lock = threading.Lock()
        self._writer = threading.RLock()
        self._depth = 0
        self._descriptor: int | None = None
        self.header: TableHeader = self._committed.header

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def model(self) -> FeatureModel:
        """The model that made the embeddings."""
        dim = self._table.schema.field("video_features").type.list_size
        frames = self._table.schema.field("frame_features").type.list_size // dim
        return FeatureModel(self.header.fingerprint, dim, frames)

    @property
    def version(self) -> int:
        """The version that snapshots read."""
        return self._committed.version

    def fields(self) -> dict[str, type]:
        return metadata_types(self._table.schema)

    def declare(self, types: Mapping[str, type]) -> None:
        with self.exclusive():
            known = metadata_types(self._table.schema)
            if new := {name: kind for name, kind in types.items() if name not in known}:
                with self._writing():
                    self._add_columns({**known, **new})

    def snapshot(self) -> LanceSnapshot:
        with self._lock:
            if self._snapshot is None:
                # What the last snapshot has verified holds for the next one.
                self._trust = self._trust.copy()
                self._snapshot = LanceSnapshot(
                    self._committed, self._limits, self._trust, self._whole_files
                )
            return self._snapshot

    def refresh(self) -> None:
        if self._pinned is None:
            self._follow(is_locked=False)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        if self._pinned is not None:
            raise GalleryError(
                f"gallery {self._uri} is open at version {self._pinned}, which nothing can change; "
                "expected it open without a version"
            )
        with self._writer:
            if self._depth == 0:
                self._descriptor = take_lock(self._uri)
            self._depth += 1
            try:
                if self._depth == 1:
                    self._follow(is_locked=True)
                    self._committed.open_for_writing()
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._descriptor is not None:
                    os.close(self._descriptor)
                    self._descriptor = None

    def put(
        self, videos: Sequence[GalleryVideo], features: VideoFeatures, *, replace: bool
    ) -> FeatureKeys:
        if not videos:
            return np.empty((0, 2), np.uint64)
        with self.exclusive():
            present = self.snapshot().find([video.id for video in videos])
            if present and not replace:
                raise DuplicateIdError(f"a video {min(present)!r} is already in the gallery")
            types = merged_types(
                metadata_types(self._table.schema), (video.metadata for video in videos)
            )
            with self._writing():
                self._add_columns(types)
                rows = to_table(videos, features, self._table.schema)
                if present or self._is_remote:
                    # Without a lock, another process may have added them since.
                    self._replace(rows, list(dict.fromkeys(video.id for video in videos)))
                else:
                    self._table.add(rows)
            return keys_of(rows)

    def append(
        self, videos: Sequence[GalleryVideo], features: VideoFeatures, *, replace: bool = False
    ) -> None:
        """Add rows that may be a part of their videos' segments.

        ``replace``: whether to overwrite rows with the same id and segment; without it, none may be
        there. Raises MetadataError.
        """
        if not videos:
            return
        with self.exclusive():
            types = merged_types(
                metadata_types(self._table.schema), (video.metadata for video in videos)
            )
            with self._writing():
                self._add_columns(types)
                rows = to_table(videos, features, self._table.schema)
                if replace:
                    self._upsert(rows)
                else:
                    self._table.add(rows)

    def update(self, videos: Sequence[GalleryVideo]) -> None:
        with self.exclusive():
            snapshot = self.snapshot()
            rows = snapshot.places([video.id for video in videos])
            for video in videos:
                if (video.id, video.segment) not in rows:
                    raise GalleryError(f"no video {video.id!r} in the gallery {self._uri}")
            types = merged_types(
                metadata_types(self._table.schema), (video.metadata for video in videos)
            )
            failures: list[XclipDeployError] = []

            def batches() -> Iterator[pa.RecordBatch]:
                for start in range(0, len(videos), _ROWS_PER_WRITE):
                    part = videos[start : start + _ROWS_PER_WRITE]
                    places = np.array([rows[video.id, video.segment] for video in part], np.int64)
                    try:
                        features = snapshot.features(places)
                    except XclipDeployError as error:  # LanceDB would make a text of it
                        failures.append(error)
                        raise
                    yield from to_table(part, features, self._table.schema).to_batches()

            with self._writing():
                self._add_columns(types)
                try:
                    # A reader of batches makes one commit without all embeddings in memory.
                    schema = self._table.schema
                    self._upsert(pa.RecordBatchReader.from_batches(schema, batches()))
                except Exception:
                    if failures:
                        raise failures[0] from None
                    raise

    def remove(self, ids: Collection[str]) -> int:
        with self.exclusive():
            present = list(self.snapshot().find(list(ids)))
            if present:
                with self._writing():
                    self._table.delete(f"id in ({', '.join(map(quoted, present))})")
            return len(present)

    def remove_segments(self, keys: Sequence[tuple[str, int]]) -> None:
        """Remove rows by id and segment, of whatever videos."""
        with self.exclusive():
            places = self.snapshot().places([name for name, _ in keys])
            present = [key for key in keys if key in places]
            for start in range(0, len(present), _ROWS_PER_WRITE):
                some = present[start : start + _ROWS_PER_WRITE]
                by_segment: dict[int, list[str]] = {}
                for name, segment in some:
                    by_segment.setdefault(segment, []).append(quoted(name))
                for segment, names in by_segment.items():
                    with self._writing():
                        listed = ", ".join(names)
                        self._table.delete(f"_segment = {segment} and id in ({listed})")

    def optimize(self, progress: ProgressFunction, keep: timedelta = KEEP_VERSIONS) -> None:
        with self.exclusive(), self._writing():
            progress(Progress("optimizing", 0, None, note="putting files together"))
            # The old version stays until the new one is recorded.
            self._table.optimize(cleanup_older_than=_NEVER)
            self._committed.note()
            names = {index.name for index in self._table.list_indices()}
            count = self._table.count_rows()
            for column, index in COLUMN_INDICES.items():
                if count and index not in names:
                    from lancedb.index import BTree

                    what = "ids" if column == "id" else "fingerprints"
                    progress(Progress("optimizing", 1, None, note=f"indexing {what}"))
                    self._table.create_index(column, config=BTree(), name=index)
            partitions = partitions_for(count)
            old = [name for name in names if name.startswith(VECTOR_INDEX)]
            # optimize() has extended the index. One for far fewer videos is rebuilt.
            outgrown = all(partitions > 4 * int(name.removeprefix(VECTOR_INDEX)) for name in old)
            if count >= self._limits.index_from and outgrown:
                from lancedb.index import IvfRq

                note = f"indexing {count} videos in {partitions} partitions"
                progress(Progress("optimizing", 2, None, note=note))
                config = IvfRq(distance_type="dot", num_partitions=partitions)
                name = f"{VECTOR_INDEX}{partitions}"
                self._table.create_index("video_features", config=config, name=name)
                for name in old:
                    self._table.drop_index(name)
            # What follows deletes recorded files; a kill meanwhile must not look like damage.
            self._committed.note(self._indexed_below(), is_tidying=True)
            # LanceDB warns about 0. The documentation of ``keep_s`` gives that warning already.
            self._table.optimize(cleanup_older_than=max(keep, timedelta(milliseconds=1)))
            self._committed.note()
            progress(Progress("optimizing", 3, 3, note="done"))

    def verify(self, progress: ProgressFunction) -> Verification:
        self.refresh()
        snapshot = self.snapshot()
        files = snapshot.damaged_files()
        return verify_rows(snapshot.reader, files, progress)

    def size_bytes(self) -> int | None:
        if "://" in self._uri:
            return None
        return sum(file.stat().st_size for file in Path(self._uri).rglob("*") if file.is_file())

    def close(self) -> None:
        with self._lock:
            self._snapshot = None

    @property
    def _is_remote(self) -> bool:
        return "://" in self._uri

    @property
    def _table(self) -> Any:
        return self._committed.table

    def _follow(self, *, is_locked: bool) -> None:
        with self._lock:
            # Another thread's write has refreshed already, and locks out other writers.
            if self._is_writing:
                return
            if not self._committed.place.is_replaced():
                self._committed.follow(is_locked=is_locked)
            else:  # Gallery.save has put another one here
                committed = CommittedTable(self._uri)
                committed.follow(is_locked=is_locked)
                if committed.header != self.header:
                    raise GalleryModelError(
                        f"gallery {self._uri} was replaced by one of another model: open it again"
                    )
                self._committed, self._trust, self._whole_files = committed, Trust(), set()
                self._snapshot = None
            self._publish()

    def _indexed_below(self) -> int:
        """Return the row id below which the indices hold every row; 0 if they miss one."""
        indices = [index.name for index in self._table.list_indices()]
        for name in indices:
            statistics = self._table.index_stats(name)
            if statistics is None or statistics.num_unindexed_rows:
                return 0
        rows = RowReader(self._uri, self._table, Trust()).read_all(None).rows
        return end_of_fragment(int(rows[-1])) if indices and len(rows) else 0

    def _add_columns(self, types: dict[str, type]) -> None:
        def add() -> None:
            known = metadata_types(self._table.schema)
            new = {
                name: f"cast(null as {SQL_TYPES[kind]})"
                for name, kind in types.items()
                if name not in known
            }
            if new:
                self._table.add_columns(new)

        change_in_turn(add, self._table.checkout_latest)

    def _upsert(self, rows: Any) -> None:
        merge = self._table.merge_insert(["id", "_segment"])
        merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def _replace(self, rows: pa.Table, ids: Collection[str]) -> None:
        """Write rows and remove all other rows of the videos ``ids``, in one commit."""
        condition = f"id in ({', '.join(map(quoted, ids))})"

        def merge() -> None:
            merge = self._table.merge_insert(["id", "_segment"])
            merge = merge.when_matched_update_all().when_not_matched_insert_all()
            merge.when_not_matched_by_source_delete(condition).execute(rows)

        change_in_turn(merge, self._table.checkout_latest)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Make one change: until it is complete, snapshots show the state before it."""
        with self._lock:
            self._is_writing = True
        try:
            with lance_errors(self._uri, "written"):
                yield
        finally:
            with self._lock:
                self._is_writing = False
                if self._table.version != self._committed.version:
                    self._committed.note()
                self._publish()

    def _publish(self) -> None:
        if self._committed.version != self._version:
            self._version, self._snapshot = self._committed.version, None
