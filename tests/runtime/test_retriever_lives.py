"""Retrievers that are opened, given frames or features, and closed."""

from __future__ import annotations

import pickle
import re
from collections import deque
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy import (
    Bundle,
    DeployedModel,
    Gallery,
    GalleryVideo,
    Retriever,
    VideoFeatures,
)
from xclip_deploy.errors import (
    BundleNotFoundError,
    ClosedError,
    DuplicateIdError,
    GalleryNotFoundError,
    InvalidArgumentError,
)
from xclip_deploy.runtime.gallery.flat import best_first

Arrays = dict[str, npt.NDArray[Any]]


FROG, DOG, WALK = "mdn_frog.webm", "sam2_dog.mp4", "intel_asl_walk.mkv"


# Small, for tests to which the content does not matter.
TURNED, STREET = "edge_cases/decord_video_90.mov", "edge_cases/torchcodec_h265.mp4"


# Words of the golden texts: the tiny model knows no others.
TEXTS = ("a man is driving a car", "a cat's dog", "a man", "dogs 3 toys")


def ids(retriever: Retriever) -> list[str]:
    return [video.id for video in retriever.gallery.snapshot().listing()]


def features_of(retriever: Retriever) -> VideoFeatures:
    """Everything in the gallery, in the order of ``ids``."""
    held = retriever.gallery.snapshot().held()
    assert held is not None
    return held[1]


@given(st.lists(st.sampled_from([-1.5, 0.0, 0.5, 7.0]), min_size=1), st.integers(1, 60))
def test_equal_scores_come_in_the_order_of_addition(scores: list[float], k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda n: -scores[n])[:k]  # a stable sort
    assert best_first(np.array(scores, np.float32), k).tolist() == expected


def test_an_empty_gallery(retriever: Retriever, clips: Path) -> None:
    assert len(retriever.search("a dog")) == 0
    assert [len(hits) for hits in retriever.search_batch(["a dog", "a cat"])] == [0, 0]
    assert len(retriever.search_by_video(clips / FROG)) == 0
    with pytest.raises(InvalidArgumentError):
        retriever.search("a dog", k=0)


def test_opening_what_is_not_there(bundle: Bundle, bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        Retriever(tmp_path / "none")
    with pytest.raises(GalleryNotFoundError):
        Retriever(bundle, tmp_path / "none")
    with Retriever(str(bundle_path), device="cpu") as retriever:
        assert len(retriever) == 0


def test_wrong_settings(bundle: Bundle) -> None:
    for wrong in (
        {"device": "tpu"},
        {"precision": "int4"},
        {"threads": 0},
        {"max_batch": 0},
        {"reader": "vhs"},
    ):
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
            Retriever(bundle, **wrong)


def test_close_means_closed(bundle: Bundle, clips: Path, golden: Arrays) -> None:
    with Retriever(bundle, device="cpu") as retriever:
        retriever.add(clips / TURNED)
        features = retriever.encode_texts(TEXTS)
        held = features_of(retriever)
    retriever.close()
    for use in (
        lambda: len(retriever),
        lambda: retriever.add([]),
        lambda: retriever.remove("a"),
        lambda: retriever.refresh(),
        lambda: retriever.warm_up(),
        lambda: retriever.save("gallery"),
        lambda: retriever.search(TEXTS[0]),
        lambda: retriever.search_batch([]),
        lambda: retriever.search_by_video(clips / TURNED),
        lambda: retriever.search_by_image(clips / TURNED),
        lambda: retriever.query_bank(TEXTS),
        lambda: retriever.explain(TEXTS[0], "a"),
        lambda: retriever.read_video(clips / TURNED),
        lambda: retriever.encode_texts([]),
        lambda: retriever.encode_videos([]),
        lambda: retriever.encode_frames(golden["frames_uint8"], golden["num_frames"]),
        lambda: retriever.score(features, held),
        lambda: retriever.gallery.count(),
        retriever.__enter__,
    ):
        with pytest.raises(ClosedError, match="is closed; open"):
            use()
    assert repr(retriever) == f"<Retriever of {str(bundle.path)!r}, closed>"


def test_a_gallery_that_was_given_outlives_close(bundle: Bundle, clips: Path) -> None:
    gallery = Gallery(bundle.manifest)
    with Retriever(bundle, gallery, device="cpu") as retriever:
        retriever.add(clips / TURNED)
    assert len(gallery) == 1
    with Retriever(bundle, gallery, device="cpu") as another:
        assert len(another.search(TEXTS[0])) == 1


def test_what_a_retriever_says_of_itself(retriever: Retriever, bundle: Bundle) -> None:
    assert repr(retriever) == (
        f"<Retriever of {str(bundle.path)!r} (x-clip, fp32 by onnxruntime on cpu), "
        "<Gallery in memory, 0 videos>>"
    )


def test_pickling_is_refused(retriever: Retriever, bundle: Bundle, tmp_path: Path) -> None:
    for opened in (retriever, retriever.gallery, retriever.model):
        for copy in (pickle.dumps, deepcopy):
            with pytest.raises(InvalidArgumentError, match="open it in the worker") as caught:
                copy(opened)
            assert "\n" not in str(caught.value)
    retriever.save(tmp_path / "gallery")
    kept = Retriever(bundle, tmp_path / "gallery", device="cpu")
    said = re.escape(f"Retriever('{bundle.path}', '{tmp_path / 'gallery'}')")
    with kept, pytest.raises(InvalidArgumentError, match=said):
        pickle.dumps(kept)


def test_frames_in_memory_are_added(retriever: Retriever, clips: Path) -> None:
    read = retriever.read_video(clips / FROG)
    grey = np.full((3, 90, 120, 3), 127, np.uint8)
    report = retriever.add([read, grey], ids=["frog", "grey"], metadata={"source": "memory"})
    assert report.indexed == ("frog", "grey")
    frog = retriever.gallery.get("frog")
    assert (frog.path, frog.files) == (None, ())
    assert frog.metadata == {"source": "memory"}
    assert frog.frame_times_s == tuple(read.times_s.tolist())
    assert retriever.gallery.get("grey").frame_times_s == (0.0, 1.0, 2.0)
    assert [hit.id for hit in retriever.search_by_video(read)] == ["frog", "grey"]
    again = retriever.add([read, grey], ids=["frog", "new"], on_duplicate="skip")
    assert (again.indexed, again.unchanged) == (("new",), ("frog",))
    assert retriever.add(grey, ids="frog").changed == ("frog",)
    assert len(retriever) == 3


@pytest.mark.parametrize("kind", [iter, deque, lambda videos: (video for video in videos)])
def test_any_iterable_of_frames_is_added(
    retriever: Retriever, kind: Callable[[list[Any]], Iterable[Any]]
) -> None:
    videos = [np.full((2, 8, 8, 3), grey, np.uint8) for grey in (10, 200)]
    assert retriever.add(kind(videos), ids=["dark", "light"]).indexed == ("dark", "light")
    assert retriever.search_by_video(videos[1])[0].id == "light"


@pytest.mark.parametrize(
    ("videos", "options", "said"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), {}, "give ids"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"ids": ["a", "b"]}, "2 ids for 1 videos"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"ids": ""}, "unique and not empty"),
        (np.zeros((2, 8, 8, 3), np.float32), {"ids": "a"}, "expected uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), {"ids": "a"}, "not empty"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"ids": "a", "prune": True}, "prune is for files"),
        ([np.zeros((2, 8, 8, 3), np.uint8), "a.mp4"], {"ids": "a"}, "both files and frames"),
    ],
)
def test_frames_in_memory_that_are_refused(
    retriever: Retriever, videos: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        retriever.add(videos, **options)
    assert len(retriever) == 0


def test_features_from_elsewhere(retriever: Retriever, golden: Arrays) -> None:
    """Golden frames, encoded by another model object, added and searched."""
    model = DeployedModel(retriever.bundle, max_batch=4)
    features = model.encode_frames(golden["frames_uint8"], golden["num_frames"])
    videos = [
        GalleryVideo(id=f"v{n}", frame_times_s=tuple(float(t) for t in range(count)))
        for n, count in enumerate(golden["num_frames"])
    ]
    retriever.add_features(videos, features)
    assert ids(retriever) == [f"v{n}" for n in range(6)]
    texts = model.encode_token_ids(golden["input_ids"])
    logits = retriever.score(texts, features_of(retriever)).logits
    # FP16 in the gallery; see test_the_gallery_in_fp16_loses_little.
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=3e-2)
    results = retriever.search(TEXTS[0])
    assert {result.path for result in results} == {None}
    with pytest.raises(DuplicateIdError):
        retriever.add_features(videos[:1], features[:1])
    with pytest.raises(InvalidArgumentError):
        retriever.add_features(videos[:2], features[:1])
    broken = VideoFeatures(
        np.full_like(features.video_features[:1], np.nan),
        features.frame_features[:1],
        features.num_frames[:1],
    )
    with pytest.raises(InvalidArgumentError, match="NaN"):
        retriever.add_features([videos[0].model_copy(update={"id": "new"})], broken)
    assert len(retriever) == 6


def test_frames_of_ones_own(retriever: Retriever, golden: Arrays) -> None:
    found = retriever.encode_frames(golden["frames_uint8"], golden["num_frames"])
    expected = retriever.model.encode_frames(golden["frames_uint8"], golden["num_frames"])
    np.testing.assert_array_equal(found.video_features, expected.video_features)
