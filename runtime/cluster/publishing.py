"""Creation and publication of galleries in shards, and the locks of those who write them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from xclip_deploy.errors import (
    GalleryError,
    GalleryModelError,
    GalleryNotFoundError,
    GallerySegmentationError,
)
from xclip_deploy.runtime.arguments import PathName, as_whole_number
from xclip_deploy.runtime.cluster.shard_file import (
    SHARDS_FILE,
    ShardEntry,
    ShardFile,
    check_shards,
    directory_of,
    read_shards,
)
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.gallery.lance_errors import lance_errors
from xclip_deploy.runtime.gallery.records import merged_types
from xclip_deploy.runtime.manifest import Manifest
from xclip_deploy.runtime.search.numbering import MAX_SHARDS

_PUBLISHING = "shards.lock"
"""Lock of those who replace ``shards.json``, which they hold briefly."""
_INDEXING = "shards.index.lock"
"""Lock of the one process that indexes."""


@contextmanager
def sole_indexer(path: Path) -> Iterator[None]:
    """Keep other processes from indexing into the shards meanwhile.

    Raises GalleryError if another one does. On a network file system, the lock is as good as that
    system's.
    """
    with ExitStack() as stack:
        with lance_errors(str(path), "written"):
            file = stack.enter_context((path / _INDEXING).open("a+", encoding="utf-8"))
            file.seek(0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise GalleryError(
                    f"{file.read().strip() or 'another process'} indexes into gallery {path}; "
                    "expected one at a time: run the command again when it has ended"
                ) from error
            file.truncate()
            file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            file.flush()
        yield


@contextmanager
def _publisher(path: Path) -> Iterator[None]:
    """Wait until no other process replaces ``shards.json``: a later one must not be older."""
    with ExitStack() as stack:
        with lance_errors(str(path), "written"):
            file = stack.enter_context((path / _PUBLISHING).open("a", encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def create_shards(gallery: PathName, manifest: Manifest, count: int) -> ShardFile:
    """Make an empty gallery in ``count`` shards, or return the one that is there.

    Raises GalleryError for another number of shards or another model, and where the directory
    cannot be written.
    """
    count = as_whole_number("shards", count, 1, MAX_SHARDS)
    path = directory_of(gallery)
    if (path / SHARDS_FILE).is_file():
        return _existing(path, manifest, count)
    if path.is_dir() and any(not each.name.startswith("shard") for each in path.iterdir()):
        raise GalleryNotFoundError(
            f"{path} is no gallery in shards and not empty; choose another path"
        )
    with lance_errors(str(path), "written"):
        path.mkdir(parents=True, exist_ok=True)
    with _publisher(path):
        if (path / SHARDS_FILE).is_file():  # another process was faster
            return _existing(path, manifest, count)
        names = [f"shard-{number:03d}" for number in range(count)]
        for name in names:
            Gallery.open(path / name, manifest, create=True).close()
        return _publish(path, names, manifest.fingerprint, 1)


def _existing(path: Path, manifest: Manifest, count: int) -> ShardFile:
    found = read_shards(path)
    check_shards(path, found, manifest.fingerprint)
    if len(found.shards) != count:
        raise GalleryError(
            f"gallery {path} has {len(found.shards)} shards, expected {count}; "
            f"pass --shards {len(found.shards)}, or another gallery"
        )
    return found


def publish_shards(gallery: PathName) -> ShardFile:
    """Publish the newest version of every shard, which searches read after a refresh.

    Every shard gets the metadata fields of all, so that filters mean the same everywhere. Raises
    GalleryError, MetadataError for a field of two types, and GallerySegmentationError for shards
    that are cut in different ways.
    """
    path = directory_of(gallery)
    read_shards(path)
    with _publisher(path):
        known = read_shards(path)
        check_shards(path, known, known.fingerprint)
        names = [shard.path for shard in known.shards]
        return _publish(path, names, known.fingerprint, known.published + 1)


def _publish(path: Path, names: list[str], fingerprint: str, number: int) -> ShardFile:
    galleries = [Gallery.open(path / name) for name in names]
    try:
        types: dict[str, type] = {}
        for opened in galleries:
            examples = {name: kind() for name, kind in opened.fields.items()}
            types = merged_types(types, [examples])
        entries: list[ShardEntry] = []
        policies: set[str] = set()
        for name, opened in zip(names, galleries, strict=True):
            if opened.model.fingerprint != fingerprint:
                raise GalleryModelError(
                    f"shard {path / name} holds features of model "
                    f"{opened.model.fingerprint[:12]}…, expected model {fingerprint[:12]}…; "
                    "restore the shard from a copy, or index into a new gallery"
                )
            if opened.fields != types:
                opened.declare(types)
            snapshot, version = opened.snapshot(), opened.version
            assert version is not None
            if snapshot.segmentation is not None:
                policies.add(snapshot.segmentation)
            entries.append(
                ShardEntry(
                    path=name,
                    version=version,
                    num_videos=snapshot.num_videos,
                    num_segments=len(snapshot),
                )
            )
    finally:
        for opened in galleries:
            opened.close()
    if len(policies) > 1:
        found = ", ".join(sorted(policies))
        raise GallerySegmentationError(
            f"the shards of {path} are cut in {len(policies)} ways ({found}); "
            "expected one policy: index into a new gallery"
        )
    shards = ShardFile(
        fingerprint=fingerprint,
        segmentation=next(iter(policies), None),
        published=number,
        shards=tuple(entries),
    )
    with lance_errors(str(path), "written"):
        replace_text(path / SHARDS_FILE, shards.model_dump_json(indent=1) + "\n")
    return shards
