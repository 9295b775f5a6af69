"""The record of commits: the newest commit is what is opened, or an error says why not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gallery_samples import (
    DIM,
    FRAMES,
    MODEL,
    NOTHING_IN_MEMORY,
    content_of,
    lance_store,
    sample,
)

from xclip_deploy.errors import GalleryError, GalleryIntegrityError, GalleryModelError
from xclip_deploy.runtime.gallery import FeatureModel, Gallery, lance_commits
from xclip_deploy.runtime.gallery.checksums import Part
from xclip_deploy.runtime.gallery.commit_record import (
    RECORD_FILE,
    make_record,
    read_record,
    versions_of,
    write_record,
)
from xclip_deploy.runtime.gallery.lance_files import take_lock
from xclip_deploy.runtime.gallery.lance_schema import is_whole
from xclip_deploy.runtime.gallery.rewriting import _write_no_deletions
from xclip_deploy.runtime.gallery.store import SearchLimits
from xclip_deploy.runtime.progress import ignore_progress


@contextmanager
def killed_before_recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Writers commit, and die before they record it."""

    def die(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lance_commits, "write_record", die)
        with pytest.raises(KeyboardInterrupt):
            yield


def names(path: Path) -> list[str]:
    return sorted(content_of(lance_store(path, create=False).snapshot()))


def test_every_commit_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path, SearchLimits(index_from=256))
    changes: list[Callable[[], object]] = [
        lambda: store.put(*sample([f"v{n}" for n in range(300)]), replace=False),
        lambda: store.put(*sample(["v1", "w"], 1, colour="red"), replace=True),
        lambda: store.update(sample(["v2"], colour="blue")[0]),
        lambda: store.remove(["v3"]),
        lambda: store.optimize(ignore_progress),
    ]
    for change in changes:
        change()
        record = read_record(path)
        assert record is not None
        assert record.version == versions_of(path)[0] == store.snapshot()._table.version
        assert record == make_record(path, record.version, None, record.indexed_below)
    assert record is not None
    assert record.indexed_below > 0
    assert len(record.indices) > 2


def test_a_writer_killed_before_it_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path)
    store.put(*sample(["a"]), replace=False)
    with killed_before_recording(monkeypatch):
        store.put(*sample(["b"]), replace=False)
    record = read_record(path)
    assert record is not None
    assert record.version < versions_of(path)[0]
    # Nobody holds the lock: the commit is whole, and is recorded by whoever comes first.
    assert names(path) == ["a", "b"]
    caught_up = read_record(path)
    assert caught_up is not None
    assert caught_up.version == versions_of(path)[0]


def test_the_next_write_catches_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path)
    store.put(*sample(["a"]), replace=False)
    with killed_before_recording(monkeypatch):
        lance_store(path).put(*sample(["b"]), replace=False)
    store.put(*sample(["c"]), replace=False)
    assert names(path) == ["a", "b", "c"]


@pytest.mark.parametrize("stage", ["before", "after"])
def test_a_writer_killed_while_it_made_the_gallery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    from xclip_deploy.runtime.gallery import lance_opening as module

    path = tmp_path / "gallery"

    def die(*arguments: Any) -> None:
        if stage == "after":
            write_record(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_record", die)
        with pytest.raises(KeyboardInterrupt):
            lance_store(path)
    assert names(path) == []
    lance_store(path).put(*sample(["a"]), replace=False)
    assert names(path) == ["a"]


def test_a_commit_of_a_living_writer_counts_once_it_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path)
    store.put(*sample(["a"]), replace=False)
    with killed_before_recording(monkeypatch):
        lance_store(path).put(*sample(["b"]), replace=False)
    lock = take_lock(str(path))
    assert lock is not None
    try:
        assert names(path) == ["a"]
        store.refresh()
        assert sorted(content_of(store.snapshot())) == ["a"]
    finally:
        os.close(lock)
    assert names(path) == ["a", "b"]
    store.refresh()
    assert sorted(content_of(store.snapshot())) == ["a", "b"]


def test_a_restored_older_table_is_refused(tmp_path: Path) -> None:
    path, copy = tmp_path / "gallery", tmp_path / "copy"
    store = lance_store(path)
    store.put(*sample(["a"]), replace=False)
    shutil.copytree(path / "videos.lance", copy)
    store.put(*sample(["b"]), replace=False)
    assert names(path) == ["a", "b"]
    shutil.rmtree(path / "videos.lance")
    copy.rename(path / "videos.lance")
    with pytest.raises(GalleryIntegrityError, match="was committed, and its manifest"):
        lance_store(path, create=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "its record of commits is missing"),
        ("", "its record of commits, committed.json, is damaged"),
        ("{}", "its record of commits, committed.json, is damaged"),
        ("[1]", "its record of commits, committed.json, is damaged"),
        ('{"sha256": "0", "version": 2}', "its record of commits, committed.json, is damaged"),
    ],
)
def test_a_lost_record(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "gallery"
    lance_store(path).put(*sample(["a"]), replace=False)
    (path / RECORD_FILE).unlink()
    if content is not None:
        (path / RECORD_FILE).write_text(content)
    with pytest.raises(GalleryIntegrityError, match=message):
        lance_store(path, create=False)


def test_a_record_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lance_commits, "write_record", full)
        with pytest.raises(GalleryError, match="the disk is full"):
            store.put(*sample(["a"]), replace=False)
    assert len(store.snapshot()) == 0
    store.put(*sample(["b"]), replace=False)
    assert names(path) == ["a", "b"]


def test_readers_open_while_another_process_optimizes(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path, SearchLimits(index_from=256))
    for part in range(3):
        store.put(*sample([f"v{part}-{n}" for n in range(100)]), replace=False)
    seen: list[int] = []
    # Called between the steps, while the lock is held.
    store.optimize(lambda _what: seen.append(len(names(path))), keep=store_keeps_nothing())
    assert seen
    assert set(seen) == {300}
    assert len(names(path)) == 300


def store_keeps_nothing() -> Any:
    from datetime import timedelta

    return timedelta(0)


def test_a_writer_killed_while_it_deleted_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path, SearchLimits(index_from=256))
    store.put(*sample([f"v{n}" for n in range(300)]), replace=False)
    store.remove(["v3"])
    store.optimize(ignore_progress)
    calls: list[int] = []

    def die_at_the_end(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write_record(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(lance_commits, "write_record", die_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            store.optimize(ignore_progress, keep=store_keeps_nothing())
    assert len(gone(path)) > 0
    lock = take_lock(str(path))
    assert lock is not None
    try:  # as if the writer were still at work
        assert lance_store(path, create=False).verify(ignore_progress).is_whole
    finally:
        os.close(lock)
    assert lance_store(path, create=False).verify(ignore_progress).is_whole
    assert gone(path) == []


def gone(path: Path) -> list[str]:
    """Recorded files that are not there."""
    record = read_record(path)
    assert record is not None
    return [name for name in record.files if not (path / "videos.lance" / name).is_file()]


def test_a_deletion_file_that_no_version_reads(tmp_path: Path) -> None:
    """A writer that is killed before its manifest leaves one with a higher number."""
    path = tmp_path / "gallery"
    store = lance_store(path)
    store.put(*sample(["a", "b"]), replace=False)
    store.remove(["b"])
    (real,) = (path / "videos.lance" / "_deletions").iterdir()
    fragment, version, _ = real.stem.split("-")
    shutil.copyfile(real, real.with_name(f"{fragment}-{int(version) + 7}-1{real.suffix}"))
    store.put(*sample(["c"]), replace=False)
    assert names(path) == ["a", "c"]
    _write_no_deletions(real)
    with pytest.raises(GalleryIntegrityError, match="is not as it was written"):
        names(path)


def test_a_gallery_that_is_replaced_twice_is_noticed(tmp_path: Path) -> None:
    """File systems give the number of a deleted directory to the next one."""
    path = tmp_path / "gallery"
    other = Gallery(FeatureModel("1" * 64, DIM, FRAMES))
    for _ in range(8):
        Gallery(FeatureModel(MODEL, DIM, FRAMES)).save(path)
        opened = lance_store(path, create=False)
        for _ in range(2):
            other.save(path)
        with pytest.raises(GalleryModelError, match="open it again"):
            opened.refresh()


def test_rows_are_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that goes on reads what is new, not the whole gallery at each commit."""
    from xclip_deploy.runtime.gallery import lance_reader

    path = tmp_path / "gallery"
    lance_store(path).put(*sample([f"v{n}" for n in range(500)]), replace=False)
    store = lance_store(path, NOTHING_IN_MEMORY, create=False)
    read: list[int] = []

    def counted(table: Any, part: Part, *rest: Any) -> Any:
        if part is Part.RECORD:
            read.append(len(table))
        return is_whole(table, part, *rest)

    monkeypatch.setattr(lance_reader, "is_whole", counted)
    assert store.snapshot().find(["v3"]).keys() == {"v3"}
    assert sum(read) == 501
    for number in range(4):
        read.clear()
        store.put(*sample([f"w{number}"]), replace=True)
        assert store.snapshot().find(["none"]) == {}
        assert sum(read) <= 3, number
