"""What every store must do, in memory and in LanceDB alike."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gallery_samples import DIM, FRAMES, content_of, rows_of, sample

from xclip_deploy.errors import DuplicateIdError, GalleryError, MetadataError
from xclip_deploy.runtime.gallery import GalleryStore, VideoFile

IDS = ["a", "b'c", "d/é 😀", 'e"']
NO_ROWS = np.empty(0, np.int64)


def ids_of(store: GalleryStore) -> set[str]:
    return {video.id for video in store.snapshot().listing()}


def test_what_was_put_comes_back(store: GalleryStore) -> None:
    videos, features = sample(IDS, source="cam1", share=0.5, is_day=True)
    store.put(videos, features, replace=False)
    snapshot = store.snapshot()
    rows = rows_of(snapshot, IDS[::-1])
    assert snapshot.videos(rows) == videos[::-1]
    found = snapshot.features(rows)
    np.testing.assert_array_equal(found.video_features, features.video_features[::-1])
    np.testing.assert_array_equal(found.frame_features, features.frame_features[::-1])
    assert found.num_frames.tolist() == [2] * 4
    assert found.video_features.dtype == found.frame_features.dtype == np.float16
    assert snapshot.find(["nothing"]) == {}
    assert snapshot.find([]) == {}
    assert snapshot.find_content(["0-a", "none"]) == {"0-a": snapshot.find(["a"])["a"]}


def test_what_is_optional_may_be_missing(store: GalleryStore) -> None:
    videos, features = sample(["bare", "two files"])
    bare = videos[0].model_copy(
        update={
            "path": None,
            "files": (),
            "content_sha256": None,
            "duration_s": None,
            "metadata": {},
        }
    )
    files = (VideoFile(path="/a", size_bytes=1, modified_ns=1 << 62), VideoFile(path="s3://b/c"))
    several = videos[1].model_copy(update={"path": "/a", "files": files})
    store.put([bare, several], features, replace=False)
    snapshot = store.snapshot()
    assert snapshot.videos(rows_of(snapshot, ["bare", "two files"])) == [bare, several]
    assert list(snapshot.find_content([several.content_sha256 or ""])) == ["0-two files"]
    listed = {video.id: video for video in snapshot.listing()}
    assert listed["bare"] == bare
    assert listed["two files"].files == files


def test_an_empty_gallery(store: GalleryStore) -> None:
    for _ in range(2):
        snapshot = store.snapshot()
        assert len(snapshot) == 0
        assert list(snapshot.listing()) == []
        assert list(snapshot.scan(3)) == []
        assert snapshot.matching("duration_s > 1").tolist() == []
        (found,) = snapshot.nearest(np.ones((1, DIM), np.float32), 3)
        assert found.rows.tolist() == []
        assert snapshot.videos(found.rows) == []
        snapshot.warm_up()
        assert len(snapshot.features(found.rows)) == 0
        held = snapshot.held()
        assert held is None or len(held[1]) == 0
        # The same once it has been full.
        store.put(*sample(["a"]), replace=False)
        assert store.remove(["a"]) == 1


def test_no_rows(store: GalleryStore) -> None:
    store.put(*sample(IDS), replace=False)
    snapshot = store.snapshot()
    assert snapshot.videos(NO_ROWS) == []
    features = snapshot.features(NO_ROWS)
    assert features.video_features.shape == (0, DIM)
    assert features.frame_features.shape == (0, FRAMES, DIM)
    assert features.num_frames.shape == (0,)
    assert snapshot.video_features(NO_ROWS).shape == (0, DIM)
    assert snapshot.matching("n > 99").shape == (0,)


def test_parts_of_a_scan(store: GalleryStore) -> None:
    videos, features = sample([f"v{n}" for n in range(10)])
    store.put(videos, features, replace=False)
    snapshot = store.snapshot()
    for where, expected in ((None, range(10)), ("n >= 4 and n <> 6", [4, 5, 7, 8, 9])):
        names, sizes = [], []
        for rows, part in snapshot.scan(3, where):
            found = snapshot.videos(rows)
            sizes.append(len(rows))
            names += [video.id for video in found]
            places = [int(video.id[1:]) for video in found]
            np.testing.assert_array_equal(part.frame_features, features.frame_features[places])
        assert sorted(names) == [f"v{n}" for n in expected]
        assert max(sizes) <= 3
    # All can be in memory at once, or none are.
    held = snapshot.held()
    if held is not None:
        assert snapshot.held() is held or all(a is b for a, b in zip(held, snapshot.held() or ()))  # noqa: B905
        assert [video.id for video in snapshot.videos(held[0])] == [video.id for video in videos]
        np.testing.assert_array_equal(held[1].video_features, features.video_features)
        # What is held is what single reads give.
        few = held[0][[7, 2]]
        np.testing.assert_array_equal(
            snapshot.features(few).video_features, features.video_features[[7, 2]]
        )


def test_video_features_alone(store: GalleryStore) -> None:
    videos, features = sample([f"v{n}" for n in range(10)])
    store.put(videos, features, replace=False)
    snapshot = store.snapshot()
    rows = rows_of(snapshot, ["v7", "v2"])
    np.testing.assert_array_equal(snapshot.video_features(rows), features.video_features[[7, 2]])
    # The same once a search has put vectors in memory.
    snapshot.nearest(np.ones((1, DIM), np.float32), 3)
    np.testing.assert_array_equal(snapshot.video_features(rows), features.video_features[[7, 2]])


def test_a_snapshot_stays_as_it_was(store: GalleryStore) -> None:
    store.put(*sample(IDS), replace=False)
    before = store.snapshot()
    expected = content_of(before)
    store.remove(["a"])
    store.put(*sample(["b'c"], 1), replace=True)
    store.put(*sample(["new"], 1, late="yes"), replace=False)
    store.optimize(lambda _what: None)
    assert len(before) == 4
    assert set(before.find(["a", "new"])) == {"a"}
    assert {video.id for video in before.listing()} == set(IDS)
    assert content_of(before) == expected
    with pytest.raises(ValueError, match="no column 'late'"):
        before.matching("late = 'yes'")
    assert ids_of(store) == {*IDS[1:], "new"}


def test_replacing(store: GalleryStore) -> None:
    store.put(*sample(IDS, source="cam1"), replace=False)
    with pytest.raises(DuplicateIdError, match="'a' is already in the gallery"):
        store.put(*sample(["x", "a"], 1), replace=False)
    assert ids_of(store) == set(IDS)
    videos, features = sample(["x", "a"], 1)
    store.put(videos, features, replace=True)
    snapshot = store.snapshot()
    rows = rows_of(snapshot, ["x", "a"])
    # Nothing of the old one is left, its other metadata neither.
    assert snapshot.videos(rows) == videos
    np.testing.assert_array_equal(snapshot.features(rows).frame_features, features.frame_features)
    assert len(snapshot) == 5


def test_updating_keeps_embeddings(store: GalleryStore) -> None:
    names = [f"v{n}" for n in range(20)]
    videos, features = sample(names)
    store.put(videos, features, replace=False)
    changed = [
        video.model_copy(update={"metadata": {"n": n, "late": f"t{n}"}, "duration_s": None})
        for n, video in enumerate(videos[5:15])
    ]
    store.update(changed)
    snapshot = store.snapshot()
    assert len(snapshot) == 20
    rows = rows_of(snapshot, names)
    assert snapshot.videos(rows) == videos[:5] + changed + videos[15:]
    np.testing.assert_array_equal(snapshot.features(rows).frame_features, features.frame_features)
    unknown = videos[0].model_copy(update={"id": "none", "metadata": {}})
    with pytest.raises(GalleryError, match="no video 'none'"):
        store.update([videos[6], unknown])
    wrong = videos[7].model_copy(update={"metadata": {"n": "text"}})
    with pytest.raises(MetadataError):
        store.update([videos[6], wrong])
    assert snapshot.videos(rows[6:7]) == store.snapshot().videos(
        rows_of(store.snapshot(), names[6:7])
    )


def test_removing(store: GalleryStore) -> None:
    store.put(*sample(IDS), replace=False)
    assert store.remove([]) == 0
    assert store.remove(["none"]) == 0
    assert store.remove(["a", "none", 'e"']) == 2
    assert ids_of(store) == set(IDS[1:3])
    store.put(*sample(["a"], 3), replace=False)  # the id is free again
    assert ids_of(store) == set(IDS[:3])


def test_nearest_is_the_largest_product(store: GalleryStore) -> None:
    names = [f"v{n}" for n in range(50)]
    videos, features = sample(names)
    store.put(videos, features, replace=False)
    store.put(*sample(["gone"], 8), replace=False)
    store.remove(["gone"])
    snapshot = store.snapshot()
    queries = np.random.default_rng(1).standard_normal((3, DIM)).astype(np.float16)
    products = (queries.astype(np.float32)) @ features.video_features.astype(np.float32).T
    few = np.arange(48, 50)
    for where, allowed in ((None, np.arange(50)), ("n >= 30", np.arange(30, 50)), ("n > 47", few)):
        for limit in (1, 5, 60):
            found = snapshot.nearest(queries, limit, where)
            assert len(found) == 3
            for product, near in zip(products, found, strict=True):
                order = allowed[np.argsort(-product[allowed])[:limit]]
                assert [v.id for v in snapshot.videos(near.rows)] == [names[n] for n in order]
                np.testing.assert_allclose(near.similarities, product[order], rtol=1e-3, atol=1e-4)
                assert near.method == "flat"
                assert snapshot.videos(near.rows) == [videos[n] for n in order]
                read = snapshot.features(near.rows)
                np.testing.assert_array_equal(read.frame_features, features.frame_features[order])
    assert [len(near.rows) for near in snapshot.nearest(queries, 0)] == [0, 0, 0]
    assert [len(near.rows) for near in snapshot.nearest(queries, 5, "n > 99")] == [0, 0, 0]


def test_metadata_types(store: GalleryStore) -> None:
    store.put(*sample(["a"], source="cam1", share=0.5), replace=False)
    store.put(*sample(["b"], share=1), replace=False)  # whole numbers are decimals as well
    snapshot = store.snapshot()
    (video,) = snapshot.videos(rows_of(snapshot, ["b"]))
    assert repr(video.metadata["share"]) == "1.0"
    for wrong in ({"source": 3}, {"share": "much"}, {"share": 1 << 60}, {"n": True}, {"n": 0.5}):
        with pytest.raises(MetadataError):
            store.put(*sample(["c"], 1, **wrong), replace=False)
    with pytest.raises(MetadataError, match="one spelling"):
        store.put(*sample(["c"], 1, Source="cam2"), replace=False)
    # One batch may hold both kinds of numbers; either first.
    one, two = sample(["c"], ratio=1)[0][0], sample(["d"], ratio=0.5)[0][0]
    store.put([one, two], sample(["c", "d"])[1], replace=False)
    assert ids_of(store) == {"a", "b", "c", "d"}
    assert len(store.snapshot().matching("ratio = 1 or ratio < 1")) == 2


def test_a_million_characters(store: GalleryStore) -> None:
    text = "é" * 1_000_000
    store.put(*sample(["a", text[:100_000]], note=text), replace=False)
    snapshot = store.snapshot()
    videos = snapshot.videos(rows_of(snapshot, ["a", text[:100_000]]))
    assert [video.metadata["note"] for video in videos] == [text, text]


def test_many_fields(store: GalleryStore) -> None:
    fields = {f"k{n}": n for n in range(255)}
    videos, features = sample(["a"], **fields)
    store.put(videos, features, replace=False)
    snapshot = store.snapshot()
    assert snapshot.videos(rows_of(snapshot, ["a"])) == videos
    with pytest.raises(MetadataError, match="found 257 metadata fields, expected at most 256"):
        store.put(*sample(["b"], another=1), replace=False)


def test_several_threads_write_and_read(store: GalleryStore) -> None:
    def write(thread: int) -> None:
        for n in range(8):
            store.put(*sample([f"{thread}-{n}"], thread), replace=False)
            if n % 2:
                store.remove([f"{thread}-{n - 1}"])

    def read() -> None:
        for _ in range(20):
            snapshot = store.snapshot()
            assert len(content_of(snapshot)) == len(snapshot) == len(list(snapshot.listing()))

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(write, 0), pool.submit(write, 1), pool.submit(read), pool.submit(read)]
        for job in jobs:
            job.result()
    assert ids_of(store) == {f"{thread}-{n}" for thread in (0, 1) for n in (1, 3, 5, 7)}


def test_one_change_at_a_time(store: GalleryStore) -> None:
    with store.exclusive():
        store.put(*sample(["a"]), replace=False)
        with store.exclusive():  # may be entered again
            assert ids_of(store) == {"a"}
            store.remove(["a"])
    assert ids_of(store) == set()
    store.refresh()
    store.close()


def test_keys_tell_features_apart(store: GalleryStore) -> None:
    """Rows keep their keys through every change of others; new features get new ones."""

    def keys() -> dict[str, tuple[int, ...]]:
        snapshot = store.snapshot()
        rows, keys = snapshot.feature_keys()
        assert rows.tolist() == snapshot.rows().tolist()
        assert (keys.dtype, keys.shape) == (np.dtype(np.uint64), (len(rows), 2))
        names = [video.id for video in snapshot.videos(rows)]
        return dict(zip(names, map(tuple, keys.tolist()), strict=True))

    store.put(*sample(IDS), replace=False)
    before = keys()
    assert len(set(before.values())) == len(IDS)
    store.put(*sample(["new"], seed=1), replace=False)
    store.update([store.snapshot().videos(rows_of(store.snapshot(), ["a"]))[0]])
    store.remove([IDS[1]])
    store.optimize(lambda _what: None)
    after = keys()
    assert {name: after[name] for name in after if name != "new"} == {
        name: before[name] for name in before if name != IDS[1]
    }
    store.put(*sample(["a"], seed=2), replace=True)
    changed = keys()
    assert changed.pop("a") not in {*before.values(), *after.values()}
    assert changed == {name: after[name] for name in changed}


def test_additions_return_the_keys_of_their_rows(store: GalleryStore) -> None:
    """In the order given, also where videos are replaced."""
    store.put(*sample(["b", "a"]), replace=False)
    names = ["c", "a", "d"]
    returned = store.put(*sample(names, seed=1), replace=True)
    snapshot = store.snapshot()
    rows, keys = snapshot.feature_keys()
    places = np.searchsorted(rows, [snapshot.find(names)[name] for name in names])
    assert returned.tolist() == keys[places].tolist()
    assert store.put([], sample(names)[1][:0], replace=False).shape == (0, 2)
