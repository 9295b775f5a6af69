"""Damaged files of a gallery: a clear error or the right answer, never a wrong one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_samples import DIM, content_of, lance_store, sample

from xclip_deploy.errors import GalleryError, GalleryIntegrityError
from xclip_deploy.runtime.gallery.commit_record import RECORD_FILE, find_manifest
from xclip_deploy.runtime.gallery.lance_store import LanceStore
from xclip_deploy.runtime.gallery.store import SearchLimits

QUERIES = np.eye(2, DIM, dtype=np.float16)
# LanceDB does the searching, through the index where there is one.
LIMITS = SearchLimits(flat_videos=0, flat_bytes=0, held_bytes=0, partitions=1.0, index_from=256)


IN_MEMORY = SearchLimits(index_from=256)


def answers(path: Path, limits: SearchLimits = LIMITS) -> list[object]:
    """What a fresh process would be told, every way of reading used."""
    store = lance_store(path, limits, create=False)
    snapshot = store.snapshot()
    content = content_of(snapshot, 500)
    names = sorted(content)
    found = snapshot.find([*names, "none"])
    by_row = {row: name for name, row in found.items()}
    contents = snapshot.find_content([video.content_sha256 or "" for video, _ in content.values()])
    nearest = snapshot.nearest(QUERIES, 5)
    (filtered,) = snapshot.nearest(QUERIES[:1], 5, "n < 3")
    held = snapshot.held()
    return [
        len(snapshot),
        sorted(content.items()),
        sorted(found),
        sorted(contents),
        sorted(by_row[row] for row in snapshot.matching("n >= 2 and source = 'cam1'").tolist()),
        [[by_row[row] for row in near.rows.tolist()] for near in nearest],
        [video.id for video in snapshot.videos(filtered.rows)],
        sorted(video.id for video in snapshot.listing()),
        sorted(by_row[row] for row in snapshot.rows().tolist()),
        None if held is None else held[1].frame_features.tobytes(),
    ]


def small(path: Path) -> LanceStore:
    store = lance_store(path, LIMITS)
    store.put(*sample([f"v{n}" for n in range(6)], source="cam1"), replace=False)
    store.put(*sample([f"v{n}" for n in range(3, 9)], 1), replace=True)
    store.remove(["v1"])
    return store


def indexed(path: Path) -> LanceStore:
    store = lance_store(path, LIMITS)
    store.put(*sample([f"v{n}" for n in range(300)], source="cam1"), replace=False)
    store.optimize(lambda _what: None)
    store.put(*sample(["late"], 1), replace=False)
    store.remove(["v7"])
    assert store.snapshot().num_partitions == 16
    return store


@pytest.mark.parametrize(
    ("make", "every_length"),
    [
        (small, False),
        *(pytest.param(make, True, marks=pytest.mark.slow) for make in (small, indexed)),
    ],
)
def test_every_file_cut(tmp_path: Path, make: object, every_length: bool) -> None:
    path = tmp_path / "gallery"
    make(path)  # type: ignore[operator]
    expected = answers(path)
    outcomes: dict[str, set[str]] = {}
    for file in sorted(path.rglob("*")):
        if not file.is_file():
            continue
        whole = file.read_bytes()
        kind = file.parent.name
        kind = "index" if "_indices" in file.parts else kind
        # test_files_deleted_truncated_and_emptied cuts to none and to half every day, too.
        lengths = {0, 1, len(whole) // 2, len(whole) - 1} if every_length else {1, len(whole) - 1}
        for length in sorted(lengths - {-1}):
            file.write_bytes(whole[:length])
            try:
                found, message = answers(path), ""
            except GalleryError as error:
                found, message = expected, str(error)
            assert found == expected, f"{file} cut to {length} of {len(whole)}"
            assert "\n" not in message
            assert ".rs" not in message
            assert len(message) < 700
            outcomes.setdefault(kind, set()).add("error" if message else "same")
        file.write_bytes(whole)
    # The newest manifest and the data are needed; older manifests and transactions are not.
    assert outcomes["_versions"] == {"same", "error"}
    assert outcomes["data"] == {"error"} or make is indexed
    if make is indexed:
        assert "error" in outcomes["index"]
    assert answers(path) == expected


def outcome(path: Path, expected: list[object], limits: SearchLimits) -> str:
    """``same`` or ``error`` for a damaged gallery, never another answer."""
    try:
        found = answers(path, limits)
    except GalleryIntegrityError as error:
        message = str(error)
        assert "restore it from a copy or run: xclip-deploy gallery rescue" in message
        assert "\n" not in message
        assert len(message) < 800
        return "error"
    assert found == expected
    return "same"


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    file.write_bytes(content)


@pytest.mark.parametrize("limits", [LIMITS, IN_MEMORY], ids=["on-disk", "in-memory"])
@pytest.mark.parametrize(
    ("make", "bits"),
    [
        (small, 20),
        *(pytest.param(make, 60, marks=pytest.mark.slow) for make in (small, indexed)),
    ],
)
def test_single_bits_of_data_files(
    tmp_path: Path, make: Any, bits: int, limits: SearchLimits
) -> None:
    path = tmp_path / "gallery"
    make(path)
    expected = answers(path, limits)
    rng = np.random.default_rng(13)
    outcomes = []
    data = [file for file in files_of(path) if file.parent.name == "data"]
    for file in data:
        for bit in rng.choice(8 * file.stat().st_size, bits // len(data) + 1, replace=False):
            flip(file, int(bit))
            outcomes.append(outcome(path, expected, limits))
            flip(file, int(bit))
    assert len(outcomes) >= bits
    assert outcomes.count("error") > bits // 6
    assert answers(path, limits) == expected


@pytest.mark.parametrize(
    ("make", "bits_of_newest", "bits_of_others"),
    [
        (small, 12, 2),
        *(pytest.param(make, 40, 6, marks=pytest.mark.slow) for make in (small, indexed)),
    ],
)
def test_single_bits_of_all_other_files(
    tmp_path: Path, make: Any, bits_of_newest: int, bits_of_others: int
) -> None:
    path = tmp_path / "gallery"
    store = make(path)
    expected = answers(path)
    newest = find_manifest(path, store.snapshot()._table.version)
    assert newest is not None
    rng = np.random.default_rng(14)
    for file in files_of(path):
        size = file.stat().st_size
        if file.parent.name == "data" or not size:
            continue
        # One bit in each of many regions of the newest manifest, and some of any other file.
        most = bits_of_newest if file == newest else bits_of_others
        regions = np.array_split(np.arange(size), min(size, most))
        for region in regions:
            bit = 8 * int(rng.choice(region)) + int(rng.integers(8))
            flip(file, bit)
            found = outcome(path, expected, LIMITS)
            assert found == "error" or file != newest, f"{file.name} bit {bit}"
            flip(file, bit)
    assert answers(path) == expected


@pytest.mark.parametrize("make", [small, pytest.param(indexed, marks=pytest.mark.slow)])
def test_files_deleted_truncated_and_emptied(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "gallery"
    store = make(path)
    expected = answers(path)
    newest = find_manifest(path, store.snapshot()._table.version)
    for file in files_of(path):
        whole = file.read_bytes()
        for content in (None, b"", whole[: len(whole) // 2]):
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)
            found = outcome(path, expected, LIMITS)
            assert found == "error" or file not in (newest, path / RECORD_FILE), file.name
            file.write_bytes(whole)
    assert answers(path) == expected


def test_a_lost_newest_version_is_neither_an_older_gallery_nor_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    store = small(path)
    newest = find_manifest(path, store.snapshot()._table.version)
    assert newest is not None
    newest.unlink()
    with pytest.raises(GalleryIntegrityError, match=r"version \d+ was committed, and its manifest"):
        lance_store(path, LIMITS, create=False)
    with pytest.raises(GalleryIntegrityError, match="gallery rescue"):
        lance_store(path, LIMITS)
    for manifest in newest.parent.iterdir():
        manifest.unlink()
    with pytest.raises(GalleryIntegrityError, match="the table has lost its versions"):
        lance_store(path, LIMITS)


@pytest.mark.parametrize("folder", ["data", "_versions", "_indices", "_deletions"])
def test_files_that_are_gone(tmp_path: Path, folder: str) -> None:
    path = tmp_path / "gallery"
    indexed(path)
    shutil.rmtree(path / "videos.lance" / folder)
    with pytest.raises(GalleryIntegrityError, match="restore it from a copy or run"):
        answers(path)


def test_damage_is_not_blamed_on_the_filter(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    small(path)
    snapshot = lance_store(path, LIMITS, create=False).snapshot()
    for file in (path / "videos.lance" / "data").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    for read in (
        lambda: snapshot.matching("n < 3"),
        lambda: list(snapshot.scan(4, "n < 3")),
        lambda: snapshot.nearest(QUERIES, 2, "n < 3"),
        lambda: list(snapshot.listing()),
        lambda: snapshot.find(["v1"]),
    ):
        with pytest.raises(GalleryIntegrityError, match="damaged or missing"):
            read()


def test_a_write_to_a_damaged_gallery(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    store = small(path)
    for file in (path / "videos.lance" / "data").iterdir():
        file.write_bytes(b"")
    store = lance_store(path, LIMITS, create=False)
    with pytest.raises(GalleryError, match="cannot be"):
        store.put(*sample(["new"]), replace=True)
