"""What every store must do, in memory and in LanceDB alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xclip_deploy.errors import (
    DuplicateIdError,
    GalleryError,
    InvalidArgumentError,
    MetadataError,
)
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import GalleryStore, GalleryVideo
from xclip_deploy.runtime.gallery.lance_store import open_store
from xclip_deploy.runtime.gallery.memory_store import MemoryStore

DIM, FRAMES = 16, 3
IDS = ["a", "b'c", "d/é 😀", 'e"']


def some(
    ids: list[str], seed: int = 0, **metadata: Any
) -> tuple[list[GalleryVideo], VideoFeatures]:
    rng = np.random.default_rng([seed, len(ids)])
    videos = [
        GalleryVideo(
            id=name,
            path=f"/videos/{name}",
            fingerprint=f"{seed}-{name}",
            duration_s=float(n),
            frame_times_s=(0.0, 1.5),
            metadata={"n": n, **metadata},
        )
        for n, name in enumerate(ids)
    ]
    return videos, VideoFeatures(
        rng.standard_normal((len(ids), DIM)).astype(np.float16),
        rng.standard_normal((len(ids), FRAMES, DIM)).astype(np.float16),
        np.full(len(ids), 2, np.int32),
    )


@pytest.fixture(params=["memory", "lancedb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> GalleryStore:
    if request.param == "memory":
        return MemoryStore(DIM, FRAMES)
    return open_store(tmp_path / "gallery", "0" * 64, DIM, FRAMES, create=True)


def ids_of(store: GalleryStore) -> set[str]:
    return {video.id for video in store.snapshot().listing()}


def test_what_was_put_comes_back(store: GalleryStore) -> None:
    videos, features = some(IDS, source="cam1", share=0.5, is_day=True)
    store.put(videos, features, replace=False)
    snapshot = store.snapshot()
    rows = np.array([snapshot.find(IDS)[name] for name in reversed(IDS)])
    assert snapshot.videos(rows) == videos[::-1]
    found = snapshot.features(rows)
    np.testing.assert_array_equal(found.video_features, features.video_features[::-1])
    np.testing.assert_array_equal(found.frame_features, features.frame_features[::-1])
    assert found.num_frames.tolist() == [2] * 4
    assert snapshot.find(["nothing"]) == {}
    assert set(snapshot.find_content(["0-a", "none"])) == {"0-a"}
    assert [len(rows) for rows, _ in snapshot.scan(3)] == [3, 1]


def test_a_snapshot_stays_as_it_was(store: GalleryStore) -> None:
    store.put(*some(IDS), replace=False)
    before = store.snapshot()
    store.remove(["a"])
    store.put(*some(["new"], 1), replace=False)
    assert len(before) == 4
    assert set(before.find(["a", "new"])) == {"a"}
    assert {video.id for video in before.listing()} == set(IDS)
    assert ids_of(store) == {*IDS[1:], "new"}


def test_replacing_and_updating(store: GalleryStore) -> None:
    store.put(*some(IDS), replace=False)
    with pytest.raises(DuplicateIdError, match="'a' is already in the gallery"):
        store.put(*some(["x", "a"], 1), replace=False)
    assert ids_of(store) == set(IDS)
    videos, features = some(["a", "x"], 1)
    store.put(videos, features, replace=True)
    snapshot = store.snapshot()
    row = np.array([snapshot.find(["a"])["a"]])
    np.testing.assert_array_equal(
        snapshot.features(row).video_features, features.video_features[:1]
    )
    store.update([videos[0].model_copy(update={"metadata": {"n": 9, "late": "yes"}})])
    snapshot = store.snapshot()
    row = np.array([snapshot.find(["a"])["a"]])
    assert snapshot.videos(row)[0].metadata == {"n": 9, "late": "yes"}
    np.testing.assert_array_equal(
        snapshot.features(row).video_features, features.video_features[:1]
    )
    with pytest.raises(GalleryError, match="no video 'none'"):
        store.update([videos[0].model_copy(update={"id": "none"})])
    assert store.remove(["a", "none"]) == 1


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("n >= 2", {"d/é 😀", 'e"'}),
        ("source = 'it''s' and duration_s < 1", {"a"}),
        ("id in ('a', 'b''c') or n = 3", {"a", "b'c", 'e"'}),
        ("id like 'd/%'", {"d/é 😀"}),
        ("source is null", set()),
        ("num_frames between 1 and 2 and not n = 0", set(IDS[1:])),
    ],
)
def test_filters(store: GalleryStore, where: str, expected: set[str]) -> None:
    store.put(*some(IDS, source="it's"), replace=False)
    snapshot = store.snapshot()
    rows = snapshot.matching(where)
    assert {video.id for video in snapshot.videos(rows)} == expected if len(rows) else not expected
    assert sum(len(rows) for rows, _ in snapshot.scan(3, where)) == len(expected)


@pytest.mark.parametrize(
    "where", ["n =", "nothing = 3", "n = 1; drop table videos", "n = 1 -- all", "id = 'a", "", " "]
)
def test_filters_that_are_none(store: GalleryStore, where: str) -> None:
    store.put(*some(IDS), replace=False)
    with pytest.raises(InvalidArgumentError, match="expected an") as raised:
        store.snapshot().matching(where)
    assert "\n" not in str(raised.value)
    assert ".rs" not in str(raised.value)


def test_nearest_is_the_largest_product(store: GalleryStore) -> None:
    names = [f"v{n}" for n in range(50)]
    videos, features = some(names)
    store.put(videos, features, replace=False)
    snapshot = store.snapshot()
    queries = np.random.default_rng(1).standard_normal((3, DIM)).astype(np.float32)
    products = queries @ features.video_features.astype(np.float32).T
    for where, allowed in ((None, np.arange(50)), ("n >= 30", np.arange(30, 50))):
        for product, found in zip(products, snapshot.nearest(queries, 5, where), strict=True):
            order = allowed[np.argsort(-product[allowed])[:5]]
            assert [v.id for v in snapshot.videos(found.rows)] == [names[n] for n in order]
            np.testing.assert_allclose(found.similarities, product[order], rtol=1e-4)
    ((content, method),) = snapshot.nearest_content(queries[:1], 5)
    assert method == "flat"
    assert {v.id for v in content.videos(np.arange(5))} == {
        names[n] for n in np.argsort(-products[0])[:5]
    }


def test_metadata_that_clashes(store: GalleryStore) -> None:
    store.put(*some(["a"], source="cam1", share=0.5), replace=False)
    store.put(*some(["b"], share=1), replace=False)  # whole numbers are decimals as well
    for wrong in ({"source": 3}, {"share": "much"}, {"n": True}, {"Source": "cam2"}):
        with pytest.raises(MetadataError):
            store.put(*some(["c"], 1, **{"n": 0, **wrong}), replace=False)
    assert ids_of(store) == {"a", "b"}


def test_metadata_that_no_gallery_can_hold() -> None:
    for wrong in ({"id": "x"}, {"a b": 1}, {"": 1}, {"n": 1 << 64}, {"t": "\ud800"}):
        with pytest.raises(MetadataError):
            some(["a"], **wrong)


def test_a_million_characters(store: GalleryStore) -> None:
    text = "é" * 1_000_000
    store.put(*some(["a"], note=text), replace=False)
    snapshot = store.snapshot()
    assert snapshot.videos(np.array([snapshot.find(["a"])["a"]]))[0].metadata["note"] == text
