"""A gallery on disk: other models, versions and damage."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from xclip_deploy import Bundle, Gallery, GalleryVideo, VideoFeatures
from xclip_deploy.errors import (
    GalleryError,
    GalleryModelError,
    GalleryNotFoundError,
    GalleryVersionError,
    XclipDeployError,
)
from xclip_deploy.runtime.gallery import lance_schema, lance_store
from xclip_deploy.runtime.gallery.lance_snapshot import LanceSnapshot, SearchLimits
from xclip_deploy.runtime.gallery.lance_store import LanceStore, open_store

DIM, FRAMES = 16, 3


def some(first: int, count: int) -> tuple[list[GalleryVideo], VideoFeatures]:
    rng = np.random.default_rng(first)
    videos = [
        GalleryVideo(id=f"v{n}", frame_times_s=(0.0,), metadata={"n": n})
        for n in range(first, first + count)
    ]
    return videos, VideoFeatures(
        rng.standard_normal((count, DIM)).astype(np.float16),
        rng.standard_normal((count, FRAMES, DIM)).astype(np.float16),
        np.ones(count, np.int32),
    )


def make(path: Path, limits: SearchLimits | None = None) -> LanceStore:
    return open_store(path, "0" * 64, DIM, FRAMES, create=True, limits=limits)


def contents(path: Path) -> list[tuple[str, bytes, bytes]]:
    snapshot = open_store(path, "0" * 64, DIM, FRAMES, create=False).snapshot()
    found = []
    for rows, features in snapshot.scan(8):
        for n, video in enumerate(snapshot.videos(rows)):
            vectors = features.video_features[n].tobytes(), features.frame_features[n].tobytes()
            found.append((video.id, *vectors))
    return sorted(found)


def test_another_model_and_other_versions(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "other")
    with pytest.raises(GalleryModelError, match="xclip-deploy index VIDEOS --gallery NEW"):
        Gallery.open(tmp_path / "other", bundle.manifest)
    with monkeypatch.context() as patch:
        patch.setattr(lance_schema, "SCHEMA_VERSION", 9)
        patch.setattr(lance_store, "SCHEMA_VERSION", 9)
        make(tmp_path / "newer")
    with pytest.raises(GalleryVersionError, match=r"version 9.*pip install --upgrade"):
        Gallery.open(tmp_path / "newer", bundle.manifest)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "gallery.json").write_text("{}")
    with pytest.raises(GalleryVersionError, match=r"version 1.*xclip-deploy index"):
        Gallery.open(tmp_path / "old", bundle.manifest)


def test_what_is_no_gallery(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(GalleryNotFoundError, match="run: xclip-deploy index"):
        Gallery.open(tmp_path / "none", bundle.manifest)
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(GalleryNotFoundError, match="choose another path"):
            Gallery.open(path, bundle.manifest, create=True)
    # Left by a process that was killed while it made one.
    (tmp_path / "begun" / "videos.lance" / "_versions").mkdir(parents=True)
    assert len(Gallery.open(tmp_path / "begun", bundle.manifest, create=True)) == 0


def test_every_file_cut_gives_an_error_or_the_same(tmp_path: Path) -> None:
    store = make(tmp_path / "gallery")
    store.put(*some(0, 6), replace=False)
    store.put(*some(3, 6), replace=True)
    store.remove(["v1"])
    expected = contents(tmp_path / "gallery")
    assert len(expected) == 8
    outcomes = set()
    for file in sorted((tmp_path / "gallery").rglob("*")):
        if not file.is_file():
            continue
        whole = file.read_bytes()
        for length in sorted({0, 1, len(whole) // 2, len(whole) - 1} - {-1}):
            file.write_bytes(whole[:length])
            try:
                assert contents(tmp_path / "gallery") == expected, f"{file} cut to {length}"
                outcomes.add("same")
            except XclipDeployError as error:
                outcomes.add("error" if "\n" not in str(error) else "several lines")
        file.write_bytes(whole)
    assert outcomes == {"same", "error"}
    assert contents(tmp_path / "gallery") == expected


def test_an_index_finds_what_all_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_store, "INDEX_FROM", 500)
    path = tmp_path / "gallery"
    store = make(path, SearchLimits(flat_videos=0, partitions=1.0))
    store.put(*some(0, 2000), replace=False)
    flat = store.snapshot().nearest(np.eye(3, DIM), 10)
    steps: list[str] = []
    store.optimize(steps.append)
    assert any("16 partitions" in step for step in steps)
    snapshot = store.snapshot()
    assert snapshot.num_partitions == 16
    indexed = snapshot.nearest(np.eye(3, DIM), 200)
    assert {found.method for found in indexed} == {"index"}
    names = [{v.id for v in snapshot.videos(found.rows)} for found in indexed]
    before = [{v.id for v in snapshot.videos(found.rows)} for found in flat]
    shared = [len(a & b) for a, b in zip(names, before, strict=True)]
    assert sum(shared) >= 24  # of 30; quantised to one bit a dimension
    # What comes after the index was built is found as well.
    videos, features = some(9000, 1)
    loud = VideoFeatures(
        np.full((1, DIM), 50, np.float16), features.frame_features, features.num_frames
    )
    store.put(videos, loud, replace=False)
    snapshot = store.snapshot()
    (found,) = snapshot.nearest(np.ones((1, DIM)), 5, "n >= 9000")
    assert [v.id for v in snapshot.videos(found.rows)] == ["v9000"]
    ((content, method),) = snapshot.nearest_content(np.ones((1, DIM)), 5)
    assert method == "index"
    assert "v9000" in {v.id for v in content.videos(np.arange(len(content.rows)))}


def test_a_snapshot_is_read_while_others_write(tmp_path: Path) -> None:
    store = make(tmp_path / "gallery")
    store.put(*some(0, 20), replace=False)
    snapshot = store.snapshot()

    def read() -> set[tuple[int, int]]:
        found = set()
        for _ in range(20):
            names = {video.id for video in snapshot.listing()}
            found.add((len(names), len(snapshot.matching("n < 10"))))
        return found

    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(read) for _ in range(2)]
        for n in range(10):
            store.put(*some(100 + n, 1), replace=False)
        store.remove(["v0", "v1"])
        store.optimize(lambda _what: None)
        assert [result.result() for result in reading] == [{(20, 10)}, {(20, 10)}]
    assert len(store.snapshot()) == 28


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    ours = make(path)
    code = (
        "import sys, numpy as np\n"
        "from xclip_deploy.runtime.features import VideoFeatures\n"
        "from xclip_deploy.runtime.gallery import GalleryVideo\n"
        "from xclip_deploy.runtime.gallery.lance_store import open_store\n"
        f"store = open_store(sys.argv[1], '0' * 64, {DIM}, {FRAMES}, create=False)\n"
        f"features = VideoFeatures(np.ones((1, {DIM}), np.float16), "
        f"np.ones((1, {FRAMES}, {DIM}), np.float16), np.ones(1, np.int32))\n"
        "for n in range(12):\n"
        "    video = GalleryVideo(id=f'other{n}', frame_times_s=(0.0,), metadata={f'k{n}': n})\n"
        "    store.put([video], features, replace=False)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as other:
        for n in range(12):
            ours.put(*some(n, 1), replace=False)
        assert other.wait(120) == 0
    seen = len(ours.snapshot())
    ours.refresh()
    assert len(ours.snapshot()) == 24 >= seen


def test_save_writes_a_copy(bundle: Bundle, tmp_path: Path) -> None:
    config = bundle.manifest.model
    gallery = Gallery(bundle.manifest)
    features = VideoFeatures(
        np.ones((2, config.embed_dim)),
        np.ones((2, config.max_frames, config.embed_dim)),
        np.ones(2, np.int32),
    )
    videos = [GalleryVideo(id=name, frame_times_s=(0.0,)) for name in ("a", "b")]
    gallery.add(videos, features)
    gallery.save(tmp_path / "copy")
    gallery.remove(["a"])
    gallery.save(tmp_path / "copy")
    opened = Gallery.open(tmp_path / "copy", bundle.manifest)
    assert [video.id for video in opened.snapshot().listing()] == ["b"]
    assert isinstance(opened.snapshot(), LanceSnapshot)
    with pytest.raises(GalleryError, match="this gallery itself"):
        opened.save(tmp_path / "copy")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(GalleryError, match="not empty"):
        opened.save(tmp_path / "mine")


def test_a_gallery_whose_files_are_gone(tmp_path: Path) -> None:
    store = make(tmp_path / "gallery")
    store.put(*some(0, 3), replace=False)
    shutil.rmtree(tmp_path / "gallery" / "videos.lance" / "data")
    with pytest.raises(GalleryError, match="damaged or missing"):
        contents(tmp_path / "gallery")
