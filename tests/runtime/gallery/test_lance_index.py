"""The approximate index: what it finds is what comparing with all finds, nearly always."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from gallery_samples import (
    DIM,
    FRAMES,
    NOTHING_IN_MEMORY,
    content_of,
    lance_store,
    sample,
)

from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.lance_snapshot import LanceSnapshot, partitions_for
from xclip_deploy.runtime.gallery.lance_store import LanceStore
from xclip_deploy.runtime.gallery.store import SearchLimits
from xclip_deploy.runtime.progress import Progress

COUNT = 1500
LIMITS = replace(NOTHING_IN_MEMORY, partitions=1.0, index_from=COUNT)
QUERIES = np.random.default_rng(4).standard_normal((32, DIM)).astype(np.float16)
CANDIDATES = 300
"""One bit for each of only 16 dimensions is coarse; the second stage ranks what is found."""


@pytest.fixture
def features() -> VideoFeatures:
    """Of many lengths, which a store takes: with one bit a dimension, they are easier to tell."""
    rng = np.random.default_rng(2)
    return VideoFeatures(
        rng.standard_normal((COUNT, DIM)).astype(np.float16),
        rng.standard_normal((COUNT, FRAMES, DIM)).astype(np.float16),
        np.full(COUNT, 2, np.int32),
    )


@pytest.fixture
def store(tmp_path: Path, features: VideoFeatures) -> LanceStore:
    store = lance_store(tmp_path / "gallery", LIMITS)
    videos, _ = sample([f"v{n}" for n in range(COUNT)])
    store.put(videos, features, replace=False)
    return store


def nearest(snapshot: LanceSnapshot, limit: int, where: str | None = None) -> list[list[int]]:
    found = snapshot.nearest(QUERIES, limit, where)
    return [[int(video.id[1:]) for video in snapshot.videos(near.rows)] for near in found]


def products_of(features: VideoFeatures) -> npt.NDArray[np.float32]:
    products: npt.NDArray[np.float32] = (
        QUERIES.astype(np.float32) @ features.video_features.astype(np.float32).T
    )
    return products


def recall(found: list[list[int]], products: npt.NDArray[np.float32], allowed: range) -> float:
    """Of the five with the largest products, the share that is among those found."""
    shares = []
    for names, product in zip(found, products, strict=True):
        best = np.array(allowed)[np.argsort(-product[allowed.start : allowed.stop])[:5]]
        shares.append(len(set(names) & set(best.tolist())) / 5)
    return float(np.mean(shares))


def test_an_index_finds_what_all_find(store: LanceStore, features: VideoFeatures) -> None:
    products = products_of(features)
    everything = range(COUNT)
    flat = nearest(store.snapshot(), 5)
    assert recall(flat, products, everything) == 1
    steps: list[Progress] = []
    store.optimize(steps.append)
    notes = [step.note for step in steps[-2:]]
    assert notes == [f"indexing {COUNT} videos in 16 partitions", "done"]
    snapshot = store.snapshot()
    assert snapshot.num_partitions == 16
    found = snapshot.nearest(QUERIES, 50)
    assert {near.method for near in found} == {"index"}
    assert recall(nearest(snapshot, CANDIDATES), products, everything) > 0.9
    for near, product in zip(found, products, strict=True):
        names = [int(video.id[1:]) for video in snapshot.videos(near.rows)]
        assert len(set(names)) == 50
        assert (np.diff(near.similarities) <= 0).all()  # best first
        assert product[names].mean() > product.mean() + product.std()
    part = range(1000, COUNT)
    filtered = nearest(snapshot, CANDIDATES // 2, "n >= 1000")
    assert min(min(names) for names in filtered) >= 1000
    assert recall(filtered, products, part) > 0.9
    # As many as match, where those are fewer than were asked for.
    few = nearest(snapshot, 50, "n in (3, 700, 1400)")
    assert [sorted(names) for names in few] == [[3, 700, 1400]] * len(QUERIES)
    assert nearest(snapshot, 5, "n < 0") == [[]] * len(QUERIES)
    rows = snapshot.nearest(QUERIES[:1], 10)[0].rows
    places = [int(video.id[1:]) for video in snapshot.videos(rows)]
    read = snapshot.features(rows)
    np.testing.assert_array_equal(read.frame_features, features.frame_features[places])


def test_changes_after_the_index_was_built(store: LanceStore) -> None:
    store.optimize(lambda _what: None)
    loud = VideoFeatures(
        np.full((1, DIM), 50, np.float16),
        np.ones((1, 3, DIM), np.float16),
        np.full(1, 2, np.int32),
    )
    query = np.ones((1, DIM), np.float16)
    for change in ("add", "replace"):
        name = "new" if change == "add" else "v7"
        store.put(sample([name])[0], loud, replace=True)
        for _ in range(2):  # once beside the index, once in it
            snapshot = store.snapshot()
            (near,) = snapshot.nearest(query, 3)
            names = [video.id for video in snapshot.videos(near.rows)]
            assert names[0] == name
            assert len(set(names)) == 3
            assert len(content_of(snapshot, 500)) == len(snapshot)
            store.optimize(lambda _what: None)
        store.remove([name])
        (near,) = store.snapshot().nearest(query, 3)
        assert name not in [video.id for video in store.snapshot().videos(near.rows)]


def test_an_index_that_the_gallery_outgrew(
    store: LanceStore, features: VideoFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "xclip_deploy.runtime.gallery.lance_store.partitions_for"
    for partitions, expected in ((2, 2), (8, 2), (9, 9)):  # anew from more than four times on
        monkeypatch.setattr(module, lambda _count, n=partitions: n)
        store.optimize(lambda _what: None)
        snapshot = store.snapshot()
        assert snapshot.num_partitions == expected
        found = nearest(snapshot, CANDIDATES)
        assert recall(found, products_of(features), range(COUNT)) > 0.9


def test_no_index_for_few_videos(tmp_path: Path) -> None:
    store = lance_store(tmp_path / "gallery", LIMITS)
    store.optimize(lambda _what: None)
    store.put(*sample(["a"]), replace=False)
    store.optimize(lambda _what: None)
    assert store.snapshot().num_partitions is None
    assert store.snapshot().nearest(QUERIES[:1], 3)[0].method == "flat"


def test_small_galleries_are_searched_in_memory_in_spite_of_an_index(store: LanceStore) -> None:
    store.optimize(lambda _what: None)
    uri = store.uri
    for limits, method in (
        (SearchLimits(), "flat"),
        (SearchLimits(flat_videos=COUNT - 1), "index"),
        (SearchLimits(flat_bytes=4 * DIM * COUNT - 1), "index"),
    ):
        snapshot = lance_store(Path(uri), limits, create=False).snapshot()
        assert snapshot.nearest(QUERIES, 5)[0].method == method


@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
@pytest.mark.parametrize("warm_bytes", [0, 1 << 20])
def test_what_is_kept_in_memory_changes_nothing(
    tmp_path: Path, held_bytes: int, warm_bytes: int
) -> None:
    limits = SearchLimits(flat_videos=0, held_bytes=held_bytes, warm_bytes=warm_bytes)
    store = lance_store(tmp_path / "gallery", limits)
    store.put(*sample([f"v{n}" for n in range(20)]), replace=False)
    store.put(*sample([f"v{n}" for n in range(5)], 1), replace=True)  # rows out of order
    store.remove(["v7"])
    cold, warm = store.snapshot(), lance_store(tmp_path / "gallery", limits).snapshot()
    warm.warm_up()
    warm.warm_up()
    rows = np.sort(cold.nearest(QUERIES[:1], 9)[0].rows)[::-1]
    known = warm.features(rows)
    for name, array in vars(cold.features(rows)).items():
        np.testing.assert_array_equal(getattr(known, name), array)
        assert getattr(known, name).dtype == array.dtype
    for snapshot in (cold, warm):
        np.testing.assert_array_equal(snapshot.video_features(rows), known.video_features)
    assert warm.videos(rows) == cold.videos(rows)
    assert content_of(warm) == content_of(cold)
    assert (warm.held() is None) == (held_bytes == 0)


def test_partitions() -> None:
    counts = (1, 50_000, 1_000_000, 100_000_000)
    assert [partitions_for(count) for count in counts] == [16, 50, 1000, 4096]
