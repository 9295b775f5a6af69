"""A gallery in a LanceDB database: a directory, or a URI that LanceDB opens."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xclip_deploy.errors import (
    DuplicateIdError,
    GalleryError,
    GalleryIntegrityError,
    GalleryModelError,
    GalleryNotFoundError,
    GalleryVersionError,
)
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.filter_sql import quoted
from xclip_deploy.runtime.gallery.lance_errors import REINDEX, lance_errors
from xclip_deploy.runtime.gallery.lance_schema import (
    SCHEMA_VERSION,
    SQL_TYPES,
    TableHeader,
    make_schema,
    metadata_types,
    read_header,
    to_table,
)
from xclip_deploy.runtime.gallery.lance_snapshot import (
    VECTOR_INDEX,
    LanceSnapshot,
    SearchLimits,
    partitions_for,
)
from xclip_deploy.runtime.gallery.records import GalleryVideo, merged_types
from xclip_deploy.runtime.gallery.store import KEEP_VERSIONS, FeatureModel
from xclip_deploy.runtime.progress import Progress, ProgressFunction

_TABLE = "videos"
_LOCK = "gallery.lock"
_ROWS_PER_WRITE = 1024


class LanceStore:
    """A :class:`GalleryStore` in a LanceDB table.

    In a directory, a lock file admits one writer at a time, across the machine's processes. In
    object storage LanceDB loses no write, but two processes that add the same video at the same
    time can store it twice.
    """

    def __init__(self, uri: str, table: Any, limits: SearchLimits | None = None) -> None:
        self._uri = uri
        self._limits = limits or SearchLimits()
        self._table = table
        self._place = _place_of(uri)
        self._version: int = table.version
        self._snapshot: LanceSnapshot | None = None
        self._is_writing = False
        # Guards the four attributes above. It is held briefly: searches go on during a write.
        self._lock = threading.Lock()
        self._writer = threading.RLock()
        self._depth = 0
        self._descriptor: int | None = None
        header = read_header(table.schema)
        assert header is not None  # open_store has checked
        self.header: TableHeader = header

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def model(self) -> FeatureModel:
        """The model that made the embeddings."""
        dim = self._table.schema.field("video_features").type.list_size
        frames = self._table.schema.field("frame_features").type.list_size // dim
        return FeatureModel(self.header.fingerprint, dim, frames)

    def snapshot(self) -> LanceSnapshot:
        with self._lock:
            if self._snapshot is None:
                with lance_errors(self._uri, "read"):
                    table = _connect(self._uri).open_table(_TABLE)
                    table.checkout(self._version)
                self._snapshot = LanceSnapshot(self._uri, table, self._limits)
            return self._snapshot

    def refresh(self) -> None:
        with self._lock, lance_errors(self._uri, "read"):
            # Another thread's write has refreshed already, and locks out other writers.
            if self._is_writing:
                return
            place = _place_of(self._uri)
            if place == self._place:
                self._table.checkout_latest()
                self._publish()
            else:  # Gallery.save has put another one here
                table = _opened(self._uri)
                header = read_header(table.schema)
                if header != self.header:
                    raise GalleryModelError(
                        f"gallery {self._uri} was replaced by one of another model: open it again"
                    )
                self._table, self._place = table, place
                self._version, self._snapshot = table.version, None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._writer:
            if self._depth == 0:
                self._descriptor = _take_lock(self._uri)
            self._depth += 1
            try:
                if self._depth == 1:
                    self.refresh()
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._descriptor is not None:
                    os.close(self._descriptor)
                    self._descriptor = None

    def put(
        self, videos: Sequence[GalleryVideo], features: VideoFeatures, *, replace: bool
    ) -> None:
        if not videos:
            return
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
                if present:
                    self._upsert(rows)
                else:
                    self._table.add(rows)

    def update(self, videos: Sequence[GalleryVideo]) -> None:
        with self.exclusive():
            snapshot = self.snapshot()
            rows = snapshot.find([video.id for video in videos])
            for video in videos:
                if video.id not in rows:
                    raise GalleryError(f"no video {video.id!r} in the gallery {self._uri}")
            types = merged_types(
                metadata_types(self._table.schema), (video.metadata for video in videos)
            )
            with self._writing():
                self._add_columns(types)
                schema = self._table.schema

                def batches() -> Iterator[pa.RecordBatch]:
                    for start in range(0, len(videos), _ROWS_PER_WRITE):
                        part = videos[start : start + _ROWS_PER_WRITE]
                        places = np.array([rows[video.id] for video in part], np.int64)
                        yield from to_table(part, snapshot.features(places), schema).to_batches()

                # A reader of batches makes one commit without all embeddings in memory.
                self._upsert(pa.RecordBatchReader.from_batches(schema, batches()))

    def remove(self, ids: Collection[str]) -> int:
        with self.exclusive():
            present = list(self.snapshot().find(list(ids)))
            if present:
                with self._writing():
                    self._table.delete(f"id in ({', '.join(map(quoted, present))})")
            return len(present)

    def optimize(self, progress: ProgressFunction, keep: timedelta = KEEP_VERSIONS) -> None:
        with self.exclusive(), self._writing():
            progress(Progress("optimizing", 0, None, note="putting files together"))
            # LanceDB warns about 0. The documentation of ``keep_s`` gives that warning already.
            self._table.optimize(cleanup_older_than=max(keep, timedelta(milliseconds=1)))
            names = {index.name for index in self._table.list_indices()}
            count = self._table.count_rows()
            if count and "id_idx" not in names:
                from lancedb.index import BTree

                progress(Progress("optimizing", 1, None, note="indexing ids"))
                self._table.create_index("id", config=BTree(), name="id_idx")
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
            progress(Progress("optimizing", 3, 3, note="done"))

    def size_bytes(self) -> int | None:
        if "://" in self._uri:
            return None
        return sum(file.stat().st_size for file in Path(self._uri).rglob("*") if file.is_file())

    def close(self) -> None:
        with self._lock:
            self._snapshot = None

    def _add_columns(self, types: dict[str, type]) -> None:
        known = metadata_types(self._table.schema)
        new = {
            name: f"cast(null as {SQL_TYPES[kind]})"
            for name, kind in types.items()
            if name not in known
        }
        if new:
            self._table.add_columns(new)

    def _upsert(self, rows: Any) -> None:
        merge = self._table.merge_insert("id")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Make one change: until it is complete, snapshots show the state before it."""
        with self._lock:
            self._is_writing = True
        try:
            with lance_errors(self._uri, "written"):
                yield
        finally:
            with self._lock, lance_errors(self._uri, "read"):
                self._is_writing = False
                self._publish()

    def _publish(self) -> None:
        if self._table.version != self._version:
            self._version, self._snapshot = self._table.version, None


def open_store(
    uri: str | Path,
    fingerprint: str,
    dim: int,
    max_frames: int,
    *,
    create: bool,
    limits: SearchLimits | None = None,
) -> LanceStore:
    """Open a gallery; with ``create``, make it if there is none.

    The caller checks that the features are of the right model. Raises GalleryNotFoundError,
    GalleryVersionError, GalleryIntegrityError, and GalleryError if it cannot be created.
    """
    name, is_local = _located(uri)
    if create and not _has_table(name, is_local):
        if is_local:
            _check_place(Path(name))
        _create(name, is_local, fingerprint, dim, max_frames)
    return open_existing_store(uri, limits)


def open_existing_store(uri: str | Path, limits: SearchLimits | None = None) -> LanceStore:
    """Open an existing gallery, of whatever model.

    Raises GalleryNotFoundError, GalleryVersionError, GalleryIntegrityError.
    """
    name, is_local = _located(uri)
    if not _has_table(name, is_local):
        if is_local:
            _check_place(Path(name))
        raise GalleryNotFoundError(f"no gallery at {name}; run: {REINDEX.format(uri=name)}")
    return LanceStore(name, _opened(name), limits)


@contextmanager
def kept_from_writers(path: Path) -> Iterator[None]:
    """Lock the gallery in ``path``, if there is one, while the directory is replaced."""
    is_gallery = Path(path, f"{_TABLE}.lance").is_dir()
    descriptor = _take_lock(os.path.realpath(path)) if is_gallery else None
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _opened(uri: str) -> Any:
    with lance_errors(uri, "read"):
        table = _connect(uri).open_table(_TABLE)
        header = read_header(table.schema)
    if header is None:
        raise GalleryIntegrityError(
            f"gallery {uri}: its table {_TABLE!r} was not written by xclip-deploy; "
            f"run: {REINDEX.format(uri='NEW_GALLERY')}"
        )
    if header.schema_version != SCHEMA_VERSION:
        raise _other_version(uri, header.schema_version)
    return table


def _place_of(uri: str) -> tuple[int, int] | None:
    """Identify the table's directory by device and inode; None in object storage."""
    if "://" in uri:
        return None
    found = Path(uri, f"{_TABLE}.lance").stat()
    return found.st_dev, found.st_ino


def _located(uri: str | Path) -> tuple[str, bool]:
    """Return a gallery's location, and whether that is a local directory."""
    name = str(uri)
    is_local = "://" not in name
    return (os.path.realpath(name) if is_local else name), is_local


def _connect(uri: str) -> Any:
    import lancedb

    return lancedb.connect(uri)


def _has_table(uri: str, is_local: bool) -> bool:
    if is_local:
        # A writer that was killed while it created the gallery leaves empty folders.
        versions = Path(uri, f"{_TABLE}.lance", "_versions")
        return versions.is_dir() and any(versions.iterdir())
    with lance_errors(uri, "read"):
        return _TABLE in _connect(uri).list_tables().tables


def _check_place(path: Path) -> None:
    if (path / "gallery.json").is_file():
        raise _other_version(str(path), 1)
    table, lock = path / f"{_TABLE}.lance", path / _LOCK
    if path.exists() and not path.is_dir():
        raise GalleryNotFoundError(f"{path} is no gallery but a file; choose another path")
    names = set(path.iterdir()) - {table, lock} if path.is_dir() else set()
    if names:
        raise GalleryNotFoundError(f"{path} is no gallery and not empty; choose another path")
    if table.is_dir() and any(file.is_file() for file in (table / "data").glob("*")):
        raise GalleryIntegrityError(
            f"gallery {path}: its table has lost its versions; restore it from a copy or run: "
            f"rm -r {path}, then {REINDEX.format(uri=path)}"
        )


def _create(uri: str, is_local: bool, fingerprint: str, dim: int, max_frames: int) -> None:
    with lance_errors(uri, "written"):
        if is_local:
            Path(uri).mkdir(parents=True, exist_ok=True)
        descriptor = _take_lock(uri)
        try:
            if not _has_table(uri, is_local):  # another process may have been faster
                schema = make_schema(fingerprint, dim, max_frames)
                _connect(uri).create_table(_TABLE, schema=schema)
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _take_lock(uri: str) -> int | None:
    """Take the lock and return its file descriptor; None in object storage."""
    if "://" in uri:
        return None
    path = Path(uri, _LOCK)
    with lance_errors(uri, "written"):
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # The file may belong to a gallery that was replaced meanwhile.
                if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            except BaseException:  # an interrupt while waiting, or a disk without locks
                os.close(descriptor)
                raise
            os.close(descriptor)


def _other_version(uri: str, version: int) -> GalleryVersionError:
    newer = version > SCHEMA_VERSION
    mend = "pip install --upgrade xclip-deploy" if newer else REINDEX.format(uri="NEW_GALLERY")
    return GalleryVersionError(
        f"gallery {uri} has schema version {version}, this release reads {SCHEMA_VERSION}; "
        f"run: {mend}"
    )
