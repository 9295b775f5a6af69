"""Thumbnails: small files beside a gallery, of which none can cost an indexing."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.gallery.thumbnails import ThumbnailStore, thumbnail_key

SHA = "3f" * 32
OTHER = "a0" * 32


def picture(
    seed: int, height: int = 360, width: int = 640
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, np.full_like(x, seed % 256)], 2).astype(
        np.uint8
    )


def test_put_and_get(tmp_path: Path) -> None:
    store = ThumbnailStore(tmp_path / "thumbnails")
    key = thumbnail_key(SHA, 3723.5)
    assert key == f"{SHA}-3723500"
    assert store.get(key) is None
    assert not store.directory.exists()  # opening writes nothing
    assert store.put(key, picture(7))
    path = store.get(key)
    assert path is not None
    assert path.suffix == ".webp"
    with Image.open(path) as image:
        assert (image.format, image.size) == ("WEBP", (256, 144))
        shown = np.array(image.convert("RGB")).astype(int)
    expected = np.array(Image.fromarray(picture(7)).resize((256, 144))).astype(int)
    assert np.abs(shown - expected).mean() < 4
    assert path.stat().st_size < 15_000
    assert store.warning is None


def test_at_most_one_a_segment(tmp_path: Path) -> None:
    store = ThumbnailStore(tmp_path)
    key = thumbnail_key(SHA, 8)
    store.put(key, picture(1))
    before = store.get(key)
    assert before is not None
    content = before.read_bytes()
    assert store.put(key, picture(200))
    assert before.read_bytes() == content
    assert list(store.keys()) == [key]


def test_small_pictures_stay_small(tmp_path: Path) -> None:
    store = ThumbnailStore(tmp_path)
    store.put(thumbnail_key(SHA, 0), picture(1, 20, 10))
    path = store.get(thumbnail_key(SHA, 0))
    assert path is not None
    with Image.open(path) as image:
        assert image.size == (10, 20)


def test_keep_removes_what_no_row_names(tmp_path: Path) -> None:
    store = ThumbnailStore(tmp_path)
    keys = [thumbnail_key(sha, start) for sha in (SHA, OTHER) for start in range(0, 40, 8)]
    for number, key in enumerate(keys):
        store.put(key, picture(number))
    stale = store.get(keys[0]).with_name(".partial-0123")  # type: ignore[union-attr]
    fresh = stale.with_name(".partial-4567")
    for each in (stale, fresh):
        each.write_bytes(b"half")
    os.utime(stale, (time.time() - 7200, time.time() - 7200))
    assert store.size_bytes() > 1000
    assert store.keep([key for key in keys if key.startswith(SHA)]) == 5
    assert sorted(store.keys()) == sorted(keys[:5])
    assert not stale.exists()
    assert fresh.exists()  # another process may be writing it
    fresh.unlink()
    assert store.keep([]) == 5
    assert list(tmp_path.iterdir()) == []


def test_many_writers(tmp_path: Path) -> None:
    keys = [thumbnail_key(SHA, start) for start in range(20)]
    with ThreadPoolExecutor(8) as pool:
        written = pool.map(lambda key: ThumbnailStore(tmp_path).put(key, picture(3)), keys * 4)
        assert all(written)
    assert sorted(ThumbnailStore(tmp_path).keys()) == sorted(keys)
    assert not list(tmp_path.rglob(".partial-*"))


@pytest.mark.parametrize("key", ["", "x", f"{SHA}-", f"../{SHA}-1", f"{SHA}-1/..", f"{SHA}--1"])
def test_keys_that_are_none(tmp_path: Path, key: str) -> None:
    store = ThumbnailStore(tmp_path)
    with pytest.raises(InvalidArgumentError):
        store.put(key, picture(1))
    with pytest.raises(InvalidArgumentError):
        store.get(key)


def test_arguments_that_are_none(tmp_path: Path) -> None:
    for sha, start in ((SHA[:-1], 1.0), (SHA, -1.0), (SHA, float("nan"))):
        with pytest.raises(InvalidArgumentError):
            thumbnail_key(sha, start)
    with pytest.raises(InvalidArgumentError):
        ThumbnailStore(tmp_path).put(thumbnail_key(SHA, 1), np.zeros((4, 4), np.uint8))


def test_a_place_that_cannot_be_written_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = ThumbnailStore(tmp_path / "file")
    for start in range(3):
        assert not store.put(thumbnail_key(SHA, start), picture(1))
    assert store.warning is not None
    assert "thumbnails are missing" in store.warning
    assert "\n" not in store.warning
    assert store.get(thumbnail_key(SHA, 0)) is None
    assert list(store.keys()) == []
    assert store.keep([]) == 0


@pytest.mark.parametrize("options", ["size=24k", "ro"])
def test_no_room_and_read_only(tmp_path: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        store = ThumbnailStore(tmp_path / "thumbnails")
        keys = [thumbnail_key(SHA, start) for start in range(40)]
        written = [store.put(key, picture(number)) for number, key in enumerate(keys)]
        assert not all(written)
        assert written == sorted(written, reverse=True)  # after the first failure, none
        assert store.warning is not None
        assert ("No space left" if options != "ro" else "Read-only") in store.warning
        assert sorted(store.keys()) == sorted(
            key for key, is_there in zip(keys, written, strict=True) if is_there
        )
        for key, is_there in zip(keys, written, strict=True):
            path = store.get(key)
            assert (path is not None) is is_there
            if path is not None:
                Image.open(path).load()  # whole
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
