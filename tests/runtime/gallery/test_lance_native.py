"""LanceDB's native module, held against its Python package."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from gallery_samples import DIM, FRAMES, MODEL, lance_store, sample

from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.gallery import lance_native
from xclip_deploy.runtime.gallery.commit_record import TABLE
from xclip_deploy.runtime.gallery.lance_errors import lance_errors
from xclip_deploy.runtime.gallery.lance_native import NativeTable, open_for_reading
from xclip_deploy.runtime.gallery.lance_opening import open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A gallery of 30 videos in three fragments."""
    path = tmp_path / "gallery"
    store = lance_store(path)
    for n in range(3):
        store.put(*sample([f"{n}-{m}" for m in range(10)], seed=n), replace=False)
    return path


@pytest.fixture
def without_native_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A release of LanceDB that the code does not know."""
    monkeypatch.setattr(lance_native, "_KNOWN_RELEASES", ("0.0.",))
    lance_native.native_module.cache_clear()
    yield
    lance_native.native_module.cache_clear()


def test_both_read_the_same(path: Path) -> None:
    native, package = open_for_reading(str(path), TABLE), lancedb.connect(path).open_table(TABLE)
    assert isinstance(native, NativeTable)
    assert native.schema == package.schema
    assert native.schema.metadata == package.schema.metadata
    assert native.version == package.version
    assert native.count_rows() == package.count_rows() == 30
    condition = "id like '1-%'"
    assert native.count_rows(condition) == package.count_rows(condition) == 10
    assert [*native.list_indices()] == [*package.list_indices()] == []
    rows = []
    for table in (native, package):
        query = table.search().where(condition).select(["id", "video_features"]).with_row_id(True)
        rows.append(query.to_arrow())
        first = table.search().where(condition).limit(1).select(["id"]).to_arrow()
        assert first["id"].to_pylist() == ["1-0"]
    assert rows[0].equals(rows[1])
    assert len(rows[0]) == 10
    ids = [int(row) for row in rows[0]["_rowid"].to_numpy()[::-1]]
    taken = [
        table.take_row_ids(ids).select(["id", "frame_features"]).with_row_id().to_arrow()
        for table in (native, package)
    ]
    assert taken[0].equals(taken[1])
    vector = np.random.default_rng(3).standard_normal(DIM).astype(np.float32)
    # LanceDB types a builder as its base class, which has no distance_type.
    tables: tuple[Any, ...] = (native, package)
    near = [
        table.search(vector, vector_column_name="video_features")
        .distance_type("dot")
        .limit(7)
        .select(["_distance"])
        .with_row_id(True)
        .where("id like '2-%'", prefilter=True)
        .to_arrow()
        for table in tables
    ]
    assert near[0].equals(near[1])
    assert len(near[0]) == 7
    batches = [
        list(table.search().select(["id"]).to_batches(batch_size=4)) for table in (native, package)
    ]
    assert batches[0] == batches[1]
    assert sum(map(len, batches[0])) == 30


def test_a_checked_out_version_stays(path: Path) -> None:
    table = open_for_reading(str(path), TABLE)
    version = table.version
    table.checkout(version - 1)
    assert (table.version, table.count_rows()) == (version - 1, 20)
    table.checkout_latest()
    assert (table.version, table.count_rows()) == (version, 30)


def test_no_rows_have_their_columns(path: Path) -> None:
    table = open_for_reading(str(path), TABLE)
    empty = table.search().where("id = 'none'").select(["id"]).with_row_id(True).to_arrow()
    assert (len(empty), empty.column_names) == (0, ["id", "_rowid"])
    assert list(table.search().where("id = 'none'").select(["id"]).to_batches()) in (
        [],
        empty.to_batches(),
    )


def test_errors_are_those_of_the_package(path: Path) -> None:
    table = open_for_reading(str(path), TABLE)
    with pytest.raises(GalleryError, match="no_such_column"), lance_errors("/g", "read"):
        table.search().where("no_such_column = 1").select(["id"]).to_arrow()
    with pytest.raises(GalleryError), lance_errors("/g", "read"):
        open_for_reading(str(path), "no_such_table")


@pytest.mark.usefixtures("without_native_module")
def test_an_unknown_release_is_read_with_its_package(path: Path) -> None:
    assert not isinstance(open_for_reading(str(path), TABLE), NativeTable)
    store = open_store(path, MODEL, DIM, FRAMES, create=False)
    videos, features = sample(["more"])
    store.put(videos, features, replace=False)
    snapshot = store.snapshot()
    found = snapshot.find(["more", "1-3"])
    assert sorted(found) == ["1-3", "more"]
    read = snapshot.features(np.array([found["more"]], np.int64))
    np.testing.assert_array_equal(read.video_features, features.video_features)


def test_many_threads_read_at_once(path: Path) -> None:
    table = open_for_reading(str(path), TABLE)
    found: list[pa.Table] = []

    def read() -> None:
        found.append(table.search().select(["id"]).with_row_id(True).to_arrow())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(rows.equals(found[0]) for rows in found)


def test_a_process_that_is_forked_after_use_is_refused(path: Path) -> None:
    """LanceDB would end it by a signal, or hang: in 13 of 30 forks."""
    code = f"""
import os, sys, warnings
from xclip_deploy import Gallery
from xclip_deploy.errors import GalleryError

def forked(use):
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of the threads
        child = os.fork()
    if not child:
        try:
            use()
        except GalleryError as error:
            print(error, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

forked(lambda: print(len(Gallery.open({str(path)!r})), flush=True))
gallery = Gallery.open({str(path)!r})
for use in (lambda: Gallery.open({str(path)!r}), lambda: gallery.videos()):
    forked(use)
print(len(gallery.videos()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
    )
    refusal = (
        f"gallery {path} cannot be read: this process was forked from one that had used a gallery, "
        "and LanceDB does not survive that; fork first and open galleries then, or start processes "
        "by 'spawn' or 'forkserver'"
    )
    assert done.stdout.splitlines() == ["30", refusal, refusal, "30"]


def test_clients_of_the_remote_api_load_when_asked_for() -> None:
    """The package imports without them; what another part of a program asks for is there."""
    code = """
import sys
from xclip_deploy.runtime.gallery.lance_native import import_lancedb

import_lancedb()
clients = "lance_namespace_urllib3_client.api"
assert "lance_namespace_urllib3_client.models" in sys.modules
assert clients not in sys.modules
import lance_namespace_urllib3_client as package
from lance_namespace_urllib3_client import DataApi
assert package.TableApi.__module__ == f"{clients}.table_api" and DataApi is package.DataApi
assert not hasattr(package, "absent")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
