"""Copies of a gallery's rows into a new one: upgrade of an old gallery, rescue of a damaged one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xclip_deploy.errors import (
    GalleryError,
    GalleryIntegrityError,
    InvalidArgumentError,
    MetadataError,
)
from xclip_deploy.runtime.files import replaced_directory
from xclip_deploy.runtime.gallery.checking import check_unit_length
from xclip_deploy.runtime.gallery.commit_record import (
    TABLE,
    CommitRecord,
    check_manifest,
    damaged_files,
    find_manifest,
    read_record,
    versions_of,
)
from xclip_deploy.runtime.gallery.lance_errors import damaged, lance_errors
from xclip_deploy.runtime.gallery.lance_files import (
    connect,
    kept_from_writers,
    other_version,
    require_table,
)
from xclip_deploy.runtime.gallery.lance_opening import open_store
from xclip_deploy.runtime.gallery.lance_reader import RowReader, Trust, row_ids
from xclip_deploy.runtime.gallery.lance_schema import (
    SCHEMA_VERSION,
    UNCHECKED_VERSION,
    TableHeader,
    read_header,
    schema_fault,
    to_features,
    to_videos,
)
from xclip_deploy.runtime.gallery.lance_store import LanceStore
from xclip_deploy.runtime.gallery.lance_walk import RowKey, key_name, keys_of, walk, whole_rows
from xclip_deploy.runtime.gallery.records import GalleryVideo, VideoFile
from xclip_deploy.runtime.gallery.reports import Rescue
from xclip_deploy.runtime.gallery.walking import copy_thumbnails
from xclip_deploy.runtime.progress import Progress, ProgressFunction, ignore_progress
from xclip_deploy.runtime.video.segmentation import Segmentation

_NO_DELETIONS = pa.schema([pa.field("row_id", pa.uint32(), nullable=False)])


def rescue_gallery(
    path: Path, output: Path, progress: ProgressFunction = ignore_progress
) -> Rescue:
    """Copy every whole video of a damaged gallery to a new one; the old one stays as it is.

    Raises GalleryError if ``output`` is there already, GalleryIntegrityError if nothing can be
    read.
    """
    if output.exists():
        raise GalleryError(f"{output} is there already; choose another path for what is rescued")
    if not (path / f"{TABLE}.lance").is_dir():
        require_table(str(path), is_local=True)
    try:
        record = read_record(path)
    except GalleryIntegrityError:
        record = None
    lost: dict[RowKey, None] = {}
    with (
        _readable(path, record) as (table, version, bad_deletions),
        replaced_directory(output) as directory,
    ):
        reader, store = _copy_into(str(path), table, directory)
        done = 0
        for rows, part in walk(reader):
            done += len(rows)
            if part is None:
                lost.update(dict.fromkeys(map(int, rows)))
                continue
            found = _found(reader, part)
            # Without its deletions, a fragment holds rows that later ones replace. So the last row
            # of a video counts: it is whole, or the video is lost whatever the older ones hold.
            newest: dict[RowKey, int] = {}
            for n, video in enumerate(found):
                if isinstance(video, GalleryVideo):
                    lost.pop((video.id, video.segment), None)
                    newest[video.id, video.segment] = n
                else:
                    newest.pop(video, None)
                    lost[video] = None
            _copy(part, found, list(newest.values()), store, replace=True)
            progress(Progress("rescuing", done, reader.count, failed=len(lost)))
        store.remove_segments([key for key in lost if not isinstance(key, int)])
        _close_up(store)
        copy_thumbnails(str(path), directory)
        count = store.snapshot().num_videos
        store.close()
    return Rescue(
        output=str(output),
        num_videos=count,
        lost=tuple(key_name(key) for key in lost),
        version=version,
        committed_version=None if record is None else record.version,
        # An older version may lack the removals of those after it.
        deletions_lost=bad_deletions or (record is not None and version < record.version),
    )


def upgrade_gallery(path: Path, progress: ProgressFunction = ignore_progress) -> int:
    """Rewrite a gallery without checksums in place, in one step; returns its number of videos.

    An interrupted upgrade leaves the old gallery. Raises GalleryError, GalleryIntegrityError.
    """
    require_table(str(path), is_local=True)
    with kept_from_writers(path):
        with lance_errors(str(path), "read"):
            table = connect(str(path)).open_table(TABLE)
            header = _header(str(path), table)
        if header.schema_version == SCHEMA_VERSION:
            raise GalleryError(f"gallery {path} has schema version {SCHEMA_VERSION} already")
        try:
            with replaced_directory(path) as directory:
                reader, store = _copy_into(str(path), table, directory)
                done = 0
                for rows, part in walk(reader):
                    if part is None:
                        raise damaged(str(path), f"row {rows[0]} cannot be read")
                    found = _found(reader, part)
                    bad = [row for row in found if not isinstance(row, GalleryVideo)]
                    if bad:
                        what = f"row {bad[0]} has no valid record or vectors of other length"
                        raise damaged(str(path), f"{what} than 1")
                    _copy(part, found, list(range(len(found))), store, replace=False)
                    done += len(rows)
                    progress(Progress("upgrading", done, reader.count))
                count = len(store.snapshot())
                store.close()
        except OSError as error:
            raise GalleryError(
                f"gallery {path} cannot be written ({error.strerror}); what was there stands"
            ) from error
    return count


def _copy_into(
    uri: str,
    table: Any,  # noqa: ANN401
    directory: Path,
) -> tuple[RowReader, LanceStore]:
    """Open a reader of a table, and an empty gallery of the same model in ``directory``."""
    header = _header(uri, table)
    dim = table.schema.field("video_features").type.list_size
    frames = table.schema.field("frame_features").type.list_size // dim
    store = open_store(directory, header.fingerprint, dim, frames, create=True)
    return RowReader(uri, table, Trust()), store


def _header(uri: str, table: Any) -> TableHeader:  # noqa: ANN401
    header = read_header(table.schema)
    if header is None:
        raise damaged(uri, f"its table {TABLE!r} was not written by xclip-deploy")
    if header.schema_version not in (SCHEMA_VERSION, UNCHECKED_VERSION):
        raise other_version(uri, header.schema_version)
    is_checked = header.schema_version == SCHEMA_VERSION
    if fault := schema_fault(table.schema, is_checked=is_checked):
        raise damaged(uri, fault)
    return header


def _close_up(store: LanceStore) -> None:
    """Renumber the segments of videos that lost one, and forget the files of these videos.

    Each is then a complete video of fewer segments, which can be found, listed and written. The
    next ``index`` does not know its files, so it reads them and restores the video.
    """
    snapshot = store.snapshot()
    groups = snapshot.groups()
    if groups is None:
        return
    firsts = snapshot.videos(groups.firsts)
    counts = np.diff(groups.starts)
    partial = [v.id for v, n in zip(firsts, counts, strict=True) if v.num_segments != n]
    for rows in snapshot.segments(partial).values():
        videos = [
            video.model_copy(
                update={
                    "segment": n,
                    "num_segments": len(rows),
                    "files": tuple(VideoFile(path=file.path) for file in video.files),
                    "content_sha256": None,
                }
            )
            for n, video in enumerate(snapshot.videos(rows))
        ]
        store.put(videos, snapshot.features(rows), replace=True)


def _found(reader: RowReader, table: pa.Table) -> list[GalleryVideo | RowKey]:
    """Read each row of a table with all columns.

    A row gives its video if it is whole, its key if that alone is legible, and else its row id.
    """
    rows = row_ids(table)
    is_checked = "_check_record" in table.schema.names
    whole = whole_rows(reader, table) if is_checked else np.ones(len(table), np.bool_)
    found: list[GalleryVideo | RowKey] = []
    for n in range(len(table)):
        row = table.slice(n, 1)
        video = _video_of(reader, row) if whole[n] else None
        if video is None:
            found.append(keys_of(reader, row)[0] if is_checked else int(rows[n]))
        else:
            found.append(video)
    return found


def _video_of(reader: RowReader, row: pa.Table) -> GalleryVideo | None:
    """Return the video of a row; None if its record or its features are none of a gallery's."""
    try:
        with reader.reading():
            (video,) = to_videos(row)
            features = to_features(row)
            check_unit_length([video.id], features)
    except (GalleryIntegrityError, InvalidArgumentError, MetadataError):
        return None
    return video if len(video.frame_times_s) == int(features.num_frames[0]) else None


def _copy(
    table: pa.Table,
    found: Sequence[GalleryVideo | RowKey],
    places: list[int],
    store: LanceStore,
    *,
    replace: bool,
) -> None:
    """Write the videos at some places of a table."""
    videos = [video for n in places if isinstance(video := found[n], GalleryVideo)]
    # A list without elements would become an array of nulls, which picks nothing.
    features = to_features(table.take(pa.array(places, pa.int64())))
    if not replace:  # the videos of releases that knew no segments are whole
        whole = Segmentation.whole().text
        videos = [video.model_copy(update={"segmentation": whole}) for video in videos]
    store.append(videos, features, replace=replace)


@contextmanager
def _readable(path: Path, record: CommitRecord | None) -> Iterator[tuple[Any, int, bool]]:
    """Open the newest version that can be opened, and tell whether deletions were lost.

    LanceDB reads the newest manifest, whatever version is wanted. So it is shown a directory of
    links that lacks the damaged ones.
    """
    source = path / f"{TABLE}.lance"
    bad = [] if record is None else damaged_files(path, record.deletions)
    if record is not None:
        bad += [name for name in record.deletions if not (source / name).is_file()]
    with tempfile.TemporaryDirectory() as folder, lance_errors(str(path), "read"):
        shown = Path(folder, f"{TABLE}.lance")
        shown.mkdir()
        for name in ("data", "_transactions", "_indices"):
            if (source / name).is_dir():
                (shown / name).symlink_to(os.path.realpath(source / name))
        deletions = shown / "_deletions"
        deletions.mkdir()
        for file in (source / "_deletions").glob("*"):
            (deletions / file.name).symlink_to(os.path.realpath(file))
        for name in bad:
            _write_no_deletions(shown / name)
        for version, manifest in _manifests(path, record):
            (shown / "_versions").mkdir()
            shutil.copyfile(manifest, shown / "_versions" / manifest.name)
            try:
                with lance_errors(str(path), "read"):
                    table = connect(folder).open_table(TABLE)
                    _header(str(path), table)
                    table.search().select(["_rowid"]).with_row_id(True).to_arrow()
            except GalleryIntegrityError:
                shutil.rmtree(shown / "_versions")
                continue
            yield table, version, bool(bad)
            return
    raise damaged(str(path), "none of its versions can be read")


def _manifests(path: Path, record: CommitRecord | None) -> Iterator[tuple[int, Path]]:
    """Yield the versions with their manifests, newest first, without one known as damaged."""
    for version in versions_of(path):
        manifest = find_manifest(path, version)
        if record is not None and version == record.version:
            try:
                check_manifest(path, record)
            except GalleryIntegrityError:
                continue
        if manifest is not None:
            yield version, manifest


def _write_no_deletions(file: Path) -> None:
    """Write a deletion vector of nothing, in either of LanceDB's formats."""
    file.unlink(missing_ok=True)
    if file.suffix == ".arrow":
        with pa.ipc.new_file(str(file), _NO_DELETIONS) as writer:
            writer.write_batch(pa.record_batch([pa.array([], pa.uint32())], schema=_NO_DELETIONS))
    else:  # a roaring bitmap of no container
        file.write_bytes((12346).to_bytes(4, "little") + bytes(4))
