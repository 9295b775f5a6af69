"""The comparison itself: it must fail where it should."""

from __future__ import annotations

import numpy as np
import pytest

from xclip_deploy.export.parity import TOLERANCES, Tensors, compare
from xclip_deploy.export.reference_inputs import reference_inputs
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.model_config import ModelConfig, TextConfig, VisionConfig
from xclip_deploy.runtime.tokenizer import Tokenizer

FEATURES = (Graph.VIDEO_ENCODER, "video_features")
LOGITS = (Graph.SCORER, "logits")


def tensors() -> Tensors:
    random = np.random.default_rng(0)
    features = random.normal(size=(3, 64))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    return {FEATURES: features.astype(np.float32), LOGITS: np.zeros((2, 3), np.float32)}


def passed(found: Tensors, precision: Precision = Precision.FP32) -> dict[str, bool]:
    records = compare(tensors(), found, precision, score_scale=10.0)
    return {record.tensor: record.passed for record in records}


@pytest.mark.parametrize("precision", list(Precision))
def test_just_within_and_just_outside(precision: Precision) -> None:
    tolerance = TOLERANCES[precision]
    for factor, expected in ((0.9, True), (1.1, False)):
        found = tensors()
        found[FEATURES][1, 5] += factor * tolerance.feature
        found[LOGITS] += factor * tolerance.score * 10.0
        assert passed(found, precision) == {"video_features": expected, "logits": expected}


@pytest.mark.parametrize(("factor", "expected"), [(0.9, True), (1.1, False)])
def test_a_single_pair_may_be_further_off_but_not_by_any_amount(
    factor: float, expected: bool
) -> None:
    tolerance = TOLERANCES[Precision.FP16]
    many: Tensors = {LOGITS: np.zeros((100, 100), np.float32)}
    found: Tensors = {LOGITS: many[LOGITS].copy()}
    found[LOGITS][7, 8] = factor * tolerance.outlier_factor * tolerance.score * 10.0
    (record,) = compare(many, found, Precision.FP16, score_scale=10.0)
    assert record.passed is expected
    assert record.rms_error is not None
    assert record.rms_error < record.tolerance


def test_a_turned_vector_fails_by_its_cosine_though_no_element_is_far_off() -> None:
    found = tensors()
    most = TOLERANCES[Precision.FP16].feature
    found[FEATURES][0] += 0.99 * most * np.sign(np.random.default_rng(1).normal(size=64))
    assert passed(found, Precision.FP16)["video_features"] is False


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_never_passes(value: float) -> None:
    found = tensors()
    found[FEATURES][0, 0] = value
    found[LOGITS][0, 0] = value
    with np.errstate(invalid="ignore"):
        assert passed(found) == {"video_features": False, "logits": False}


def test_reference_inputs_are_varied_and_the_same_every_time() -> None:
    config = ModelConfig(
        embed_dim=64,
        vision=VisionConfig(image_size=32, patch_size=16, width=64, layers=1, heads=1),
        text=TextConfig(width=64, layers=1, heads=1),
    )
    first, second = (reference_inputs(config, Tokenizer.default()) for _ in range(2))
    np.testing.assert_array_equal(first.frames, second.frames)
    assert first.num_frames.tolist() == [12, 8, 1]
    lengths = (first.token_ids.argmax(axis=1) + 1).tolist()
    assert min(lengths) == 2  # an empty text
    assert max(lengths) == config.max_words  # one that is cut
    for video, count in zip(first.frames, first.num_frames, strict=True):
        valid = video[:count].astype(float)
        assert valid.std() > 20
        if count > 1:
            assert np.abs(np.diff(valid, axis=0)).mean() > 2  # it moves
