"""A gallery on disk: what is opened, what is refused, and disks that are full or read-only."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from gallery_samples import DIM, FRAMES, MODEL, content_of, lance_store, mounted, sample

from xclip_deploy.errors import (
    GalleryError,
    GalleryIntegrityError,
    GalleryNotFoundError,
    GalleryVersionError,
)
from xclip_deploy.runtime.gallery import FeatureModel, lance_commits, lance_schema
from xclip_deploy.runtime.gallery.lance_errors import lance_errors
from xclip_deploy.runtime.gallery.lance_opening import open_store


def test_the_header_and_columns(tmp_path: Path) -> None:
    store = lance_store(tmp_path / "gallery")
    assert store.uri == str(tmp_path / "gallery")
    assert store.model == FeatureModel(MODEL, DIM, FRAMES)
    assert (store.header.fingerprint, store.header.schema_version) == (MODEL, 3)
    store.put(*sample(["a"], source="x"), replace=False)
    # As any reader of LanceDB sees it.
    table = lancedb.connect(tmp_path / "gallery").open_table("videos").to_arrow()
    assert table.schema.field("frame_features").type == pa.list_(pa.float16(), FRAMES * DIM)
    assert table.schema.field("video_features").type == pa.list_(pa.float16(), DIM)
    assert set(table.column_names) == {
        *("id", "paths", "file_sizes", "file_times", "fingerprint", "duration_s"),
        *("frame_times_s", "num_frames", "video_features", "frame_features", "n", "source"),
        *("_reading_version", "_segment", "_num_segments", "_start_s", "_end_s", "_segmentation"),
        *("_check_record", "_check_segment", "_check_metadata", "_check_video", "_check_frames"),
    }


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        for each in (lance_schema, lance_commits):
            patch.setattr(each, "SCHEMA_VERSION", 9)
        lance_store(tmp_path / "newer")
    with pytest.raises(GalleryVersionError, match=r"version 9.*pip install --upgrade"):
        lance_store(tmp_path / "newer")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "gallery.json").write_text("{}")
    with pytest.raises(GalleryVersionError, match=r"version 1.*xclip-deploy index"):
        lance_store(tmp_path / "old")


@pytest.mark.parametrize(
    "header",
    [None, b"{", b"[]", b"{}", b'{"schema_version": null, "fingerprint": "x"}'],
)
def test_a_table_of_somebody_else(tmp_path: Path, header: bytes | None) -> None:
    metadata = {} if header is None else {b"xclip-deploy": header}
    schema = pa.schema([("id", pa.string())], metadata=metadata)
    lancedb.connect(tmp_path / "gallery").create_table("videos", schema=schema)
    with pytest.raises(GalleryIntegrityError, match="was not written by xclip-deploy"):
        lance_store(tmp_path / "gallery")


def test_what_is_no_gallery(tmp_path: Path) -> None:
    with pytest.raises(GalleryNotFoundError, match="run: xclip-deploy index"):
        lance_store(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(GalleryNotFoundError, match="choose another path"):
            lance_store(path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    # Left by a process that was killed while it made one.
    (tmp_path / "begun" / "videos.lance" / "_versions").mkdir(parents=True)
    (tmp_path / "begun" / "gallery.lock").touch()
    with pytest.raises(GalleryNotFoundError):
        lance_store(tmp_path / "begun", create=False)
    assert len(lance_store(tmp_path / "begun").snapshot()) == 0


def test_a_path_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("with space", "ünï 😀", "quo'te", "a%20b", "#x?y=1"):
        store = lance_store(tmp_path / name)
        store.put(*sample(["a"]), replace=False)
        assert (tmp_path / name / "videos.lance").is_dir()
        assert len(lance_store(tmp_path / name, create=False).snapshot()) == 1
    # A relative one stays where it was when the process goes elsewhere.
    monkeypatch.chdir(tmp_path)
    store = lance_store(Path("relative"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.put(*sample(["a"]), replace=False)
    assert len(content_of(store.snapshot())) == 1
    (tmp_path / "link").symlink_to(tmp_path / "relative")
    assert len(lance_store(tmp_path / "link", create=False).snapshot()) == 1


def test_a_uri(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/gallery"
    store = open_store(uri, MODEL, DIM, FRAMES, create=True)
    store.put(*sample(["a"]), replace=False)
    store.remove(["none"])
    assert len(open_store(uri, MODEL, DIM, FRAMES, create=False).snapshot()) == 1
    assert len(lance_store(tmp_path / "gallery", create=False).snapshot()) == 1
    with pytest.raises(GalleryNotFoundError, match=f"no gallery at {tmp_path}/gallery-2"):
        open_store(f"{uri}-2", MODEL, DIM, FRAMES, create=False)


def test_many_videos_at_once(tmp_path: Path) -> None:
    store = lance_store(tmp_path / "gallery")
    names = [f"a rather long id, as paths are: {n}" for n in range(5000)]
    videos, features = sample(names)
    store.put(videos, features, replace=False)
    store.optimize(lambda _what: None)
    before = store.snapshot()
    store.update([v.model_copy(update={"metadata": {"n": -1}}) for v in videos[:3000]])
    snapshot = store.snapshot()
    assert len(snapshot.matching("n < 0")) == 3000
    content = content_of(snapshot, 1024)
    assert {name: c for name, (_, c) in content.items()} == {
        name: c for name, (_, c) in content_of(before, 1024).items()
    }
    assert len(snapshot.find(names)) == 5000
    assert store.remove(names[1:]) == 4999
    assert list(content_of(store.snapshot())) == names[:1]


def test_a_read_only_disk(tmp_path: Path) -> None:
    store = lance_store(tmp_path / "gallery")
    videos, features = sample([f"v{n}" for n in range(5)])
    store.put(videos, features, replace=False)
    expected = content_of(store.snapshot())
    with mounted(tmp_path / "disk", "--bind", "-o", "ro", str(tmp_path / "gallery")):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(tmp_path / "disk")], check=False)
        store = lance_store(tmp_path / "disk", create=False)
        snapshot = store.snapshot()
        assert content_of(snapshot) == expected
        assert snapshot.nearest(np.ones((1, DIM), np.float16), 2)[0].rows.shape == (2,)
        assert len(snapshot.matching("n < 2")) == 2
        store.refresh()
        for write in (
            lambda: store.put(*sample(["new"]), replace=False),
            lambda: store.update(videos[:1]),
            lambda: store.remove(["v1"]),
            lambda: store.optimize(lambda _what: None),
            lambda: lance_store(tmp_path / "disk" / "other"),
        ):
            with pytest.raises(GalleryError, match="cannot be written: it is read-only") as raised:
                write()
            assert "\n" not in str(raised.value)
        assert content_of(store.snapshot()) == expected


def test_a_full_disk(tmp_path: Path) -> None:
    def fill() -> None:
        for n in range(100):
            name = f"v{n}"
            store.put(*sample([name], n, note=chance.randbytes(100_000).hex()), replace=False)
            written.add(name)

    chance = random.Random(1)  # what it gives cannot be compressed away
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        store = lance_store(tmp_path / "disk" / "gallery")
        written: set[str] = set()
        with pytest.raises(GalleryError, match="the disk is full; what was committed") as raised:
            fill()
        assert "\n" not in str(raised.value)
        assert ".rs" not in str(raised.value)
        assert len(written) >= 3
        assert set(content_of(store.snapshot())) == written
        assert set(content_of(lance_store(tmp_path / "disk" / "gallery").snapshot())) == written
        # With room again, the same object goes on.
        subprocess.run(["mount", "-o", "remount,size=20m", str(tmp_path / "disk")], check=True)
        store.put(*sample(["new"]), replace=False)
        assert set(content_of(store.snapshot())) == {*written, "new"}


@pytest.mark.parametrize(
    ("doing", "error", "expected"),
    [
        ("written", OSError(28, "No space left on device"), "the disk is full"),
        ("written", RuntimeError("lance error: Disk quota exceeded (os error 122)"), "is full"),
        ("written", PermissionError(13, "Permission denied"), "cannot be written: it is read-only"),
        ("written", RuntimeError("lance error: odd, /root/x/y.rs:3:4"), r"\(lance error: odd\)"),
        ("read", PermissionError(13, "Permission denied"), r"cannot be read \(.*denied\)$"),
        ("read", OSError(24, "Too many open files"), r"cannot be read \(.*open files\)$"),
        ("read", ValueError("odd\nlines"), r"damaged or missing \(odd lines\); restore it"),
    ],
)
def test_errors_of_lancedb(doing: str, error: Exception, expected: str) -> None:
    with (
        pytest.raises(GalleryError, match=expected) as raised,
        lance_errors("/galleries/mine", doing),
    ):
        raise error
    assert "/galleries/mine" in str(raised.value)
    assert isinstance(raised.value, GalleryIntegrityError) == ("damaged" in expected)


def test_what_is_no_error_of_lancedb_passes() -> None:
    for error in (KeyboardInterrupt(), GeneratorExit(), GalleryNotFoundError("none")):
        with pytest.raises(type(error)), lance_errors("/galleries/mine", "read"):
            raise error


def test_galleries_in_memory_do_not_import_lancedb() -> None:
    code = (
        "import sys, numpy as np\n"
        "from xclip_deploy.runtime.gallery.memory_store import MemoryStore\n"
        "store = MemoryStore(4, 2)\n"
        "store.snapshot().nearest(np.ones((1, 4)), 3)\n"
        "assert not {'lancedb', 'pyarrow', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
