"""The gallery: what goes in is checked, and what is saved comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_samples import content_of, entries, ids, rows_of

from xclip_deploy.errors import (
    DuplicateIdError,
    GalleryError,
    GalleryModelError,
    GalleryNotFoundError,
    InvalidArgumentError,
    MetadataError,
)
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, Snapshot
from xclip_deploy.runtime.gallery.lance_opening import open_store
from xclip_deploy.runtime.gallery.memory_store import MemoryStore
from xclip_deploy.runtime.gallery.store import FeatureKeys
from xclip_deploy.runtime.manifest import Manifest
from xclip_deploy.runtime.progress import Progress


def frames_of(snapshot: Snapshot, names: list[str]) -> Any:
    return snapshot.features(rows_of(snapshot, names)).frame_features


def test_what_is_in_it(gallery: Gallery, manifest: Manifest) -> None:
    assert len(gallery) == 3
    assert "a" in gallery
    assert "x" not in gallery
    assert 3 not in gallery
    expected = entries(manifest, ["a", "b", "c"])[1].frame_features
    found = frames_of(gallery.snapshot(), ["a", "b", "c"])
    np.testing.assert_array_equal(found, expected.astype(np.float16))


def test_adding_and_removing_nothing(gallery: Gallery, manifest: Manifest) -> None:
    gallery.add(*entries(manifest, []))
    gallery.update([])
    gallery.remove([])
    assert ids(gallery) == ["a", "b", "c"]


def test_ids_that_are_there_already(gallery: Gallery, manifest: Manifest) -> None:
    with pytest.raises(DuplicateIdError, match="'b' is already in the gallery"):
        gallery.add(*entries(manifest, ["d", "b"], 1))
    for names in (["d", "e", "d"], ["b", "b"]):
        for replace in (False, True):
            with pytest.raises(DuplicateIdError, match="given to two videos"):
                gallery.add(*entries(manifest, names, 1), replace=replace)
    with pytest.raises(DuplicateIdError, match="pass on_duplicate='skip' or 'replace'"):
        gallery.check_new(["d", "a"])
    with pytest.raises(DuplicateIdError, match="given to two videos"):
        gallery.check_new(["d", "d"])
    gallery.check_new(["d", "e"])
    assert ids(gallery) == ["a", "b", "c"]


def test_replacing(gallery: Gallery, manifest: Manifest) -> None:
    videos, features = entries(manifest, ["d", "b"], 1)
    gallery.add(videos, features, replace=True)
    assert ids(gallery) == ["a", "b", "c", "d"]
    found = frames_of(gallery.snapshot(), ["d", "b"])
    np.testing.assert_array_equal(found, features.frame_features.astype(np.float16))


def test_removing(gallery: Gallery) -> None:
    with pytest.raises(GalleryError, match="no video 'x' in the gallery"):
        gallery.remove(["a", "x"])
    assert ids(gallery) == ["a", "b", "c"]  # all or none
    gallery.remove(["a", "c"])
    assert ids(gallery) == ["b"]


def test_updating(gallery: Gallery, manifest: Manifest) -> None:
    videos, features = entries(manifest, ["a", "b", "c"])
    changed = videos[1].model_copy(update={"metadata": {"seed": 5, "note": "x"}})
    gallery.update([changed])
    snapshot = gallery.snapshot()
    assert snapshot.videos(rows_of(snapshot, ["a", "b"])) == [videos[0], changed]
    np.testing.assert_array_equal(
        frames_of(snapshot, ["b"]), features.frame_features[1:2].astype(np.float16)
    )
    for wrong, error in (
        ({"id": "x"}, GalleryError),
        ({"metadata": {"id": 3}}, MetadataError),
        ({"metadata": {"note": "\ud800"}}, MetadataError),
        ({"id": "\ud800"}, InvalidArgumentError),
    ):
        with pytest.raises(error):
            gallery.update([videos[0], videos[1].model_copy(update=wrong)])
    with pytest.raises(DuplicateIdError):
        gallery.update([videos[0], videos[0]])
    assert content_of(gallery.snapshot()) == content_of(snapshot)


def test_the_caller_keeps_his_arrays(gallery: Gallery, manifest: Manifest) -> None:
    videos, features = entries(manifest, ["d"])
    half = VideoFeatures(
        features.video_features.astype(np.float16),
        features.frame_features.astype(np.float16),
        features.num_frames,
    )
    gallery.add(videos, half)
    half.frame_features[:] = 0
    assert np.abs(frames_of(gallery.snapshot(), ["d"])).max() > 0


@pytest.mark.parametrize("name", ["video_features", "frame_features"])
# 1e6 is finite as it comes, and infinite in the FP16 that the gallery stores.
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6])
def test_features_that_are_not_finite(manifest: Manifest, name: str, value: float) -> None:
    gallery = Gallery(manifest)
    videos, features = entries(manifest, ["d", "b"], 1)
    getattr(features, name)[1, ..., 3] = value
    with pytest.raises(InvalidArgumentError, match=f"{name} holds NaN or infinity"):
        gallery.add(videos, features, replace=True)
    assert len(gallery) == 0


def test_features_that_do_not_fit(manifest: Manifest) -> None:
    gallery = Gallery(manifest)
    videos, features = entries(manifest, ["d", "e"])
    good = vars(features)
    for wrong in (
        {"video_features": features.video_features[:1]},
        {"video_features": features.video_features[:, 1:]},
        {"video_features": features.frame_features},
        {"frame_features": features.frame_features[:, 1:]},
        {"frame_features": features.video_features},
        {"num_frames": features.num_frames[:1]},
        {"num_frames": features.num_frames + manifest.model.max_frames},
        {"num_frames": features.num_frames * 0},
    ):
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
            gallery.add(videos, VideoFeatures(**{**good, **wrong}))
    with pytest.raises(InvalidArgumentError, match="for 1 videos"):
        gallery.add(videos[:1], features)
    more = videos[0].model_copy(update={"frame_times_s": (0.0, 1.0, 99.0)})
    with pytest.raises(InvalidArgumentError, match="3 frame times, expected the same"):
        gallery.add([more, videos[1]], features)
    assert len(gallery) == 0


def test_another_model(manifest: Manifest, tmp_path: Path) -> None:
    dim, frames = manifest.model.embed_dim, manifest.model.max_frames
    open_store(tmp_path / "other", "0" * 64, dim, frames, create=True)
    with pytest.raises(GalleryModelError, match="xclip-deploy index VIDEOS --gallery NEW") as error:
        Gallery.open(tmp_path / "other", manifest)
    assert f"features of model {'0' * 12}…" in str(error.value)
    assert manifest.fingerprint[:12] in str(error.value)
    gallery = Gallery(manifest)
    gallery.check_model(manifest)
    gallery._fingerprint = "1" * 64
    with pytest.raises(GalleryModelError, match="the gallery holds features of model 1111"):
        gallery.check_model(manifest)


def test_a_gallery_of_whatever_model(manifest: Manifest, tmp_path: Path) -> None:
    Gallery.open(tmp_path / "gallery", manifest, create=True).add(*entries(manifest, ["a"]))
    opened = Gallery.open(tmp_path / "gallery")
    opened.check_model(manifest)
    opened.add(*entries(manifest, ["b"], 1))
    assert ids(opened) == ["a", "b"]
    assert opened.stats().fingerprint == manifest.fingerprint
    videos, features = entries(manifest, ["c"])
    wrong = VideoFeatures(
        features.video_features[:, 1:], features.frame_features, features.num_frames
    )
    with pytest.raises(InvalidArgumentError):
        opened.add(videos, wrong)
    with pytest.raises(InvalidArgumentError, match="create needs a manifest"):
        Gallery.open(tmp_path / "new", create=True)
    with pytest.raises(GalleryNotFoundError):
        Gallery.open(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_id_that_is_no_text(gallery: Gallery) -> None:
    assert "\udcff" not in gallery
    with pytest.raises(GalleryError, match="no video"):
        gallery.get("\udcff")


def test_another_database_may_take_its_place(manifest: Manifest) -> None:
    class Counted(MemoryStore):
        """Empty, it is false."""

        def __len__(self) -> int:
            return len(self.snapshot())

    store = Counted(manifest.model.embed_dim, manifest.model.max_frames)
    gallery = Gallery(manifest, store)
    gallery.add(*entries(manifest, ["a"]))
    assert len(store) == 1
    assert gallery.uri is None


def test_additions_are_told_to_those_who_watch(gallery: Gallery, manifest: Manifest) -> None:
    """Each gets the features as they are stored, until it is gone."""

    class Watcher:
        def __init__(self) -> None:
            self.found: list[tuple[FeatureKeys, VideoFeatures]] = []

        def added(self, keys: FeatureKeys, features: VideoFeatures) -> None:
            self.found.append((keys, features))

    first, second = Watcher(), Watcher()
    for watcher in (first, second):
        gallery.watch(watcher)
    gallery.add(*entries(manifest, ["d", "e"]))
    del second, watcher
    gallery.add(*entries(manifest, ["e"]), replace=True)
    with pytest.raises(DuplicateIdError):
        gallery.add(*entries(manifest, ["a"]))
    assert [len(keys) for keys, _ in first.found] == [2, 1]
    snapshot = gallery.snapshot()
    rows, keys = snapshot.feature_keys()
    place = np.searchsorted(rows, snapshot.find(["e"])["e"])
    assert first.found[1][0].tolist() == [keys[place].tolist()]
    stored = snapshot.features(rows[[place]])
    for name, array in vars(first.found[1][1]).items():
        assert array.dtype == getattr(stored, name).dtype
        np.testing.assert_array_equal(array, getattr(stored, name))


def test_keeping_versions_for_less_than_no_time(gallery: Gallery) -> None:
    with pytest.raises(InvalidArgumentError, match=r"keep_s is -1 .*number from 0"):
        gallery.optimize(keep_s=-1)
    steps: list[Progress] = []
    gallery.optimize(steps.append, keep_s=0)
    assert ids(gallery) == ["a", "b", "c"]
    assert bool(steps) == (gallery.uri is not None)
