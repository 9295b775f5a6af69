"""Galleries that are saved: whole, replaced at once, and nothing else touched."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gallery_samples import content_of, entries, ids

from xclip_deploy.errors import (
    GalleryError,
    GalleryModelError,
    InvalidArgumentError,
)
from xclip_deploy.runtime.files import replaced_directory
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.gallery.lance_opening import open_store
from xclip_deploy.runtime.gallery.lance_store import LanceStore
from xclip_deploy.runtime.manifest import Manifest


def test_a_saved_gallery_is_the_same(gallery: Gallery, manifest: Manifest, tmp_path: Path) -> None:
    # A whole number in a field of decimals, in front of the others.
    videos, features = entries(manifest, ["d", "e"])
    changed = [
        video.model_copy(update={"metadata": {"share": share}})
        for video, share in zip(videos, (1, 0.5), strict=True)
    ]
    gallery.add(changed, features)
    gallery.save(tmp_path / "copy")
    opened = Gallery.open(tmp_path / "copy", manifest)
    assert content_of(opened.snapshot()) == content_of(gallery.snapshot())
    assert opened.uri == str(tmp_path / "copy")
    gallery.remove(["a"])
    gallery.save(tmp_path / "copy")
    assert ids(Gallery.open(tmp_path / "copy", manifest)) == ["b", "c", "d", "e"]
    with pytest.raises(GalleryError, match="this gallery itself"):
        opened.save(tmp_path / "copy")
    gallery.close()


def test_an_empty_gallery_can_be_saved(manifest: Manifest, tmp_path: Path) -> None:
    Gallery(manifest).save(tmp_path / "copy")
    assert len(Gallery.open(tmp_path / "copy", manifest)) == 0


def test_saving_in_several_parts(
    gallery: Gallery, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xclip_deploy.runtime.gallery.walking._SAVE_VIDEOS", 2)
    videos, features = entries(manifest, ["d"])
    # The parts before this one have whole numbers only.
    gallery.add([videos[0].model_copy(update={"metadata": {"late": 0.5}})], features)
    later, features = entries(manifest, ["e"])
    gallery.add([later[0].model_copy(update={"metadata": {"late": 2}})], features)
    gallery.remove(["d"])
    gallery.add([videos[0].model_copy(update={"metadata": {"late": 0.5}})], features)
    gallery.save(tmp_path / "copy")
    opened = Gallery.open(tmp_path / "copy", manifest)
    assert content_of(opened.snapshot()) == content_of(gallery.snapshot())


def test_save_replaces_a_gallery_and_nothing_else(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    gallery.save(tmp_path / "mine")  # empty
    (tmp_path / "mine" / "videos.lance").rename(tmp_path / "mine" / "other")
    for path in (tmp_path / "mine", tmp_path / "mine" / "gallery.lock"):
        with pytest.raises(GalleryError, match="is no gallery and not empty"):
            gallery.save(path)


def test_readers_and_writers_of_a_gallery_that_is_replaced(
    gallery: Gallery, manifest: Manifest, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    gallery.save(path)
    opened = Gallery.open(path, manifest)
    assert ids(opened) == ["a", "b", "c"]
    gallery.add(*entries(manifest, ["b"], 7), replace=True)
    gallery.remove(["a"])
    gallery.save(path)
    opened.refresh()
    assert content_of(opened.snapshot()) == content_of(gallery.snapshot())
    # A save waits for a writer; one that waits for the save writes into the new gallery.
    with ThreadPoolExecutor(2) as pool:
        with opened.exclusive():
            saving = pool.submit(gallery.save, path)
            time.sleep(0.2)
            assert not saving.done()
            opened.add(*entries(manifest, ["lost with the old one"]))
        saving.result()
        assert ids(Gallery.open(path, manifest)) == ["b", "c"]
        opened.add(*entries(manifest, ["d"]))
    assert ids(opened) == ids(Gallery.open(path, manifest)) == ["b", "c", "d"]
    # One of another model does not slip in.
    dim, frames = manifest.model.embed_dim, manifest.model.max_frames
    with replaced_directory(path) as directory:
        open_store(directory, "0" * 64, dim, frames, create=True)
    with pytest.raises(GalleryModelError, match="open it again"):
        opened.refresh()


def test_saving_through_a_link_and_below_new_folders(
    gallery: Gallery, manifest: Manifest, tmp_path: Path
) -> None:
    gallery.save(tmp_path / "new" / "deep")
    (tmp_path / "link").symlink_to(tmp_path / "new" / "deep")
    gallery.remove(["a"])
    gallery.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert ids(Gallery.open(tmp_path / "new" / "deep", manifest)) == ["b", "c"]


def test_a_save_that_fails_leaves_the_old_one(
    gallery: Gallery, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.save(tmp_path / "copy")
    before = content_of(Gallery.open(tmp_path / "copy", manifest).snapshot())
    gallery.remove(["a"])

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LanceStore, "append", full)
    with pytest.raises(GalleryError, match=r"No space left on device.*what was there stands"):
        gallery.save(tmp_path / "copy")
    monkeypatch.undo()
    assert content_of(Gallery.open(tmp_path / "copy", manifest).snapshot()) == before
    names = {file.name for file in tmp_path.iterdir()}
    assert names <= {"copy", "gallery", ".copy.lock"}, names


@pytest.mark.parametrize("scale", [0.9, 1.1, 0.0, 29_220.0])
@pytest.mark.parametrize("name", ["video_features", "frame_features"])
def test_features_that_are_not_of_unit_length(
    manifest: Manifest, gallery: Gallery, name: str, scale: float
) -> None:
    videos, features = entries(manifest, ["new", "off"])
    getattr(features, name)[1] *= scale
    with pytest.raises(InvalidArgumentError, match=rf"{name} of video 'off' has a vector of leng"):
        gallery.add(videos, features)
    assert "new" not in gallery


def test_what_rounding_takes_from_a_unit_vector(manifest: Manifest, gallery: Gallery) -> None:
    videos, features = entries(manifest, ["a2", "b2"])
    features.video_features[0] *= 1.005
    # Padding that was never encoded has no direction.
    features.frame_features[1, features.num_frames[1] :] = 0
    gallery.add(videos, features)
    assert "a2" in gallery


def test_verifying(manifest: Manifest, gallery: Gallery) -> None:
    found = gallery.verify()
    assert found.is_whole
    assert found.num_videos == len(gallery)
