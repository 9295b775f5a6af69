"""Models that are given nothing, padding, wrong arguments, or several threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from xclip_deploy import Bundle, DeployedModel, TextFeatures, VideoFeatures
from xclip_deploy.errors import ClosedError, InvalidArgumentError, SessionError
from xclip_deploy.runtime.arrays import FloatArray
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.sessions import SessionOptions

Arrays = dict[str, npt.NDArray[Any]]


CPU = SessionOptions(device="cpu")


W, F, S, D = 32, 12, 64, 64  # of the tiny model: words, frames, image side, embedding


def assert_close(found: FloatArray, expected: FloatArray, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def assert_same_features(
    found: TextFeatures | VideoFeatures, expected: TextFeatures | VideoFeatures, tolerance: float
) -> None:
    assert vars(found).keys() == vars(expected).keys()
    for name, array in vars(expected).items():
        assert getattr(found, name).dtype == array.dtype
        assert_close(getattr(found, name), array, tolerance)


def test_no_texts_and_no_videos(
    model: DeployedModel, texts: TextFeatures, videos: VideoFeatures
) -> None:
    no_texts = model.encode_texts([])
    no_videos = model.encode_videos([])
    assert no_texts.word_features.shape == (0, W, D)
    assert no_texts.sentence_features.shape == (0, D)
    assert no_videos.frame_features.shape == (0, F, D)
    assert no_videos.video_features.shape == (0, D)
    assert no_texts.num_words.shape == no_videos.num_frames.shape == (0,)
    for some_texts, some_videos in ((no_texts, videos), (texts, no_videos), (no_texts, no_videos)):
        scores = model.score(some_texts, some_videos)
        shape = (len(some_texts), len(some_videos))
        assert scores.logits.shape == shape
        assert {grain.shape for grain in scores.grains.values()} == {shape}


def test_garbage_in_padded_frames_changes_nothing(
    model: DeployedModel, golden: Arrays, videos: VideoFeatures
) -> None:
    counts = golden["num_frames"]
    assert counts.min() < F, "no video is padded: the test would say nothing"
    padded = np.arange(F) >= counts[:, None]  # [V, F]
    random = np.random.default_rng(0)
    for filling in (0, 255, random.integers(0, 256, (*padded.shape, S, S, 3), np.uint8)):
        frames = np.where(padded[..., None, None, None], filling, golden["frames_uint8"])
        found = model.encode_frames(frames.astype(np.uint8), counts)
        assert_same_features(found, videos, 0)


def test_videos_are_padded_frames(
    model: DeployedModel, golden: Arrays, videos: VideoFeatures
) -> None:
    unpadded = [
        frames[:count]
        for frames, count in zip(golden["frames_uint8"], golden["num_frames"], strict=True)
    ]
    assert_same_features(model.encode_videos(unpadded), videos, 0)


def test_arrays_need_not_be_contiguous(
    model: DeployedModel, golden: Arrays, videos: VideoFeatures, texts: TextFeatures
) -> None:
    frames = np.repeat(golden["frames_uint8"], 2, axis=0)[::2]
    flipped = np.ascontiguousarray(frames[..., ::-1])[..., ::-1]
    assert not flipped.flags.c_contiguous
    assert_same_features(model.encode_frames(flipped, golden["num_frames"]), videos, 0)
    ids = np.asfortranarray(golden["input_ids"])
    assert_same_features(model.encode_token_ids(ids), texts, 0)


def test_texts_are_their_token_ids(model: DeployedModel) -> None:
    sentences = ["a man is driving a car", "", "word " * 100]
    ids = model.tokenizer.encode(sentences, W)
    found = model.encode_texts(sentences)
    assert_same_features(found, model.encode_token_ids(ids), 0)
    assert found.num_words.tolist() == [8, 2, W]


def test_wrong_token_ids(model: DeployedModel) -> None:
    ids = np.zeros((2, W), np.int32)
    wrong: list[npt.NDArray[Any]] = [
        ids[0],
        ids[:, :-1],
        ids[None],
        np.zeros((2, 0), np.int32),
        np.full((2, W), 49408),
        np.full((2, W), -1),
        np.full((2, W), 1 << 40),
        ids.astype(np.float32),
        np.full((2, W), np.nan),
        ids.astype(bool),
        ids.astype(str),
    ]
    for case in wrong:
        with pytest.raises(InvalidArgumentError, match="token_ids"):
            model.encode_token_ids(case)


def test_token_ids_of_any_integer_type(
    model: DeployedModel, golden: Arrays, texts: TextFeatures
) -> None:
    for dtype in (np.int32, np.int64, np.uint16, np.uint64):
        found = model.encode_token_ids(golden["input_ids"].astype(dtype))
        assert_same_features(found, texts, 0)


def test_wrong_frames(model: DeployedModel) -> None:
    frames, counts = np.zeros((2, F, S, S, 3), np.uint8), np.array([1, F])
    wrong: list[npt.NDArray[Any]] = [
        frames[0],
        frames[:, 1:],
        frames[:, :, 1:],
        frames[..., :2],
        frames.transpose(0, 1, 4, 2, 3),
        frames.astype(np.float32),
        frames.astype(np.int8),
    ]
    for case in wrong:
        with pytest.raises(InvalidArgumentError, match=r"frames is .* expected uint8 \[videos, 12"):
            model.encode_frames(case, counts)


@pytest.mark.parametrize(
    "counts", [[0, 1], [1, 13], [1, -1], [1], [1, 1, 1], [[1, 1]], [1.0, 2.0], [1, 1 << 40]]
)
def test_wrong_num_frames(model: DeployedModel, counts: list[Any]) -> None:
    frames = np.zeros((2, F, S, S, 3), np.uint8)
    with pytest.raises(InvalidArgumentError, match="num_frames"):
        model.encode_frames(frames, np.array(counts))


def test_wrong_clips(model: DeployedModel) -> None:
    frames = np.zeros((2, S, S, 3), np.uint8)
    for wrong in (
        frames[:0],
        frames[0],
        frames[:, 1:],
        frames.astype(np.float32),
        np.zeros((F + 1, S, S, 3), np.uint8),
        np.uint8(3),
    ):
        with pytest.raises(InvalidArgumentError):
            model.encode_videos([frames, wrong])  # type: ignore[list-item]


def test_what_is_no_text(model: DeployedModel) -> None:
    with pytest.raises(InvalidArgumentError, match=r"texts is 'a dog' \(str\); expected several"):
        model.encode_texts("a dog")
    with pytest.raises(InvalidArgumentError, match=r"texts is 3 \(int\); expected a text"):
        model.encode_texts(["a dog", 3])  # type: ignore[list-item]


@pytest.mark.parametrize("max_batch", [0, -1])
def test_wrong_max_batch(bundle: Bundle, max_batch: int) -> None:
    with pytest.raises(InvalidArgumentError, match="max_batch"):
        DeployedModel(bundle, CPU, max_batch)


def test_features_of_another_size(model: DeployedModel, texts: TextFeatures) -> None:
    odd = VideoFeatures(
        np.zeros((1, D + 1), np.float32),
        np.zeros((1, F, D + 1), np.float32),
        np.ones(1, np.int32),
    )
    with pytest.raises(InvalidArgumentError, match=rf"decimal.* \[videos, {D}\]") as caught:
        model.score(texts, odd)
    assert "\n" not in str(caught.value)


def test_sessions_open_when_needed(bundle: Bundle, videos: VideoFeatures) -> None:
    with DeployedModel(bundle, CPU) as model:
        assert not model._sessions.opened
        texts = model.encode_texts(["a dog"])
        model.score(texts, videos)
        assert set(model._sessions.opened) == {Graph.TEXT_ENCODER}
        model.score_by_graph(texts, videos)
        assert set(model._sessions.opened) == {Graph.TEXT_ENCODER, Graph.SCORER}


def test_closed_means_closed(bundle: Bundle, golden: Arrays) -> None:
    model = DeployedModel(bundle, CPU)
    texts = model.encode_token_ids(golden["input_ids"])
    videos = model.encode_frames(golden["frames_uint8"], golden["num_frames"])
    session = model._sessions.of(Graph.TEXT_ENCODER)
    model.close()
    model.close()
    with pytest.raises(SessionError, match="text_encoder session is closed"):
        session.run({"token_ids": golden["input_ids"]})
    uses: list[Callable[[], object]] = [
        lambda: model.encode_token_ids(golden["input_ids"]),
        lambda: model.encode_texts([]),
        lambda: model.encode_frames(golden["frames_uint8"], golden["num_frames"]),
        lambda: model.encode_videos([]),
        lambda: model.score(texts, videos),
        lambda: model.score_gallery(texts, videos),
        model.load,
    ]
    for use in uses:
        with pytest.raises(ClosedError, match=r"this model of .* is closed; open another"):
            use()
    assert repr(model).endswith("closed)>")
    with DeployedModel(bundle, CPU) as another:
        assert_same_features(another.encode_token_ids(golden["input_ids"]), texts, 0)


def test_several_threads(bundle: Bundle, golden: Arrays) -> None:
    def work(number: int) -> list[npt.NDArray[Any]]:
        rows = slice(number % 4, number % 4 + 3)
        texts = model.encode_token_ids(golden["input_ids"][rows])
        videos = model.encode_frames(golden["frames_uint8"][rows], golden["num_frames"][rows])
        return [*vars(texts).values(), *vars(videos).values(), model.score(texts, videos).logits]

    with DeployedModel(bundle, CPU) as model:
        expected = [work(number) for number in range(4)]
    # A fresh model, so that the threads race for the opening of the sessions, too.
    with DeployedModel(bundle, CPU) as model, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(32)))
    for number, found in enumerate(results):
        for array, wanted in zip(found, expected[number % 4], strict=True):
            np.testing.assert_array_equal(array, wanted)


def test_videos_are_padded_a_batch_at_a_time(bundle: Bundle, golden: Arrays) -> None:
    """As many as fit a batch, an odd rest, and none at all."""
    counts = golden["num_frames"].tolist()
    unpadded = [
        frames[:count] for frames, count in zip(golden["frames_uint8"], counts, strict=True)
    ]
    with DeployedModel(bundle, CPU) as model:
        expected = model.encode_frames(golden["frames_uint8"], golden["num_frames"])
        assert len(model.encode_videos([])) == 0
    with DeployedModel(bundle.without_video_parts(), CPU, max_batch=4) as model:
        padded = []
        encode = model.encode_frames

        def watch(frames: npt.NDArray[np.uint8], num_frames: Any) -> VideoFeatures:
            padded.append(len(frames))
            return encode(frames, num_frames)

        model.encode_frames = watch  # type: ignore[method-assign]
        assert_same_features(model.encode_videos(unpadded), expected, 1e-5)
    assert padded == [4, 2]
