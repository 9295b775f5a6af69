"""Rows that are read straight from Lance's pages: what LanceDB reads, or left to it."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from gallery_samples import MODEL, rows_of, unit

from xclip_deploy.errors import GalleryIntegrityError
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import GalleryVideo, lance_pages
from xclip_deploy.runtime.gallery.commit_record import find_manifest
from xclip_deploy.runtime.gallery.lance_opening import open_store
from xclip_deploy.runtime.gallery.lance_pages import PagedColumn
from xclip_deploy.runtime.gallery.lance_snapshot import LanceSnapshot
from xclip_deploy.runtime.gallery.lance_store import LanceStore
from xclip_deploy.runtime.gallery.store import SearchLimits

DIM, FRAMES = 64, 4
"""Rows of 512 bytes: Lance packs those below 128 bytes in another way."""
ROW_BYTES = 2 * DIM * FRAMES
WARM = SearchLimits(flat_videos=0, flat_bytes=0, held_bytes=0)
COLD = SearchLimits(flat_videos=0, flat_bytes=0, held_bytes=0, warm_bytes=0)


def opened(path: Path, limits: SearchLimits, dim: int = DIM, *, create: bool = False) -> LanceStore:
    return open_store(path, MODEL, dim, FRAMES, create=create, limits=limits)


def add(store: LanceStore, names: list[str], seed: int, dim: int = DIM) -> None:
    rng = np.random.default_rng(seed)
    videos = [GalleryVideo(id=name, path=f"/{name}", frame_times_s=(0.0, 1.0)) for name in names]
    vectors = unit(rng.standard_normal((len(names), dim))).astype(np.float16)
    frames = unit(rng.standard_normal((len(names), FRAMES, dim))).astype(np.float16)
    features = VideoFeatures(vectors, frames, np.full(len(names), 2, np.int32))
    store.put(videos, features, replace=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A gallery of 37 videos in three fragments, of which two have deleted rows."""
    path = tmp_path / "gallery"
    store = opened(path, COLD, create=True)
    add(store, [f"a{n}" for n in range(20)], 1)
    add(store, [f"b{n}" for n in range(20)], 2)
    add(store, ["a3", "a4", "b0"], 3)
    store.remove(["a0", "b7", "b19"])
    return path


def pages_of(snapshot: LanceSnapshot) -> PagedColumn | None:
    assert snapshot._warm is not None
    return snapshot._warm.pages


def warm_snapshot(path: Path) -> LanceSnapshot:
    snapshot = opened(path, WARM).snapshot()
    snapshot.warm_up()
    assert pages_of(snapshot) is not None
    return snapshot


def assert_same(one: VideoFeatures, other: VideoFeatures) -> None:
    for name in ("video_features", "frame_features", "num_frames"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("nowait", [True, False])
@pytest.mark.parametrize("is_optimized", [False, True])
def test_rows_are_those_of_lancedb(
    path: Path, nowait: bool, is_optimized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not nowait:
        monkeypatch.setattr(lance_pages, "_NOWAIT", 0)
    if is_optimized:
        opened(path, COLD).optimize(lambda _what: None)
    warm, cold = warm_snapshot(path), opened(path, COLD).snapshot()
    rows = cold.rows()
    assert len(rows) == 37
    assert len(set((rows >> 32).tolist())) == (1 if is_optimized else 3)
    rng = np.random.default_rng(5)
    for some in (rows, rows[::-1], rng.choice(rows, 50), rows[5:6], rows[:0]):
        assert_same(warm.features(some), cold.features(some))
    assert pages_of(warm) is not None  # it was they that were read


@pytest.mark.parametrize("size", [1, 7, 37, 100])
def test_a_scan_reads_every_row_once(path: Path, size: int) -> None:
    warm, cold = warm_snapshot(path), opened(path, COLD).snapshot()
    parts = list(warm.scan(size))
    assert [len(rows) for rows, _ in parts[:-1]] == [size] * (len(parts) - 1)
    rows = np.concatenate([rows for rows, _ in parts])
    np.testing.assert_array_equal(rows, cold.rows())
    assert_same(VideoFeatures.concatenate([part for _, part in parts]), cold.features(rows))
    # A filter is evaluated by LanceDB.
    assert sum(len(rows) for rows, _ in warm.scan(size, "id = 'a3'")) == 1


def test_a_scan_may_be_left(path: Path) -> None:
    threads = threading.active_count()
    parts = warm_snapshot(path).scan(5)
    next(parts)
    parts.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= threads


def test_a_scan_finds_damage(path: Path) -> None:
    warm = warm_snapshot(path)
    damage(path, warm.features(warm.rows()[20:21]).frame_features.tobytes())
    with pytest.raises(GalleryIntegrityError, match="differ from what was written"):
        list(warm.scan(5))


def test_a_row_that_is_not_there_is_left_to_lancedb(path: Path) -> None:
    pages = pages_of(warm_snapshot(path))
    assert pages is not None
    for row in (-1, 1 << 20, 99 << 32):
        assert pages.read(np.array([row], np.int64)) is None


def damage(path: Path, frames: bytes) -> None:
    """Change a bit of a row's frames in their file."""
    (file,) = [
        file for file in path.glob("videos.lance/data/*.lance") if frames in file.read_bytes()
    ]
    damaged = bytearray(file.read_bytes())
    damaged[damaged.index(frames) + 100] ^= 1
    file.write_bytes(damaged)


def test_damaged_frames_are_found(path: Path) -> None:
    snapshot = warm_snapshot(path)
    rows = rows_of(snapshot, ["a5", "a6"])
    damage(path, snapshot.features(rows[:1]).frame_features.tobytes())
    snapshot.features(rows[1:])
    with pytest.raises(GalleryIntegrityError, match="1 of 2 rows that were read differ"):
        snapshot.features(rows)
    assert_same(snapshot.features(rows[1:]), opened(path, COLD).snapshot().features(rows[1:]))


def test_pages_that_lie_elsewhere_are_read_by_lancedb(path: Path) -> None:
    warm, cold = warm_snapshot(path), opened(path, COLD).snapshot()
    pages = pages_of(warm)
    assert pages is not None
    pages._offsets = pages._offsets + ROW_BYTES
    rows = cold.rows()[:9]
    assert_same(warm.features(rows), cold.features(rows))
    assert pages_of(warm) is None


def test_a_snapshot_outlives_its_files(path: Path) -> None:
    snapshot = warm_snapshot(path)
    rows = snapshot.rows()
    before = snapshot.features(rows)
    shutil.rmtree(path / "videos.lance" / "data")
    assert_same(snapshot.features(rows), before)


def test_a_layout_that_is_not_plain_is_left_to_lancedb(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    store = opened(path, WARM, 8, create=True)
    add(store, [f"v{n}" for n in range(300)], 4, 8)
    snapshot = store.snapshot()
    snapshot.warm_up()
    assert pages_of(snapshot) is None
    rows = snapshot.rows()
    assert_same(snapshot.features(rows), opened(path, COLD, 8).snapshot().features(rows))


def test_many_files_are_left_to_lancedb(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_pages, "_MOST_FILES", 2)
    snapshot = opened(path, WARM).snapshot()
    snapshot.warm_up()
    assert pages_of(snapshot) is None
    assert len(snapshot.features(snapshot.rows()).num_frames) == 37


def test_damaged_descriptions_raise_nothing(path: Path) -> None:
    """Each byte of the manifest and of a file's footer is changed in turn."""
    version = opened(path, COLD).snapshot()._table.version
    rows = opened(path, COLD).snapshot().rows()
    manifest = find_manifest(path, version)
    assert manifest is not None
    data = min(path.glob("videos.lance/data/*.lance"))
    num_unreadable = 0
    for file, least in ((manifest, 0), (data, data.stat().st_size - 1200)):
        whole = file.read_bytes()
        for place in range(least, len(whole), 7):
            damaged = bytearray(whole)
            damaged[place] ^= 0x55
            file.write_bytes(damaged)
            pages = PagedColumn.open(path, version, "frame_features", ROW_BYTES)
            num_unreadable += pages is None or pages.read(rows) is None
        file.write_bytes(whole)
    assert num_unreadable > 10
    assert PagedColumn.open(path, version, "frame_features", ROW_BYTES) is not None
    assert PagedColumn.open(path, version, "frame_features", ROW_BYTES + 2) is None
    assert PagedColumn.open(path, version, "no_such_column", ROW_BYTES) is None
    assert PagedColumn.open(path, version + 9, "frame_features", ROW_BYTES) is None
