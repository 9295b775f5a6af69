"""Passes over a whole gallery: its videos, a summary, a copy, and the thumbnails still in use."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.arguments import as_text
from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.files import replaced_directory
from xclip_deploy.runtime.gallery.commit_record import TABLE
from xclip_deploy.runtime.gallery.lance_errors import require_packages
from xclip_deploy.runtime.gallery.records import TYPE_NAMES, GalleryVideo, Rows
from xclip_deploy.runtime.gallery.reports import GalleryStats
from xclip_deploy.runtime.gallery.store import FeatureModel, Snapshot
from xclip_deploy.runtime.gallery.thumbnails import ThumbnailStore, thumbnail_key

THUMBNAILS = "thumbnails"
"""Folder of the thumbnails, beside the table."""
_PAGE_VIDEOS = 4096
_SAVE_VIDEOS = 4096
_UNCOMMITTED_S = 86_400.0
"""Age below which a thumbnail may belong to a video that is still being read."""


def rows_of_videos(snapshot: Snapshot, where: str | None = None) -> Rows:
    """Return the first row of every video, or of those with a row that matches a filter."""
    rows = snapshot.rows() if where is None else snapshot.matching(as_text("where", where))
    groups = snapshot.groups()
    return rows if groups is None else groups.first_rows(rows)


def pages(snapshot: Snapshot, rows: Rows) -> Iterator[GalleryVideo]:
    """Yield the records of rows, read a page at a time."""
    for part in slices(len(rows), _PAGE_VIDEOS):
        yield from snapshot.videos(rows[part])


def summarize(
    snapshot: Snapshot, model: FeatureModel, uri: str | None, size_bytes: int | None
) -> GalleryStats:
    """Summarize a gallery in one pass."""
    num_files, total_s = 0, 0.0
    fields: dict[str, str] = {}
    for video in pages(snapshot, rows_of_videos(snapshot)):
        num_files += len(video.files)
        total_s += video.duration_s or 0.0
        for name, value in video.metadata.items():
            fields.setdefault(name, TYPE_NAMES[type(value)])
    return GalleryStats(
        uri=uri,
        fingerprint=model.fingerprint,
        num_videos=snapshot.num_videos,
        num_segments=len(snapshot),
        segmentation=snapshot.segmentation,
        num_files=num_files,
        total_duration_s=total_s,
        metadata=fields,
        size_bytes=size_bytes,
        has_index=snapshot.num_partitions is not None,
    )


def save_copy(snapshot: Snapshot, model: FeatureModel, uri: str | None, path: Path) -> None:
    """Write a copy of a gallery to a directory in one step, thumbnails included.

    Raises GalleryError if ``path`` is the gallery itself, holds something else or cannot be
    written.
    """
    require_packages()
    from xclip_deploy.runtime.gallery.lance_files import kept_from_writers
    from xclip_deploy.runtime.gallery.lance_opening import open_store

    if uri is not None and Path(uri) == path.resolve():
        raise GalleryError(f"{path} is this gallery itself, where every change is kept at once")
    if path.exists() and not _may_replace(path):
        raise GalleryError(f"{path} is no gallery and not empty; choose another path")
    try:
        with kept_from_writers(path), replaced_directory(path) as directory:
            store = open_store(
                directory, model.fingerprint, model.embed_dim, model.max_frames, create=True
            )
            for rows, features in snapshot.scan(_SAVE_VIDEOS):
                store.append(snapshot.videos(rows), features)
            store.close()
            copy_thumbnails(uri, directory)
    except OSError as error:
        raise GalleryError(
            f"gallery {path} cannot be written ({error.strerror}); what was there stands"
        ) from error


def copy_thumbnails(uri: str | None, directory: Path) -> None:
    """Copy the thumbnails of a gallery to a new one. Raises OSError."""
    if uri is not None and Path(uri, THUMBNAILS).is_dir():
        shutil.copytree(Path(uri, THUMBNAILS), directory / THUMBNAILS, symlinks=True)


def keep_thumbnails(snapshot: Snapshot, directory: Path) -> int:
    """Delete the thumbnails that no row has; returns their number."""
    keys = {
        thumbnail_key(video.content_sha256, video.start_s)
        for video in pages(snapshot, snapshot.rows())
        if video.content_sha256 is not None and video.start_s is not None
    }
    return ThumbnailStore(directory).keep(keys, older_than_s=_UNCOMMITTED_S)


def _may_replace(path: Path) -> bool:
    if not path.is_dir():
        return False
    is_gallery = (path / f"{TABLE}.lance").is_dir() or (path / "gallery.json").is_file()
    return is_gallery or not any(path.iterdir())
