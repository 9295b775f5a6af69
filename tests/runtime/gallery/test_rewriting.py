"""Rescue of what is whole, upgrade of galleries without checksums, and verification."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from gallery_samples import (
    DIM,
    FRAMES,
    MODEL,
    content_of,
    lance_store,
    make_unchecked,
    sample,
)

from xclip_deploy.errors import (
    GalleryError,
    GalleryIntegrityError,
    GalleryNotFoundError,
    GalleryVersionError,
)
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Verification
from xclip_deploy.runtime.gallery.commit_record import RECORD_FILE, find_manifest
from xclip_deploy.runtime.gallery.lance_schema import make_schema, to_table, to_videos
from xclip_deploy.runtime.gallery.lance_store import LanceStore
from xclip_deploy.runtime.gallery.rewriting import rescue_gallery, upgrade_gallery
from xclip_deploy.runtime.gallery.store import SearchLimits
from xclip_deploy.runtime.progress import ignore_progress

LIMITS = SearchLimits(index_from=256)


def made(path: Path) -> tuple[LanceStore, dict[str, Any]]:
    """Several files of data, deletions, replaced videos and an index."""
    store = lance_store(path, LIMITS)
    store.put(*sample([f"v{n}" for n in range(300)], source="cam1"), replace=False)
    store.optimize(ignore_progress)
    store.put(*sample([f"w{n}" for n in range(20)]), replace=False)
    store.put(*sample(["v3", "x"], 1, colour="red"), replace=True)
    store.remove(["v7", "w2"])
    return store, content_of(store.snapshot())


def data_files(path: Path) -> list[Path]:
    """The largest first."""
    files = (path / "videos.lance" / "data").iterdir()
    return sorted(files, key=lambda file: -file.stat().st_size)


def copied(path: Path) -> dict[str, Any]:
    """What a rescued gallery holds; it is whole itself."""
    store = lance_store(path, create=False)
    assert store.verify(ignore_progress).is_whole
    return content_of(store.snapshot())


def flip_feature(path: Path, store: LanceStore, name: str) -> None:
    """Change one bit of a video's frames, where they lie in a data file."""
    row = store.snapshot().find([name])[name]
    features = store.snapshot().features(np.array([row], np.int64))
    wanted = features.frame_features.tobytes()
    for file in data_files(path):
        content = bytearray(file.read_bytes())
        if (place := content.find(wanted)) >= 0:
            content[place + 5] ^= 4
            file.write_bytes(content)
            return
    raise AssertionError("not found")


def test_a_whole_gallery(tmp_path: Path) -> None:
    store, content = made(tmp_path / "gallery")
    assert store.verify(ignore_progress) == Verification(len(content))
    found = rescue_gallery(tmp_path / "gallery", tmp_path / "new")
    assert (found.num_videos, found.lost, found.deletions_lost) == (len(content), (), False)
    assert found.version == found.committed_version
    assert copied(tmp_path / "new") == content


def test_one_damaged_video_is_named_and_the_others_are_rescued(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    store, content = made(path)
    flip_feature(path, store, "v12")
    found = lance_store(path, LIMITS, create=False).verify(ignore_progress)
    assert found == Verification(len(content), ("v12",))
    assert not found.is_whole
    rescued = rescue_gallery(path, tmp_path / "new")
    assert rescued.lost == ("v12",)
    del content["v12"]
    assert copied(tmp_path / "new") == content


def test_the_only_video_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path)
    store.put(*sample(["a"]), replace=False)
    flip_feature(path, store, "a")
    rescued = rescue_gallery(path, tmp_path / "new")
    assert (rescued.num_videos, rescued.lost) == (0, ("a",))
    assert copied(tmp_path / "new") == {}


def test_a_damaged_id_is_not_believed(tmp_path: Path) -> None:
    """The false name is that of another video, which is whole."""
    path = tmp_path / "gallery"
    store = lance_store(path)
    store.put(*sample(["clip-00", "clip-01", "clip-02", "clip-03"]), replace=False)
    content = content_of(store.snapshot())
    (file,) = data_files(path)
    assert b"clip-01" in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(b"clip-01", b"clip-02"))
    assert lance_store(path).verify(ignore_progress).damaged_videos == ("row 1",)
    rescued = rescue_gallery(path, tmp_path / "new")
    assert rescued.lost == ("row 1",)
    del content["clip-01"]
    assert copied(tmp_path / "new") == content


def test_frames_of_zeros_cost_the_video_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path)
    videos, features = sample(["clip-00", "clip-01", "clip-02", "clip-03"])
    store.put(videos, features, replace=False)
    (file,) = data_files(path)
    wanted = features.frame_features[2].tobytes()
    assert wanted in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(wanted, bytes(len(wanted))))
    assert lance_store(path).verify(ignore_progress).damaged_videos == ("clip-02",)
    assert rescue_gallery(path, tmp_path / "new").lost == ("clip-02",)


@pytest.mark.parametrize("damaged", ["newer", "older"])
def test_a_stale_copy_hides_no_loss(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path)
    store.put(*sample(["x", "y"]), replace=False)
    if damaged == "older":
        flip_feature(path, store, "x")
        store = lance_store(path)
    store.put(*sample(["x"], 1), replace=True)
    content = content_of(store.snapshot())
    if damaged == "newer":
        flip_feature(path, store, "x")
        del content["x"]
    for file in (path / "videos.lance" / "_deletions").iterdir():
        file.unlink()
    rescued = rescue_gallery(path, tmp_path / "new")
    assert rescued.lost == (("x",) if damaged == "newer" else ())
    assert copied(tmp_path / "new") == content


@pytest.mark.slow
def test_a_lost_data_file_costs_its_own_videos_alone(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    _store, content = made(path)
    data_files(path)[1].unlink()  # of w0 to w19
    found = lance_store(path, LIMITS, create=False).verify(ignore_progress)
    assert len(found.damaged_videos) == 19
    rescued = rescue_gallery(path, tmp_path / "new")
    assert len(rescued.lost) == 19
    assert copied(tmp_path / "new") == {
        name: video for name, video in content.items() if not name.startswith("w")
    }


@pytest.mark.parametrize("damage", ["lost", "flipped"])
def test_a_lost_manifest(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "gallery"
    store, content = made(path)
    version = store.snapshot()._table.version
    manifest = find_manifest(path, version)
    assert manifest is not None
    if damage == "lost":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:-100] + bytes(100))
    with pytest.raises(GalleryIntegrityError, match="gallery rescue"):
        lance_store(path, create=False)
    rescued = rescue_gallery(path, tmp_path / "new")
    assert (rescued.version, rescued.committed_version) == (version - 1, version)
    # The last commit removed v7 and w2.
    assert rescued.deletions_lost
    assert copied(tmp_path / "new").keys() == {*content, "v7", "w2"}


def test_a_removed_video_that_may_be_back_is_said(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path)
    store.put(*sample(["x", "y"]), replace=False)
    store.remove(["x"])
    manifest = find_manifest(path, store.snapshot()._table.version)
    assert manifest is not None
    manifest.unlink()
    rescued = rescue_gallery(path, tmp_path / "new")
    assert (rescued.num_videos, rescued.version, rescued.committed_version) == (2, 3, 4)
    assert rescued.deletions_lost


def test_a_lost_record_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    _store, content = made(path)
    (path / RECORD_FILE).unlink()
    rescued = rescue_gallery(path, tmp_path / "new")
    assert rescued.committed_version is None
    assert copied(tmp_path / "new") == content


@pytest.mark.parametrize("damage", ["lost", "flipped"])
def test_lost_deletions(tmp_path: Path, damage: str) -> None:
    """What was removed may be back, and what was replaced stays replaced."""
    path = tmp_path / "gallery"
    _store, content = made(path)
    for file in (path / "videos.lance" / "_deletions").iterdir():
        if damage == "lost":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(GalleryIntegrityError):
        content_of(lance_store(path, create=False).snapshot())
    rescued = rescue_gallery(path, tmp_path / "new")
    assert rescued.deletions_lost
    found = copied(tmp_path / "new")
    assert found.keys() == {*content, "v7", "w2"}
    assert {name: found[name] for name in content} == content


@pytest.mark.parametrize("damage", ["lost", "emptied"])
def test_damaged_indices_cost_nothing(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "gallery"
    _store, content = made(path)
    for file in (path / "videos.lance" / "_indices").rglob("*"):
        if file.is_file() and damage == "lost":
            file.unlink()
        elif file.is_file():
            file.write_bytes(b"")
    store = lance_store(path, create=False)
    found = store.verify(ignore_progress)
    assert not found.is_whole
    assert len(found.damaged_files) >= 4
    with pytest.raises(GalleryIntegrityError, match="gallery rescue"):
        store.snapshot().find(["v1"])
    rescue_gallery(path, tmp_path / "new")
    assert copied(tmp_path / "new") == content


def test_nothing_is_rescued_into_what_is_there(tmp_path: Path) -> None:
    made(tmp_path / "gallery")
    with pytest.raises(GalleryError, match="is there already"):
        rescue_gallery(tmp_path / "gallery", tmp_path / "gallery")
    for version in (tmp_path / "gallery" / "videos.lance" / "_versions").iterdir():
        version.unlink()
    with pytest.raises(GalleryIntegrityError, match="none of its versions can be read"):
        rescue_gallery(tmp_path / "gallery", tmp_path / "new")
    with pytest.raises(GalleryNotFoundError):
        rescue_gallery(tmp_path / "none", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_removing_and_replacing_beside_damage_loses_nothing_whole(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    store, content = made(path)
    flip_feature(path, store, "v12")
    store = lance_store(path, LIMITS, create=False)
    # Frames are damaged; these need none of them.
    assert store.remove(["v20"]) == 1
    store.put(*sample(["v21"], 2), replace=True)
    store.optimize(ignore_progress)
    del content["v20"]
    with pytest.raises(GalleryIntegrityError, match="gallery rescue"):
        store.update(sample(["v12"], colour="blue")[0])  # which would bless the damage
    rescued = rescue_gallery(path, tmp_path / "new")
    assert rescued.lost == ("v12",)
    found = copied(tmp_path / "new")
    for name in content.keys() - {"v12", "v21"}:
        assert found[name] == content[name]
    # Replacing the damaged video itself heals the gallery.
    store.put(*sample(["v12"], 3), replace=True)
    assert store.verify(ignore_progress).is_whole
    assert content_of(store.snapshot()).keys() == content.keys()


def test_records_are_read_without_a_number_object_for_each_feature() -> None:
    schema = make_schema(MODEL, 512, FRAMES)
    videos, _ = sample([f"v{n}" for n in range(50)])
    videos = [video.model_copy(update={"metadata": {}}) for video in videos]
    vectors = np.zeros((50, 512), np.float16)
    frames = np.zeros((50, FRAMES, 512), np.float16)
    rows = to_table(videos, VideoFeatures(vectors, frames, np.full(50, 2, np.int32)), schema)
    tracemalloc.start()
    try:
        assert to_videos(rows) == videos
        assert tracemalloc.get_traced_memory()[1] < 2 * (vectors.nbytes + frames.nbytes)
    finally:
        tracemalloc.stop()


# Galleries of schema version 2


def test_a_gallery_without_checksums_is_refused_and_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    videos = make_unchecked(path)
    with pytest.raises(GalleryVersionError, match=rf"run: xclip-deploy gallery upgrade .*{path}"):
        lance_store(path, create=False)
    assert upgrade_gallery(path) == 8
    found = copied(path)
    assert {name: video for name, (video, _) in found.items()} == videos
    with pytest.raises(GalleryError, match="has schema version 3 already"):
        upgrade_gallery(path)
    assert copied(path) == found


def test_an_upgrade_that_fails_leaves_the_old_gallery(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    _, features = sample([f"v{n}" for n in range(9)])
    features.video_features[6] *= 3
    make_unchecked(path, features)
    before = sorted(path.rglob("*"))
    with pytest.raises(GalleryIntegrityError, match=r"row 6 .* vectors of other length than 1"):
        upgrade_gallery(path)
    after = [file for file in sorted(path.rglob("*")) if file.name != "gallery.lock"]
    assert after == before
    assert [file.name for file in tmp_path.iterdir()] == ["gallery"]
    rescued = rescue_gallery(path, tmp_path / "new")
    assert rescued.lost == ("row 6",)
    assert len(copied(tmp_path / "new")) == 7


def test_what_cannot_be_upgraded(tmp_path: Path) -> None:
    with pytest.raises(GalleryNotFoundError):
        upgrade_gallery(tmp_path / "none")
    made(tmp_path / "gallery")
    shutil.rmtree(tmp_path / "gallery" / "videos.lance" / "_versions")
    with pytest.raises(GalleryError):
        upgrade_gallery(tmp_path / "gallery")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.remove(s.get_field_index("duration_s")), "0 columns 'duration_s'"),
        (lambda s: s.set(0, pa.field("id", pa.int64())), "column 'id' is int64, expected string"),
        (lambda s: s.append(pa.field("b", pa.binary())), "column 'b' is unknown"),
        (lambda s: s.remove(s.get_field_index("_check_video")), "0 columns '_check_video'"),
        (lambda s: s.remove(s.get_field_index("video_features")), "is None, expected vectors"),
    ],
)
def test_the_schema_is_checked(tmp_path: Path, change: Any, message: str) -> None:
    schema = change(make_schema(MODEL, DIM, FRAMES))
    lancedb.connect(tmp_path / "gallery").create_table("videos", schema=schema)
    with pytest.raises(GalleryIntegrityError, match=message):
        lance_store(tmp_path / "gallery", create=False)
