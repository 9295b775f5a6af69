"""A LanceDB table at its newest recorded commit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.gallery.commit_record import (
    TABLE,
    CommitRecord,
    check_manifest,
    find_manifest,
    make_record,
    read_record,
    write_record,
)
from xclip_deploy.runtime.gallery.lance_errors import damaged, lance_errors
from xclip_deploy.runtime.gallery.lance_files import Place, connect, other_version, try_lock
from xclip_deploy.runtime.gallery.lance_native import NativeTable, open_for_reading
from xclip_deploy.runtime.gallery.lance_schema import (
    SCHEMA_VERSION,
    TableHeader,
    read_header,
    schema_fault,
)

_RECORD_READS = 20
"""Times to read a record anew that a writer replaces meanwhile."""


class CommittedTable:
    """A table whose versions count once they are recorded.

    In object storage there is no record: its writes are whole, and it keeps checksums itself.
    """

    def __init__(
        self, uri: str, *, pinned: int | None = None, adopts_unrecorded: bool = False
    ) -> None:
        """Open the table of an existing gallery.

        ``pinned``: version to stay at; None follows the newest. ``adopts_unrecorded``: whether a
        table without a record gets one, as releases wrote none through ``file://``. Raises
        GalleryVersionError, and GalleryIntegrityError for a table that is not a gallery's or not
        the one that was committed. Raises GalleryError for a version that is not there.
        """
        self.uri = uri
        self._adopts = adopts_unrecorded
        self.place = Place(uri)
        self._directory = None if "://" in uri else Path(uri)
        # A damaged manifest is found here, before LanceDB reads it.
        self.record = self._sound_record()
        with lance_errors(uri, "read"):
            self.table: Any = open_for_reading(uri, TABLE)
            header = read_header(self.table.schema)
        if header is None:
            raise damaged(uri, f"its table {TABLE!r} was not written by xclip-deploy")
        if header.schema_version != SCHEMA_VERSION:
            raise other_version(uri, header.schema_version)
        if fault := schema_fault(self.table.schema):
            raise damaged(uri, fault)
        self.header: TableHeader = header
        if pinned is None:
            self.follow()
        else:
            self._pin(pinned)

    @property
    def version(self) -> int:
        """The version that snapshots read."""
        version: int = self.table.version if self.record is None else self.record.version
        return version

    @property
    def directory(self) -> Path | None:
        """The gallery's directory; None in object storage."""
        return self._directory

    def at_version(self) -> Any:  # noqa: ANN401
        """Open the table anew, checked out at the version that snapshots read."""
        with lance_errors(self.uri, "read"):
            table = open_for_reading(self.uri, TABLE)
            table.checkout(self.version)
            return table

    def open_for_writing(self) -> None:
        """Open the table with LanceDB's package, at its newest version, unless it is so already.

        The caller holds the gallery's lock.
        """
        if isinstance(self.table, NativeTable):
            with lance_errors(self.uri, "read"):
                self.table = connect(self.uri).open_table(TABLE)

    def follow(self, *, is_locked: bool = False) -> None:
        """Go to the newest commit; ``is_locked``: whether the caller holds the gallery's lock.

        A version that is newer than its record belongs to a writer at work, or to one that was
        killed. If the lock is free, it is the latter, and the version is recorded. The same holds
        for a record of a writer that deletes old files.
        """
        record = self._sound_record()
        with lance_errors(self.uri, "read"):
            self.table.checkout_latest()
            latest = self.table.version
        if self._directory is None or (record is not None and _is_final(record, latest)):
            self.record = record
            return
        if record is None and latest > 1 and not self._adopts:
            raise damaged(self.uri, "its record of commits is missing")
        if record is not None and latest < record.version:
            raise damaged(
                self.uri, f"version {record.version} was committed, the newest there is {latest}"
            )
        self.record = record
        descriptor = None if is_locked else try_lock(self.uri)
        if is_locked or descriptor is not None:
            try:
                self._catch_up()
            finally:
                if descriptor is not None:
                    os.close(descriptor)
        elif record is not None:
            with lance_errors(self.uri, "read"):
                self.table.checkout(record.version)

    def note(self, indexed_below: int | None = None, *, is_tidying: bool = False) -> None:
        """Record what was just committed; the caller holds the gallery's lock.

        ``indexed_below``: the row id below which the indices hold every row; None if that stays.
        ``is_tidying``: whether the caller goes on to delete files that only old versions read.
        """
        if self._directory is None:
            return
        with lance_errors(self.uri, "written"):
            record = make_record(
                self._directory,
                self.table.version,
                self.record,
                indexed_below,
                is_tidying=is_tidying,
            )
            write_record(self._directory, record)
        self.record = record

    def _pin(self, version: int) -> None:
        if self.record is not None and self.record.version != version:
            self.record = None  # it tells of other files; the rows have their own checksums
        try:
            with lance_errors(self.uri, "read"):
                self.table.checkout(version)
        except GalleryError as error:
            raise GalleryError(
                f"version {version} of gallery {self.uri} cannot be opened ({error}); expected one "
                "that is on disk: open the newest"
            ) from error

    def _catch_up(self) -> None:
        """Record the newest version, unless another process has done so."""
        self.record = self._sound_record()
        with lance_errors(self.uri, "read"):
            self.table.checkout_latest()
        record, latest = self.record, self.table.version
        if record is None or (latest >= record.version and not _is_final(record, latest)):
            self.note()

    def _sound_record(self) -> CommitRecord | None:
        """Read the record and check its manifest."""
        if self._directory is None:
            return None
        record = read_record(self._directory)
        for _ in range(_RECORD_READS):
            if record is None or find_manifest(self._directory, record.version) is not None:
                break
            # A writer may have recorded a newer version since, and deleted this one.
            record = read_record(self._directory)
        if record is not None:
            check_manifest(self._directory, record)
        return record


def _is_final(record: CommitRecord, latest: int) -> bool:
    """Tell whether the writer of the latest version has recorded it, and has nothing more to do."""
    return record.version == latest and not record.is_tidying
