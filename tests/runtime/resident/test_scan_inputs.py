"""Factors of texts and learned matrices are as exact as FP32, whatever their size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stand_in_device import Device
from xclip_deploy import Bundle
from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.features import TextFeatures
from xclip_deploy.runtime.grains import CLIP_GRAINS, PUBLISHED_GRAINS, TEMPERATURE, Grain
from xclip_deploy.runtime.resident.scan_inputs import ScanMatrices, ScanTexts, factor_bytes
from xclip_deploy.runtime.resident.shape import ScanShape
from xclip_deploy.runtime.scorer_weights import ScorerWeights

Float64Array = npt.NDArray[np.float64]


def factors(device: Device, open_scan: Any, case: Any, texts: TextFeatures) -> dict[str, Any]:
    """The factors that the query kernel writes, by name: [T, D, columns]."""
    with open_scan(case) as on:
        on.scan.all(texts, on.arrays, None)
        found = {}
        sizes = factor_bytes(case.shape, len(texts))
        for name, address in on.scan._factors.hold(sizes).items():
            if sizes[name]:
                raw = device.read(address, sizes[name], "a test")
                found[name] = raw.view(np.float16).reshape(len(texts), case.dim, -1)
        return found


def laid_out(texts: TextFeatures, case: Any) -> ScanTexts:
    return ScanTexts.of(texts, case.shape, ScanMatrices.of(case.shape, case.weights))


def whole(factor: npt.NDArray[np.float16], scale: float) -> Float64Array:
    """The words [W, D] that a kernel multiplies by, from both parts of each number."""
    high, rest = np.split(factor.astype(np.float64), 2, axis=-1)
    found: Float64Array = (high + rest).T * scale
    return found


@pytest.mark.parametrize("size", [1e-6, 1.0, 5e3])
def test_two_parts_are_as_exact_as_fp32(
    device: Device, make_case: Any, open_scan: Any, size: float
) -> None:
    case = make_case(words=5, texts=2, grains=PUBLISHED_GRAINS)
    texts = replace(case.queries, word_features=case.queries.word_features * np.float32(size))
    found = factors(device, open_scan, case, texts)
    scales = laid_out(texts, case).scales.astype(float)
    matrix = case.weights.matrices["local_mat_weight"]
    for text in range(2):
        expected = texts.word_features[text] @ matrix / TEMPERATURE
        words = whole(found["frame_words"][text], scales[text, 0])
        near = 6e-7 * np.abs(expected).max()
        np.testing.assert_allclose(words[:5], expected, rtol=0, atol=near)
        expected = texts.word_features[text] / TEMPERATURE
        words = whole(found["video_words"][text], scales[text, 2])
        near = 6e-7 * np.abs(expected).max()
        np.testing.assert_allclose(words[:5], expected, rtol=0, atol=near)
        expected = texts.sentence_features[text] @ case.weights.matrices["global_mat_weight"]
        sentence = found["video_sentences"][text].astype(np.float64).sum(-1) * scales[text, 3]
        near = 6e-7 * np.abs(expected).max()
        np.testing.assert_allclose(sentence, expected, rtol=0, atol=near)
        sentence = found["frame_sentences"][text].astype(np.float64).sum(-1) * scales[text, 1]
        expected = texts.sentence_features[text] / TEMPERATURE
        np.testing.assert_allclose(sentence, expected, rtol=0, atol=6e-7 * np.abs(expected).max())
    padding = whole(found["frame_words"][0], 1.0)[5:]
    assert not padding.any(), "words beyond the model's are zero"
    assert not found["frame_sentences"][..., 2:].any()


def test_one_fp16_part_would_not_do(device: Device, make_case: Any, open_scan: Any) -> None:
    """The second part is what makes a grain exact: without it the error is a thousand times it."""
    case = make_case(words=5)
    found = factors(device, open_scan, case, case.queries)["video_words"][0]
    scale = float(laid_out(case.queries, case).scales[0, 2])
    expected = case.queries.word_features[0] / TEMPERATURE
    high = np.split(found, 2, axis=-1)[0].T[:5].astype(np.float64) * scale
    both = whole(found, scale)[:5]
    assert np.abs(high - expected).max() > 500 * np.abs(both - expected).max()


def test_words_need_both_parts(make_case: Any) -> None:
    """One FP16 number for each is off by more than a scan may be, as soon as features are long.

    Those of a trained model have similarities beyond 1, and a temperature of 0.01 enlarges errors.
    """
    case = make_case(words=16, frames=6, videos=200, texts=8)
    long = case.queries.word_features * np.float32(2)
    rounded = long.astype(np.float16).astype(np.float32)
    video_words = []
    for words in (long, rounded):
        object.__setattr__(case, "queries", replace(case.queries, word_features=words))
        video_words.append(case.expected()["video_word"])
    exact, found = video_words
    span = exact.max() - exact.min()
    assert np.abs(found - exact).max() > 3e-4 * span


def test_only_what_a_model_compares_is_prepared(
    device: Device, make_case: Any, open_scan: Any
) -> None:
    clip = make_case(grains=CLIP_GRAINS)
    assert factor_bytes(clip.shape, 3) == {
        "frame_words": 0,
        "frame_sentences": 0,
        "video_words": 0,
        "video_sentences": 3 * 64 * 16 * 2,
    }
    both = make_case(grains=(Grain.FRAME_SENTENCE, Grain.VIDEO_WORD))
    assert {*factors(device, open_scan, both, both.queries)} == {"frame_sentences", "video_words"}


def test_a_text_of_zeros_stays_zero(device: Device, make_case: Any, open_scan: Any) -> None:
    case = make_case(grains=CLIP_GRAINS)
    texts = replace(case.queries, sentence_features=np.zeros((1, 64), np.float32))
    assert not factors(device, open_scan, case, texts)["video_sentences"].any()
    assert np.isfinite(laid_out(texts, case).scales).all()


def test_numbers_of_any_size_stay_finite(make_case: Any) -> None:
    """The largest and the smallest FP32 numbers have scales in FP32 too."""
    case = make_case(grains=CLIP_GRAINS)
    for size in (1e-38, 1e38):
        texts = replace(case.queries, sentence_features=np.full((1, 64), size, np.float32))
        found = laid_out(texts, case)
        for array in (found.ups, found.scales):
            assert np.isfinite(array).all()
            assert (array > 0).all()


def test_texts_of_another_size(make_case: Any) -> None:
    """Fewer words are padded. More would be read beyond their text."""
    case = make_case(words=5, texts=2)
    words = case.queries.word_features
    found = laid_out(replace(case.queries, word_features=words[:, :3]), case).word_features
    np.testing.assert_array_equal(found[:, :3], words[:, :3])
    assert not found[:, 3:].any()
    more = replace(case.queries, word_features=np.concatenate([words, words], axis=1))
    expected = r"words \[2, 10, 64\] and sentences \[2, 64\]; expected \[2, 5, 64\] and \[2, 64\]"
    with pytest.raises(InvalidArgumentError, match=expected):
        laid_out(more, case)


@pytest.mark.parametrize("size", [1e-5, 1.0, 1e6])
def test_matrices_are_padded_with_zeros(bundle: Bundle, size: float) -> None:
    """Their numbers may be of any size; FP16 would hold none beyond 65,504."""
    shape, weights = ScanShape.of(bundle.manifest.model), bundle.scorer_weights()
    matrix = weights.matrices["frame_mat_weight"] * np.float32(size)
    weights = ScorerWeights(weights.score_scale, {**weights.matrices, "frame_mat_weight": matrix})
    found = ScanMatrices.of(shape, weights)
    frames, words = shape.padded_frames, shape.padded_words
    assert found.matrices.shape == (6 * frames * frames + 6 * words * words,)
    second = found.matrices[2 * frames * frames : 4 * frames * frames].astype(np.float64)
    both = second.reshape(2, frames, frames).sum(0) * float(found.matrix_scales[1])
    near = 3e-7 * np.abs(matrix).max()
    np.testing.assert_allclose(both[: len(matrix), : len(matrix)], matrix, rtol=0, atol=near)
    both[: len(matrix), : len(matrix)] = 0
    assert not both.any()


def test_a_matrix_that_a_model_lacks_is_the_identity(make_case: Any) -> None:
    case = make_case(grains=CLIP_GRAINS)
    found = ScanMatrices.of(case.shape, ScorerWeights(0.0, {}))
    np.testing.assert_array_equal(found.query_matrices, np.stack([np.eye(64)] * 2))
    assert found.growth == (1.0, 1.0)
    assert not found.matrices.any()
