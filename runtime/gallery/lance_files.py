"""A gallery's place: its directory, its lock, and whether there is a table in it."""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from xclip_deploy.errors import GalleryNotFoundError, GalleryVersionError
from xclip_deploy.runtime.gallery.commit_record import (
    RECORD_FILE,
    TABLE,
    read_record,
    versions_of,
)
from xclip_deploy.runtime.gallery.lance_errors import REINDEX, damaged, lance_errors
from xclip_deploy.runtime.gallery.lance_native import import_lancedb
from xclip_deploy.runtime.gallery.lance_schema import SCHEMA_VERSION, UNCHECKED_VERSION

_LOCK = "gallery.lock"
FILE_SCHEME = "file://"


def located(uri: str | Path) -> tuple[str, bool]:
    """Return a gallery's location, and whether that is a local directory.

    A ``file://`` URI without a host names a directory, which then has a lock and a record of
    commits like any other.
    """
    name = str(uri)
    if name.startswith(FILE_SCHEME):
        name = unquote(name.removeprefix(FILE_SCHEME).removeprefix("localhost"))
    is_local = "://" not in name
    return (os.path.realpath(name) if is_local else name), is_local


class Place:
    """The directory of a gallery's table, told apart from one that replaces it.

    An open descriptor keeps the inode: the file system could give that of a deleted directory to
    the next one. It is closed with the object.
    """

    def __init__(self, uri: str) -> None:
        """Open the directory; object storage has none. Raises GalleryError."""
        self._path = None if "://" in uri else Path(uri, f"{TABLE}.lance")
        self._uri = uri
        if self._path is not None:
            with lance_errors(uri, "read"):
                descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, descriptor)
            self._status = os.fstat(descriptor)

    def is_replaced(self) -> bool:
        """Tell whether another directory is there now. Raises GalleryError if there is none."""
        if self._path is None:
            return False
        with lance_errors(self._uri, "read"):
            return not os.path.samestat(self._status, self._path.stat())


def connect(uri: str) -> Any:  # noqa: ANN401 - LanceDB has no useful types
    """Connect to LanceDB by its Python package, which takes a second to import."""
    return import_lancedb().connect(uri)


def has_table(uri: str, is_local: bool) -> bool:
    """Tell whether there is a gallery. Raises GalleryIntegrityError where one was lost."""
    if is_local:
        # A writer that was killed while it created the gallery leaves empty folders.
        if versions_of(Path(uri)):
            return True
        record = read_record(Path(uri)) if Path(uri).is_dir() else None
        if record is not None:
            raise damaged(
                uri, f"version {record.version} was committed, and the table has lost its versions"
            )
        return False
    with lance_errors(uri, "read"):
        return TABLE in connect(uri).list_tables().tables


def require_table(uri: str, is_local: bool) -> None:
    """Raise GalleryNotFoundError if there is no gallery, GalleryIntegrityError if it was lost."""
    if not has_table(uri, is_local):
        if is_local:
            check_place(Path(uri))
        raise GalleryNotFoundError(f"no gallery at {uri}; run: {REINDEX.format(uri=uri)}")


def check_place(path: Path) -> None:
    """Refuse a directory that holds something else than a gallery."""
    if (path / "gallery.json").is_file():
        raise other_version(str(path), 1)
    if (path / "shards.json").is_file():
        raise GalleryNotFoundError(
            f"{path} is a gallery in shards, expected one without; search it by ShardedRetriever, "
            "or give --cluster auto to xclip-deploy search and serve"
        )
    table = path / f"{TABLE}.lance"
    if path.exists() and not path.is_dir():
        raise GalleryNotFoundError(f"{path} is no gallery but a file; choose another path")
    own = {table, path / _LOCK, path / RECORD_FILE}
    names = set(path.iterdir()) - own if path.is_dir() else set()
    if any(not file.name.startswith(f".{RECORD_FILE}.partial-") for file in names):
        raise GalleryNotFoundError(f"{path} is no gallery and not empty; choose another path")
    if table.is_dir() and any(file.is_file() for file in (table / "data").glob("*")):
        raise damaged(str(path), "its table has lost its versions")


def other_version(uri: str, version: int) -> GalleryVersionError:
    """Make the error for a gallery of another schema version; it names the command to run."""
    if version > SCHEMA_VERSION:
        mend = "pip install --upgrade xclip-deploy"
    elif version == UNCHECKED_VERSION:
        mend = f"xclip-deploy gallery upgrade --gallery {uri}"
    else:
        mend = REINDEX.format(uri="NEW_GALLERY")
    return GalleryVersionError(
        f"gallery {uri} has schema version {version}, this release reads {SCHEMA_VERSION}; "
        f"run: {mend}"
    )


@contextmanager
def kept_from_writers(path: Path) -> Iterator[None]:
    """Lock the gallery in ``path``, if there is one, while the directory is replaced."""
    is_gallery = Path(path, f"{TABLE}.lance").is_dir()
    descriptor = take_lock(os.path.realpath(path)) if is_gallery else None
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def take_lock(uri: str) -> int | None:
    """Take the lock and return its file descriptor; None in object storage."""
    if "://" in uri:
        return None
    with lance_errors(uri, "written"):
        return _locked(Path(uri, _LOCK), fcntl.LOCK_EX)


def try_lock(uri: str) -> int | None:
    """Take the lock if it is free; None if another holds it or the directory is read-only."""
    try:
        return _locked(Path(uri, _LOCK), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None


def _locked(path: Path, how: int) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, how)
            # The file may belong to a gallery that was replaced meanwhile.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:  # an interrupt while waiting, or a disk without locks
            os.close(descriptor)
            raise
        os.close(descriptor)
