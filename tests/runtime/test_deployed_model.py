from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from xclip_deploy import Bundle, DeployedModel, TextFeatures, VideoFeatures
from xclip_deploy.runtime import deployed_model
from xclip_deploy.runtime.arrays import FloatArray
from xclip_deploy.runtime.features import Scores, videos_at_once
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.sessions.onnx_runtime import why_no_provider

Arrays = dict[str, npt.NDArray[Any]]
CPU = SessionOptions(device="cpu")
W, F, S, D = 32, 12, 64, 64  # of the tiny model: words, frames, image side, embedding

# Absolute, of logits and of features. The largest differences from the authors' FP32 numbers,
# on ONNX Runtime 1.31's CPU kernels, were 1.5e-5 and 3.6e-7 in FP32 and 1.7e-2 and 3.1e-4 in
# FP16, where the golden logits run from -9.3 to 8.1. The rest is room for other kernels.
LOOSER = [("fp16", "fp16"), ("tf32", "fp16")]
"""Precision, and whose tolerance holds it: TF32 rounds products much like FP16."""
TOLERANCES = {"fp32": (1e-4, 5e-6), "fp16": (5e-2, 2e-3)}


def unit(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    length: npt.NDArray[np.float32] = np.linalg.norm(array, axis=-1, keepdims=True)
    return array / length


def assert_close(found: FloatArray, expected: FloatArray, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def assert_same_features(
    found: TextFeatures | VideoFeatures, expected: TextFeatures | VideoFeatures, tolerance: float
) -> None:
    assert vars(found).keys() == vars(expected).keys()
    for name, array in vars(expected).items():
        assert getattr(found, name).dtype == array.dtype
        assert_close(getattr(found, name), array, tolerance)


# The numbers of the authors


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "allowed"), [("fp32", "fp32"), *LOOSER])
def test_logits_on_a_gpu_are_those_of_the_authors(
    bundle: Bundle, golden: Arrays, precision: str, allowed: str
) -> None:
    missing = why_no_provider("CUDAExecutionProvider")
    if missing is not None:
        pytest.skip(f"needs an NVIDIA GPU: {missing}")
    with DeployedModel(bundle, SessionOptions(device="cuda", precision=precision)) as model:
        texts = model.encode_token_ids(golden["input_ids"])
        videos = model.encode_frames(golden["frames_uint8"], golden["num_frames"])
        assert_close(model.score(texts, videos).logits, golden["logits"], TOLERANCES[allowed][0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_logits_are_those_of_the_authors(
    models: dict[str, DeployedModel], golden: Arrays, precision: str
) -> None:
    model = models[precision]
    assert model.placement.precision is Precision(precision)
    texts = model.encode_token_ids(golden["input_ids"])
    videos = model.encode_frames(golden["frames_uint8"], golden["num_frames"])
    logits = model.score(texts, videos).logits
    assert logits.dtype == np.float32
    assert_close(logits, golden["logits"], TOLERANCES[precision][0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_features_are_those_of_the_authors(
    models: dict[str, DeployedModel], golden: Arrays, precision: str
) -> None:
    model, tolerance = models[precision], TOLERANCES[precision][1]
    texts = model.encode_token_ids(golden["input_ids"])
    videos = model.encode_frames(golden["frames_uint8"], golden["num_frames"])
    assert_close(texts.sentence_features, unit(golden["sentence_raw"]), tolerance)
    assert_close(texts.word_features, unit(golden["words_raw"]), tolerance)
    assert_close(videos.frame_features, unit(golden["frames_raw"]), tolerance)
    assert videos.num_frames.tolist() == golden["num_frames"].tolist()
    assert texts.num_words.tolist() == [
        ids.index(49407) + 1 for ids in golden["input_ids"].tolist()
    ]
    for features in (texts.sentence_features, texts.word_features, videos.video_features):
        assert features.dtype == np.float32
        assert_close(np.linalg.norm(features, axis=-1), np.float32(1), 1e-5)


def test_precisions_are_not_the_same_graphs(
    models: dict[str, DeployedModel], golden: Arrays
) -> None:
    """Else the test of FP16 would say nothing."""
    ids = golden["input_ids"]
    found = [model.encode_token_ids(ids).word_features for model in models.values()]
    assert np.abs(found[0] - found[1]).max() > 1e-5


def test_logits_are_the_scaled_mean_of_the_grains(
    model: DeployedModel, texts: TextFeatures, videos: VideoFeatures, checkpoint_path: Any
) -> None:
    weights = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    scale = math.exp(float(weights["clip.logit_scale"]))
    scores = model.score(texts, videos)
    assert list(scores.grains) == ["video_sentence", "video_word", "frame_sentence", "frame_word"]
    mean = np.mean(list(scores.grains.values()), axis=0)
    assert_close(scores.logits, scale * mean, 1e-4)
    grains = list(scores.grains.values())
    for number, grain in enumerate(grains):
        assert grain.shape == (len(texts), len(videos))
        assert all(np.abs(grain - other).max() > 1e-3 for other in grains[:number])


def test_video_sentence_is_what_the_paper_says(
    model: DeployedModel, texts: TextFeatures, videos: VideoFeatures, checkpoint_path: Any
) -> None:
    weights = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    expected = texts.sentence_features @ weights["global_mat_weight"].numpy()
    expected = expected @ videos.video_features.T
    assert_close(model.score(texts, videos).grains["video_sentence"], expected, 1e-5)


# Batches


@pytest.mark.parametrize("max_batch", [1, 3, 5, 64])
def test_batches_do_not_change_results(
    bundle: Bundle,
    golden: Arrays,
    texts: TextFeatures,
    videos: VideoFeatures,
    model: DeployedModel,
    max_batch: int,
) -> None:
    expected = model.score(texts, videos)
    with DeployedModel(bundle, CPU, max_batch) as other:
        found_texts = other.encode_token_ids(golden["input_ids"])
        found_videos = other.encode_frames(golden["frames_uint8"], golden["num_frames"])
        found = other.score(found_texts, found_videos)
    assert_same_features(found_texts, texts, 1e-5)
    assert_same_features(found_videos, videos, 1e-5)
    assert_same_scores(found, expected, 1e-4)


def assert_same_scores(found: Scores, expected: Scores, tolerance: float) -> None:
    """``tolerance``: of the logits, which are the grains times a scale of over 10."""
    assert_close(found.logits, expected.logits, tolerance)
    assert found.grains.keys() == expected.grains.keys()
    for name, grain in expected.grains.items():
        assert_close(found.grains[name], grain, tolerance / 10)


@pytest.mark.parametrize("most_elements", [1, W * F, W * F * 8 * 2, W * F * 8 * 5])
def test_chunks_do_not_change_scores(
    model: DeployedModel,
    texts: TextFeatures,
    videos: VideoFeatures,
    monkeypatch: pytest.MonkeyPatch,
    most_elements: int,
) -> None:
    expected = model.score_by_graph(texts, videos)
    session = model._sessions.of(Graph.SCORER)
    run, runs = session.run, []

    def counted(inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        runs.append(len(inputs["video_features"]))
        return run(inputs)

    monkeypatch.setattr(session, "run", counted)
    bounded = partial(videos_at_once, elements=most_elements)
    monkeypatch.setattr(deployed_model, "videos_at_once", bounded)
    assert_same_scores(model.score_by_graph(texts, videos), expected, 1e-4)
    chunks = {1: [1] * 6, W * F: [1] * 6, W * F * 16: [2] * 3, W * F * 40: [5, 1]}
    assert runs == chunks[most_elements]


def test_more_texts_than_a_batch_are_scored_alike(
    bundle: Bundle, texts: TextFeatures, videos: VideoFeatures, model: DeployedModel
) -> None:
    with DeployedModel(bundle, CPU, max_batch=3) as other:
        assert_same_scores(other.score(texts, videos), model.score(texts, videos), 1e-4)


def test_a_gallery_in_fp16_scores_nearly_alike(
    model: DeployedModel, texts: TextFeatures, videos: VideoFeatures
) -> None:
    half = VideoFeatures(
        videos.video_features.astype(np.float16),
        videos.frame_features.astype(np.float16),
        videos.num_frames,
    )
    assert_close(model.score(texts, half).logits, model.score(texts, videos).logits, 2e-2)


def test_a_cpu_scores_as_the_exported_graph_does(
    models: dict[str, DeployedModel], texts: TextFeatures, videos: VideoFeatures
) -> None:
    for model in models.values():
        assert_same_scores(model.score(texts, videos), model.score_by_graph(texts, videos), 1e-5)


def test_videos_that_underflow_are_scored_by_the_graph(
    model: DeployedModel,
    texts: TextFeatures,
    videos: VideoFeatures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Every word and frame lies along one line, the frames of two videos in both directions.
    line = np.full(D, D**-0.5, np.float32)
    alike = TextFeatures(
        texts.sentence_features,
        np.broadcast_to(line, texts.word_features.shape).copy(),
        texts.num_words,
    )
    frames = np.broadcast_to(line, videos.frame_features.shape).copy()
    frames[[1, 4], 3:] *= -1
    odd = VideoFeatures(videos.video_features, frames, videos.num_frames)
    expected = model.score_by_graph(alike, odd)
    session = model._sessions.of(Graph.SCORER)
    run, runs = session.run, []

    def counted(inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        runs.append(inputs["frame_features"])
        return run(inputs)

    monkeypatch.setattr(session, "run", counted)
    assert_same_scores(model.score(alike, odd), expected, 1e-4)
    np.testing.assert_array_equal(np.concatenate(runs), frames[[1, 4]])


# Nothing, and padding


# Wrong arguments


# Sessions
