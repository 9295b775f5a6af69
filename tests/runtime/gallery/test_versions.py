"""A gallery at one of its versions, fields before values, and URIs of directories."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gallery_samples import DIM, FRAMES, MODEL, lance_store, sample

from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.gallery import GalleryStore
from xclip_deploy.runtime.gallery.commit_record import RECORD_FILE
from xclip_deploy.runtime.gallery.lance_opening import open_existing_store, open_store

_WRITER = """
import sys
from gallery_samples import DIM, FRAMES, MODEL, sample
from xclip_deploy.runtime.gallery.lance_opening import open_store

store = open_store(sys.argv[1], MODEL, DIM, FRAMES, create=True)
for first in range(0, 40, 8):
    with store.exclusive():
        known = store.snapshot().find([f"v{n}" for n in range(first, first + 8)])
        names = [f"v{n}" for n in range(first, first + 8) if f"v{n}" not in known]
        store.put(*sample(names), replace=False)
"""


def test_a_version_stays_as_it_was(tmp_path: Path) -> None:
    store = lance_store(tmp_path / "gallery")
    store.put(*sample(["a", "b"]), replace=False)
    version = store.version
    store.put(*sample(["c"]), replace=False)
    store.remove(["a"])
    pinned = open_existing_store(tmp_path / "gallery", version=version)
    for _ in range(2):
        assert set(pinned.snapshot().find(["a", "b", "c"])) == {"a", "b"}
        assert len(pinned.snapshot().features(pinned.snapshot().rows())) == 2
        pinned.refresh()
    with pytest.raises(GalleryError, match=f"open at version {version}, which nothing can change"):
        pinned.put(*sample(["d"]), replace=False)
    assert store.version > version
    newest = open_existing_store(tmp_path / "gallery", version=store.version)
    assert set(newest.snapshot().find(["a", "b", "c"])) == {"b", "c"}


def test_a_version_that_is_not_there(tmp_path: Path) -> None:
    lance_store(tmp_path / "gallery").put(*sample(["a"]), replace=False)
    with pytest.raises(GalleryError, match=r"version 99 of gallery .* cannot be opened"):
        open_existing_store(tmp_path / "gallery", version=99)


def test_filters_may_name_a_field_that_no_video_has(store: GalleryStore) -> None:
    store.put(*sample(["a"]), replace=False)
    store.declare({"camera": str, "n": int})
    assert store.fields()["camera"] is str
    assert store.snapshot().matching("camera = 'x'").tolist() == []
    assert len(store.snapshot().matching("camera is null")) == 1


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_writers_of_a_file_uri_add_each_video_once(tmp_path: Path, count: int) -> None:
    uri = f"file://{tmp_path}/gallery"
    open_store(uri, MODEL, DIM, FRAMES, create=True)
    command = [sys.executable, "-c", _WRITER, uri]
    path = ":".join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    writers = [subprocess.Popen(command, env=environment) for _ in range(count)]
    assert [writer.wait(120) for writer in writers] == [0] * count
    snapshot = open_existing_store(uri).snapshot()
    assert len(snapshot) == 40
    assert len(snapshot.find([f"v{n}" for n in range(40)])) == 40


def test_a_file_uri_without_a_record_still_opens(tmp_path: Path) -> None:
    store = lance_store(tmp_path / "gallery")
    store.put(*sample(["a"]), replace=False)
    (tmp_path / "gallery" / RECORD_FILE).unlink()  # releases wrote none through a URI
    with pytest.raises(GalleryError, match="record of commits is missing"):
        open_existing_store(tmp_path / "gallery")
    again = open_existing_store(f"file://{tmp_path}/gallery")
    assert len(again.snapshot()) == 1
    assert (tmp_path / "gallery" / RECORD_FILE).is_file()
