from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from pydantic import ValidationError

from xclip_deploy import Bundle, Gallery, GalleryVideo, Retriever, VideoFeatures
from xclip_deploy.errors import (
    DuplicateIdError,
    GalleryError,
    GalleryIntegrityError,
    GalleryModelError,
    GalleryNotFoundError,
    GalleryVersionError,
    InvalidArgumentError,
)
from xclip_deploy.runtime.manifest import Manifest, checksum

F, D = 12, 64  # of the tiny model: frames, embedding
ODD_IDS = (
    "a/b/../c",
    "quote \" ' `",
    "emoji 🎬🏳️‍🌈",
    "new\nline\ttab\0nul",
    " ",
    "é",
    "e\u0301",
    "\\",
    "." * 500,
)


def video(name: str, num_frames: int) -> GalleryVideo:
    times = tuple(n * 1.001 for n in range(num_frames))
    return GalleryVideo(
        id=name, path=f"/{name}.mp4", duration_s=num_frames / 3, frame_times_s=times
    )


def entries(names: Sequence[str], seed: int = 0) -> tuple[list[GalleryVideo], VideoFeatures]:
    """Videos with random features of unit length."""
    random = np.random.default_rng(seed)
    whole = random.standard_normal((len(names), F + 1, D)).astype(np.float32)
    whole /= np.linalg.norm(whole, axis=-1, keepdims=True)
    counts = random.integers(1, F + 1, len(names)).astype(np.int32)
    videos = [video(name, int(count)) for name, count in zip(names, counts, strict=True)]
    return videos, VideoFeatures(whole[:, 0], whole[:, 1:], counts)


@pytest.fixture
def manifest(bundle: Bundle) -> Manifest:
    return bundle.manifest


@pytest.fixture
def gallery(manifest: Manifest) -> Gallery:
    filled = Gallery(manifest)
    filled.add(*entries(["a", "b", "c"]))
    return filled


@pytest.fixture
def saved(gallery: Gallery, tmp_path: Path) -> Path:
    gallery.save(tmp_path / "gallery")
    return tmp_path / "gallery"


def ids(gallery: Gallery) -> list[str]:
    return [video.id for video in gallery.snapshot().videos]


def assert_same(found: Gallery, expected: Gallery) -> None:
    """Bit for bit."""
    one, other = found.snapshot(), expected.snapshot()
    assert one.videos == other.videos
    for name, array in vars(other.features).items():
        assert getattr(one.features, name).dtype == array.dtype
        np.testing.assert_array_equal(getattr(one.features, name), array)


# In memory


def test_an_empty_gallery(manifest: Manifest) -> None:
    gallery = Gallery(manifest)
    assert len(gallery) == 0
    assert "a" not in gallery
    features = gallery.snapshot().features
    assert features.video_features.shape == (0, D)
    assert features.frame_features.shape == (0, F, D)


def test_add_keeps_order_and_halves(manifest: Manifest) -> None:
    gallery = Gallery(manifest)
    videos, features = entries(["b", "a", "c"])
    gallery.add(videos[:1], features[:1])
    gallery.add(videos[1:], features[1:])
    assert ids(gallery) == ["b", "a", "c"]
    assert "a" in gallery
    stored = gallery.snapshot().features
    assert stored.video_features.dtype == stored.frame_features.dtype == np.float16
    np.testing.assert_array_equal(stored.video_features, features.video_features.astype(np.float16))
    np.testing.assert_array_equal(stored.frame_features, features.frame_features.astype(np.float16))
    np.testing.assert_array_equal(stored.num_frames, features.num_frames)


def test_adding_nothing(gallery: Gallery) -> None:
    gallery.add(*entries([]))
    gallery.remove([])
    assert ids(gallery) == ["a", "b", "c"]


def test_an_id_that_is_there(gallery: Gallery) -> None:
    with pytest.raises(DuplicateIdError, match="'b' is already in the gallery"):
        gallery.add(*entries(["d", "b"], seed=1))
    assert ids(gallery) == ["a", "b", "c"]  # d is not in: all or none


@pytest.mark.parametrize("replace", [False, True])
def test_an_id_given_twice(gallery: Gallery, replace: bool) -> None:
    for names in (["d", "e", "d"], ["b", "b"]):
        with pytest.raises(DuplicateIdError):
            gallery.add(*entries(names, seed=1), replace=replace)
        assert ids(gallery) == ["a", "b", "c"]


def test_replace(gallery: Gallery) -> None:
    videos, features = entries(["d", "b"], seed=1)
    gallery.add(videos, features, replace=True)
    assert ids(gallery) == ["a", "c", "d", "b"]
    snapshot = gallery.snapshot()
    assert snapshot.videos[2:] == tuple(videos)
    half = features.frame_features.astype(np.float16)
    np.testing.assert_array_equal(snapshot.features.frame_features[2:], half)


def test_remove(gallery: Gallery) -> None:
    before = gallery.snapshot()
    gallery.remove(["b"])
    after = gallery.snapshot()
    assert ids(gallery) == ["a", "c"]
    assert "b" not in gallery
    for name in vars(after.features):
        kept = getattr(before.features, name)[[0, 2]]
        np.testing.assert_array_equal(getattr(after.features, name), kept)


def test_remove_what_is_not_there(gallery: Gallery) -> None:
    with pytest.raises(GalleryError, match="no video 'x' in the gallery"):
        gallery.remove(["a", "x"])
    assert ids(gallery) == ["a", "b", "c"]


def test_a_snapshot_is_isolated(gallery: Gallery) -> None:
    snapshot = gallery.snapshot()
    copies = {name: array.copy() for name, array in vars(snapshot.features).items()}
    gallery.add(*entries(["d"], seed=1))
    gallery.add(*entries(["b"], seed=2), replace=True)
    gallery.remove(["a"])
    assert ids(gallery) == ["c", "d", "b"]
    assert [video.id for video in snapshot.videos] == ["a", "b", "c"]
    assert len(snapshot) == 3
    for name, array in copies.items():
        np.testing.assert_array_equal(getattr(snapshot.features, name), array)


def test_the_caller_keeps_his_arrays(manifest: Manifest) -> None:
    gallery = Gallery(manifest)
    videos, features = entries(["a"])
    half = VideoFeatures(
        features.video_features.astype(np.float16),
        features.frame_features.astype(np.float16),
        features.num_frames,
    )
    gallery.add(videos, half)
    half.video_features[:] = 0
    half.frame_features[:] = 0
    half.num_frames[:] = 1
    stored = gallery.snapshot().features
    assert np.abs(stored.video_features).max() > 0
    assert np.abs(stored.frame_features).max() > 0
    np.testing.assert_array_equal(stored.num_frames, entries(["a"])[1].num_frames)


@pytest.mark.parametrize("name", ["video_features", "frame_features"])
# 1e6 is finite as it comes, and infinite in the FP16 that the gallery stores.
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6])
def test_features_that_are_not_finite(gallery: Gallery, name: str, value: float) -> None:
    videos, features = entries(["d", "b"], seed=1)
    getattr(features, name)[1, ..., 3] = value
    with pytest.raises(InvalidArgumentError, match=f"{name} holds NaN or infinity"):
        gallery.add(videos, features, replace=True)
    assert ids(gallery) == ["a", "b", "c"]


def test_features_of_other_shapes(gallery: Gallery) -> None:
    videos, features = entries(["d", "e"])
    good = vars(features)
    for wrong in (
        {"video_features": features.video_features[:1]},
        {"video_features": features.video_features[:, 1:]},
        {"video_features": features.frame_features},
        {"frame_features": features.frame_features[:, 1:]},
        {"frame_features": features.video_features},
        {"num_frames": features.num_frames[:1]},
        {"num_frames": features.num_frames + F},
        {"num_frames": features.num_frames * 0},
    ):
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
            gallery.add(videos, VideoFeatures(**{**good, **wrong}))
    with pytest.raises(InvalidArgumentError, match="for 1 videos"):
        gallery.add(videos[:1], features)
    assert ids(gallery) == ["a", "b", "c"]


def test_frame_times_must_fit(gallery: Gallery) -> None:
    videos, features = entries(["d"])
    more = videos[0].model_copy(update={"frame_times_s": (*videos[0].frame_times_s, 99.0)})
    with pytest.raises(InvalidArgumentError, match="frame times, expected the same"):
        gallery.add([more], features)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ""},
        {"id": 3},
        {"id": "\ud800"},
        {"frame_times_s": (float("nan"),)},
        {"frame_times_s": (float("inf"),)},
        {"duration_s": float("nan")},
        {"more": 1},
    ],
)
def test_a_video_that_could_not_be_saved(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GalleryVideo(**{"id": "a", "frame_times_s": (0.0,), **wrong})


def test_several_threads(manifest: Manifest) -> None:
    gallery = Gallery(manifest)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                names = [f"{number}-{turn}-{n}" for n in range(3)]
                gallery.add(*entries(names, seed=number))
                snapshot = gallery.snapshot()
                assert len(snapshot.videos) == len(snapshot.features)
                gallery.remove(names[:2])
        except BaseException as error:  # noqa: BLE001 - reported by the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(ids(gallery)) == sorted(f"{n}-{turn}-2" for n in range(6) for turn in range(20))


def constant(names: Sequence[str], first: int) -> tuple[list[GalleryVideo], VideoFeatures]:
    """Videos whose features are all one whole number, counting from ``first``: exact in FP16."""
    values = np.arange(first, first + len(names))
    counts = (1 + values % F).astype(np.int32)
    videos = [video(name, int(count)) for name, count in zip(names, counts, strict=True)]
    ones = np.ones((len(names), F, D), np.float32)
    return videos, VideoFeatures(values[:, None] * ones[:, 0], values[:, None, None] * ones, counts)


class GalleryMachine(RuleBasedStateMachine):
    """Any sequence of changes, held against a dict of the videos' whole numbers."""

    names = st.lists(st.sampled_from("abcdef"), max_size=4)
    manifest: Manifest  # set by the test

    @initialize()
    def start(self) -> None:
        self.gallery = Gallery(self.manifest)
        self.expected: dict[str, int] = {}
        self.number = 0

    @rule(names=names, replace=st.booleans())
    def add(self, names: list[str], replace: bool) -> None:
        videos, features = constant(names, self.number)
        is_there = not self.expected.keys().isdisjoint(names)
        if len(set(names)) != len(names) or (is_there and not replace):
            with pytest.raises(DuplicateIdError):
                self.gallery.add(videos, features, replace=replace)
            return
        self.gallery.add(videos, features, replace=replace)
        for name in names:
            self.expected.pop(name, None)  # what is replaced moves to the end
            self.expected[name] = self.number
            self.number += 1

    @rule(names=names)
    def remove(self, names: list[str]) -> None:
        if self.expected.keys() >= set(names):
            self.gallery.remove(names)
            for name in set(names):
                del self.expected[name]
        else:
            with pytest.raises(GalleryError):
                self.gallery.remove(names)

    @rule()
    def look(self) -> None:
        snapshot = self.gallery.snapshot()
        values = np.array(list(self.expected.values()))
        assert [video.id for video in snapshot.videos] == list(self.expected)
        features = snapshot.features
        assert features.video_features.shape == (len(values), D)
        assert (features.video_features == values[:, None]).all()
        assert (features.frame_features == values[:, None, None]).all()
        assert (features.num_frames == 1 + values % F).all()
        times = [len(video.frame_times_s) for video in snapshot.videos]
        assert times == features.num_frames.tolist()

    @invariant()
    def knows_its_ids(self) -> None:
        assert len(self.gallery) == len(self.expected)
        assert {name for name in "abcdef" if name in self.gallery} == self.expected.keys()

    teardown = look


def test_any_sequence_of_changes(manifest: Manifest) -> None:
    GalleryMachine.manifest = manifest
    run_state_machine_as_test(
        GalleryMachine, settings=settings(max_examples=50, stateful_step_count=20)
    )


# On disk


def test_round_trip(gallery: Gallery, saved: Path, manifest: Manifest) -> None:
    assert_same(Gallery.open(saved, manifest), gallery)
    assert_same(Gallery.open(str(saved), manifest), gallery)
    assert sorted(path.name for path in saved.iterdir()) == ["features.npz", "gallery.json"]
    assert [path.name for path in saved.parent.iterdir()] == ["gallery"]  # nothing beside it


def test_saving_again_is_the_same(saved: Path, manifest: Manifest, tmp_path: Path) -> None:
    Gallery.open(saved, manifest).save(tmp_path / "again")
    again = (tmp_path / "again" / "gallery.json").read_bytes()
    assert again == (saved / "gallery.json").read_bytes()


def test_an_empty_gallery_can_be_saved(manifest: Manifest, tmp_path: Path) -> None:
    Gallery(manifest).save(tmp_path / "gallery")
    assert_same(Gallery.open(tmp_path / "gallery", manifest), Gallery(manifest))


def test_any_id(manifest: Manifest, tmp_path: Path) -> None:
    gallery = Gallery(manifest)
    gallery.add(*entries(ODD_IDS))
    gallery.save(tmp_path / "gallery")
    again = Gallery.open(tmp_path / "gallery", manifest)
    assert_same(again, gallery)
    assert all(name in again for name in ODD_IDS)
    again.remove(ODD_IDS[:-1])
    assert ids(again) == [ODD_IDS[-1]]


def test_a_video_without_path_and_duration(manifest: Manifest, tmp_path: Path) -> None:
    gallery = Gallery(manifest)
    _, features = entries(["a"])
    times = tuple(float(n) for n in range(int(features.num_frames[0])))
    gallery.add([GalleryVideo(id="a", frame_times_s=times)], features)
    gallery.save(tmp_path / "gallery")
    assert_same(Gallery.open(tmp_path / "gallery", manifest), gallery)


def test_save_replaces_a_gallery_and_nothing_else(
    saved: Path, gallery: Gallery, manifest: Manifest, tmp_path: Path
) -> None:
    gallery.remove(["a"])
    gallery.save(saved)
    assert ids(Gallery.open(saved, manifest)) == ["b", "c"]
    (tmp_path / "empty").mkdir()
    gallery.save(tmp_path / "empty")
    gallery.save(tmp_path / "new" / "deep" / "below")
    assert ids(Gallery.open(tmp_path / "new" / "deep" / "below", manifest)) == ["b", "c"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for path in (foreign, tmp_path / "file"):
        with pytest.raises(GalleryError, match="is no gallery and not empty"):
            gallery.save(path)
    assert (foreign / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "a file"


def test_save_through_a_link(saved: Path, gallery: Gallery, manifest: Manifest) -> None:
    link = saved.with_name("current")
    link.symlink_to(saved)
    gallery.remove(["a"])
    gallery.save(link)
    assert link.is_symlink()
    assert ids(Gallery.open(saved, manifest)) == ["b", "c"]
    assert sorted(path.name for path in saved.parent.iterdir()) == ["current", "gallery"]


def test_a_full_disk_leaves_the_old_gallery(
    saved: Path, gallery: Gallery, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_written(stream: Any, **arrays: Any) -> None:
        stream.write(b"PK")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    expected = Gallery.open(saved, manifest)
    gallery.remove(["a"])
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", half_written)
        with pytest.raises(GalleryError, match=r"No space left on device.*what was there stands"):
            gallery.save(saved)
        with pytest.raises(GalleryError, match="No space left on device"):
            gallery.save(saved.with_name("other"))
    assert_same(Gallery.open(saved, manifest), expected)
    assert [path.name for path in saved.parent.iterdir()] == ["gallery"]  # no rest of it
    gallery.save(saved)
    assert ids(Gallery.open(saved, manifest)) == ["b", "c"]


def test_reading_while_another_is_saved(manifest: Manifest, tmp_path: Path) -> None:
    """A reader gets the one or the other, never a mixture, never an error."""
    path = tmp_path / "gallery"
    both = [Gallery(manifest), Gallery(manifest)]
    for seed, gallery in enumerate(both):
        gallery.add(*entries(["a", "b", "c"], seed))
    both[0].save(path)
    stop = threading.Event()

    def save_in_turns() -> None:
        while not stop.is_set():
            for gallery in reversed(both):
                gallery.save(path)

    writer = threading.Thread(target=save_in_turns)
    writer.start()
    try:
        seen = [Gallery.open(path, manifest).snapshot() for _ in range(1500)]
    finally:
        stop.set()
        writer.join()
    wholes = [gallery.snapshot() for gallery in both]
    counts = [0, 0]
    for snapshot in seen:
        which = [whole.videos for whole in wholes].index(snapshot.videos)
        features = wholes[which].features.video_features
        np.testing.assert_array_equal(snapshot.features.video_features, features)
        counts[which] += 1
    assert min(counts) > 0, "nothing was saved meanwhile: the test says nothing"


def test_no_gallery(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "empty"):
        with pytest.raises(GalleryNotFoundError, match="run: xclip-deploy index") as caught:
            Gallery.open(tmp_path / name, manifest)
        assert "\n" not in str(caught.value)


def test_something_else_is_no_gallery(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path):
        with pytest.raises(GalleryNotFoundError, match="choose another path"):
            Gallery.open(path, manifest)


def test_a_missing_feature_file(saved: Path, manifest: Manifest) -> None:
    (saved / "features.npz").unlink()
    with pytest.raises(GalleryIntegrityError, match=r"features\.npz is missing"):
        Gallery.open(saved, manifest)


def assert_damaged(path: Path, manifest: Manifest) -> None:
    with pytest.raises(GalleryIntegrityError) as caught:
        Gallery.open(path, manifest)
    assert "\n" not in str(caught.value)
    assert f"run: xclip-deploy index VIDEOS --gallery {path}" in str(caught.value)


@pytest.mark.parametrize("name", ["features.npz", "gallery.json"])
def test_a_truncated_file(saved: Path, manifest: Manifest, name: str) -> None:
    original = (saved / name).read_bytes()
    for size in (0, 1, 100, len(original) // 2, len(original) - 1):
        (saved / name).write_bytes(original[:size])
        assert_damaged(saved, manifest)


def test_altered_features(saved: Path, manifest: Manifest) -> None:
    file = saved / "features.npz"
    original = file.read_bytes()
    for position in range(0, len(original), 499):
        altered = bytearray(original)
        altered[position] ^= 1
        file.write_bytes(altered)
        assert_damaged(saved, manifest)


def test_an_altered_description(saved: Path, manifest: Manifest) -> None:
    """Not even an id or a frame's time can change unnoticed: results would be wrong."""
    file = saved / "gallery.json"
    original = file.read_bytes()
    expected = Gallery.open(saved, manifest)
    content = json.loads(original)
    for position in range(0, len(original), 7):
        altered = bytearray(original)
        altered[position] ^= 1
        file.write_bytes(altered)
        if is_the_same_json(altered, content):  # white space between tokens
            assert_same(Gallery.open(saved, manifest), expected)
            continue
        with pytest.raises(GalleryError) as caught:
            Gallery.open(saved, manifest)
        assert isinstance(caught.value, (GalleryIntegrityError, GalleryVersionError))
        assert "\n" not in str(caught.value)


def is_the_same_json(text: bytes | bytearray, content: Any) -> bool:
    try:
        return bool(json.loads(text) == content)
    except ValueError:
        return False


def edit(path: Path, sign: bool, **changes: object) -> None:
    """Change ``gallery.json``; ``sign``: and make its checksum fit again."""
    file = path / "gallery.json"
    content = json.loads(file.read_bytes()) | changes
    if sign:
        content["checksum"] = checksum(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_features_of_another_gallery(saved: Path, manifest: Manifest, tmp_path: Path) -> None:
    other = Gallery(manifest)
    other.add(*entries(["a", "b", "c"], seed=7))
    other.save(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / "features.npz", saved / "features.npz")
    assert_damaged(saved, manifest)


def test_a_description_that_does_not_fit_its_features(saved: Path, manifest: Manifest) -> None:
    original = (saved / "gallery.json").read_bytes()
    videos = json.loads(original)["videos"]
    longer = [videos[0] | {"frame_times_s": [*videos[0]["frame_times_s"], 99.0]}, *videos[1:]]
    for wrong in (
        videos[:2],
        [*videos, videos[0]],
        [videos[0], videos[0], videos[0]],
        [],
        longer,
        {"a": 1},
        None,
        [3],
        [videos[0] | {"more": 1}],
    ):
        (saved / "gallery.json").write_bytes(original)
        edit(saved, True, videos=wrong)
        assert_damaged(saved, manifest)


@pytest.mark.parametrize("version", [2, 10**30, 0, "1", None])
def test_another_schema(saved: Path, manifest: Manifest, version: object) -> None:
    edit(saved, False, schema_version=version)
    with pytest.raises(GalleryVersionError, match="this release reads 1; run: pip install"):
        Gallery.open(saved, manifest)


HEAD = b'{"format": "xclip-gallery", "schema_version": 1, "x": '


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"3",
        b"{}",
        b'{"format": "xclip-bundle"}',
        b"\xff\xfe",
        HEAD + b'"\\ud800"}',
        HEAD + b"1}",
        *(HEAD + b"[" * depth + b"]" * depth + b"}" for depth in (980, 990, 992, 994, 9000)),
    ],
    ids=lambda content: f"{content[-12:]!r}-{len(content)}",
)
def test_a_description_that_is_none(saved: Path, manifest: Manifest, content: bytes) -> None:
    (saved / "gallery.json").write_bytes(content)
    assert_damaged(saved, manifest)


def test_features_of_another_model(
    gallery: Gallery, saved: Path, manifest: Manifest, bundle: Bundle
) -> None:
    other = manifest.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(GalleryModelError, match="the bundle is model 000000000000…") as caught:
        Gallery.open(saved, other)
    assert "run: xclip-deploy index VIDEOS --gallery NEW_GALLERY" in str(caught.value)
    with pytest.raises(GalleryModelError):
        Retriever(bundle, Gallery(other))
    with Retriever(bundle, gallery) as retriever:
        assert len(retriever) == 3
