"""The scorer against its formulas, written out in loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from xclip_deploy.runtime.grains import Grain
from xclip_deploy.training.model import XClip

Array = npt.NDArray[np.float64]


def attention(x: Array, matrix: Array, valid: int) -> float:
    """A(x; M) of one vector, of which the first ``valid`` entries count."""
    weights = np.zeros_like(x)
    weights[:valid] = np.exp((x[:valid] - x[:valid].max()) / 0.01)
    weights /= weights.sum()
    return float(((weights @ matrix) * x)[:valid].sum())


def expected_grains(
    model: XClip, features: dict[str, Array], num_words: list[int], num_frames: list[int]
) -> dict[str, Array]:
    """The four comparisons of every pair, one pair at a time."""
    weights = {name: p.detach().numpy() for name, p in model.scorer.named_parameters()}
    texts, videos = len(num_words), len(num_frames)
    grains = {grain.value: np.zeros((texts, videos)) for grain in Grain}
    for t in range(texts):
        for v in range(videos):
            sentence, words = features["sentence"][t], features["word"][t]
            video, frames = features["video"][v], features["frame"][v]
            n_words, n_frames = num_words[t], num_frames[v]
            grains["video_sentence"][t, v] = sentence @ weights["global_mat_weight"] @ video
            grains["video_word"][t, v] = attention(
                words @ video, weights["word_logit_weight"], n_words
            )
            grains["frame_sentence"][t, v] = attention(
                frames @ sentence, weights["frame_logit_weight"], n_frames
            )
            fine = words @ weights["local_mat_weight"] @ frames.T  # [W, F]
            by_frame = np.array(
                [attention(column, weights["word_mat_weight"], n_words) for column in fine.T]
            )
            by_word = np.array(
                [attention(row, weights["frame_mat_weight"], n_frames) for row in fine]
            )
            grains["frame_word"][t, v] = (
                attention(by_frame, weights["frame_mat_weight2"], n_frames)
                + attention(by_word, weights["word_mat_weight2"], n_words)
            ) / 2
    return grains


def unit(*shape: int) -> torch.Tensor:
    x = torch.randn(*shape, dtype=torch.float64)
    lengths: torch.Tensor = x.norm(dim=-1, keepdim=True)
    return x / lengths


@pytest.mark.parametrize("mask_padding", [False, True])
def test_grains_are_the_formulas(make_model: Any, mask_padding: bool) -> None:
    model = make_model(mask_padding=mask_padding).double()
    words, frames, dim = 10, 5, 64
    features = {
        "sentence": unit(4, dim),
        "word": unit(4, words, dim),
        "video": unit(3, dim),
        "frame": unit(3, frames, dim),
    }
    num_words, num_frames = [10, 5, 3, 2], [5, 3, 1]
    with torch.inference_mode():
        scores = model.scorer(*features.values(), torch.tensor(num_words), torch.tensor(num_frames))
    if not mask_padding:  # the published model lets padding count
        num_words, num_frames = [words] * 4, [frames] * 3
    expected = expected_grains(
        model, {name: f.numpy() for name, f in features.items()}, num_words, num_frames
    )
    for name, grain in scores.grains.items():
        np.testing.assert_allclose(grain, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
    mean = np.mean(list(expected.values()), axis=0)
    scale = float(model.scorer.logit_scale.detach().exp())
    np.testing.assert_allclose(scores.logits, scale * mean, rtol=1e-9)


def test_masked_padding_has_no_influence(make_model: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    model = make_model(mask_padding=True)
    token_ids, frames, num_frames = inputs
    num_words = token_ids.argmax(dim=-1) + 1
    with torch.inference_mode():
        text, video = model.text_encoder(token_ids), model.video_encoder(frames, num_frames)
        expected = model.scorer(*text, *video, num_words, num_frames).logits
        word, frame = text.word_features.clone(), video.frame_features.clone()
        for row, count in zip(word, num_words, strict=True):
            row[count:] = 7.0
        for row, count in zip(frame, num_frames, strict=True):
            row[count:] = -7.0
        found = model.scorer(
            text.sentence_features, word, video.video_features, frame, num_words, num_frames
        ).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_missing_features_are_named(make_model: Any) -> None:
    scorer = make_model(mask_padding=True).double().scorer
    with pytest.raises(ValueError, match="need sentence_features"):
        scorer()
    with pytest.raises(ValueError, match="needs num_words"):
        scorer(unit(1, 64), unit(1, 10, 64), unit(1, 64), unit(1, 5, 64))
