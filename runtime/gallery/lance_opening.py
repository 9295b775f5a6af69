"""Opening and creation of galleries in LanceDB."""

from __future__ import annotations

import os
from pathlib import Path

from xclip_deploy.runtime.gallery.commit_record import TABLE, make_record, write_record
from xclip_deploy.runtime.gallery.lance_errors import lance_errors
from xclip_deploy.runtime.gallery.lance_files import (
    FILE_SCHEME,
    check_place,
    connect,
    has_table,
    located,
    require_table,
    take_lock,
)
from xclip_deploy.runtime.gallery.lance_schema import make_schema
from xclip_deploy.runtime.gallery.lance_store import LanceStore
from xclip_deploy.runtime.gallery.store import SearchLimits


def open_store(
    uri: str | Path,
    fingerprint: str,
    dim: int,
    max_frames: int,
    *,
    create: bool,
    limits: SearchLimits | None = None,
    version: int | None = None,
) -> LanceStore:
    """Open a gallery; with ``create``, make it if there is none.

    The caller checks that the features are of the right model. Raises GalleryNotFoundError,
    GalleryVersionError, GalleryIntegrityError, and GalleryError if it cannot be created.
    """
    name, is_local = located(uri)
    if create and not has_table(name, is_local):
        if is_local:
            check_place(Path(name))
        _create(name, is_local, fingerprint, dim, max_frames)
    return open_existing_store(uri, limits, version)


def open_existing_store(
    uri: str | Path, limits: SearchLimits | None = None, version: int | None = None
) -> LanceStore:
    """Open an existing gallery, of whatever model.

    ``version``: the version to stay at; None follows the newest. Raises GalleryNotFoundError,
    GalleryVersionError, GalleryIntegrityError, and GalleryError for a version that is not there.
    """
    name, is_local = located(uri)
    require_table(name, is_local)
    is_file_uri = str(uri).startswith(FILE_SCHEME)
    return LanceStore(name, limits, pinned=version, adopts_unrecorded=is_file_uri)


def _create(uri: str, is_local: bool, fingerprint: str, dim: int, max_frames: int) -> None:
    with lance_errors(uri, "written"):
        if is_local:
            Path(uri).mkdir(parents=True, exist_ok=True)
        descriptor = take_lock(uri)
        try:
            if not has_table(uri, is_local):  # another process may have been faster
                schema = make_schema(fingerprint, dim, max_frames, has_key=not is_local)
                # Without a lock, another process may still be faster.
                table = connect(uri).create_table(TABLE, schema=schema, exist_ok=not is_local)
                if is_local:
                    directory = Path(uri)
                    write_record(directory, make_record(directory, table.version, None))
        finally:
            if descriptor is not None:
                os.close(descriptor)
