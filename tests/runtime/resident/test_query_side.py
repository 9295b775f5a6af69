"""Query factors are as exact as FP32, whatever their size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from xclip_deploy.runtime.grains import CLIP_GRAINS, TEMPERATURE, Grain
from xclip_deploy.runtime.resident.query_side import query_factors


def factor(array: npt.NDArray[np.float16], scale: float, axis: int) -> npt.NDArray[np.float64]:
    """The number that a kernel multiplies by, from its two parts."""
    total: npt.NDArray[np.float64] = array.astype(np.float64).sum(axis) * scale
    return total


@pytest.mark.parametrize("size", [1e-6, 1.0, 3e5])
def test_two_parts_are_as_exact_as_fp32(make_case: Any, size: float) -> None:
    case = make_case(words=5, texts=2)
    texts = replace(case.queries, word_features=case.queries.word_features * np.float32(size))
    found = query_factors(texts, case.shape, case.weights)
    matrix = case.weights.matrices["local_mat_weight"]
    for text in range(2):
        expected = texts.word_features[text] @ matrix / TEMPERATURE
        words = factor(found.frame_words[text], float(found.scales[text, 0]), 0)[:, :5].T
        np.testing.assert_allclose(words, expected, rtol=0, atol=6e-7 * np.abs(expected).max())
        expected = texts.word_features[text] / TEMPERATURE
        words = factor(found.video_words[text], float(found.scales[text, 2]), 0)[:, :5].T
        np.testing.assert_allclose(words, expected, rtol=0, atol=6e-7 * np.abs(expected).max())
        expected = texts.sentence_features[text] @ case.weights.matrices["global_mat_weight"]
        sentence = factor(found.video_sentences[text], float(found.scales[text, 3]), 1)
        np.testing.assert_allclose(sentence, expected, rtol=0, atol=6e-7 * np.abs(expected).max())
    assert not found.frame_words[..., 5:].any(), "words beyond the model's are zero"
    assert not found.frame_sentences[..., 2:].any()


def test_one_fp16_part_would_not_do(make_case: Any) -> None:
    """The second part is what makes a grain exact: without it the error is a thousand times it."""
    case = make_case(words=5)
    found = query_factors(case.queries, case.shape, case.weights)
    expected = case.queries.word_features[0] / TEMPERATURE
    scale = float(found.scales[0, 2])
    high = found.video_words[0, 0, :, :5].T.astype(np.float64) * scale
    both = factor(found.video_words[0], scale, 0)[:, :5].T
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


def test_only_what_a_model_compares_is_prepared(make_case: Any) -> None:
    case = make_case(grains=CLIP_GRAINS)
    found = query_factors(case.queries, case.shape, case.weights)
    sizes = {name: array.size for name, array in found.arrays().items()}
    assert sizes == {
        "frame_words": 0,
        "frame_sentences": 0,
        "video_words": 0,
        "video_sentences": 64 * 16,
        "num_words": 1,
        "scales": 4,
    }
    both = make_case(grains=(Grain.FRAME_SENTENCE, Grain.VIDEO_WORD))
    found = query_factors(both.queries, both.shape, both.weights)
    assert found.frame_sentences.size
    assert found.video_words.size
    assert not found.frame_words.size


def test_a_text_of_zeros_stays_zero(make_case: Any) -> None:
    case = make_case(grains=CLIP_GRAINS)
    texts = replace(case.queries, sentence_features=np.zeros((1, 64), np.float32))
    found = query_factors(texts, case.shape, case.weights)
    assert not found.video_sentences.any()
    assert np.isfinite(found.scales).all()
