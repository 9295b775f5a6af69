"""The whole model against the numbers of the authors' code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from xclip_deploy import load_checkpoint
from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.grains import Grain
from xclip_deploy.runtime.model_config import Family, ModelConfig, TemporalHead
from xclip_deploy.training.model import XClip
from xclip_deploy.training.video_encoder import mark_valid

Golden = dict[str, npt.NDArray[Any]]
MATRICES = (
    "global_mat_weight",
    "local_mat_weight",
    "word_logit_weight",
    "frame_logit_weight",
    "word_mat_weight",
    "frame_mat_weight",
    "word_mat_weight2",
    "frame_mat_weight2",
)


@pytest.fixture(scope="module")
def model(checkpoint_path: Path) -> XClip:
    return load_checkpoint(checkpoint_path).build()


def logits_of(model: XClip, golden: Golden) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        scores = model(
            torch.from_numpy(golden["input_ids"]),
            torch.from_numpy(golden["frames_uint8"]),
            torch.from_numpy(golden["num_frames"]),
        )
    return np.asarray(scores.logits)


def test_logits_are_the_authors(model: XClip, golden: Golden) -> None:
    np.testing.assert_allclose(logits_of(model, golden), golden["logits"], rtol=0, atol=1e-4)


def test_embeddings_before_normalisation_are_the_authors(model: XClip, golden: Golden) -> None:
    frames = torch.from_numpy(golden["frames_uint8"])
    token_ids = torch.from_numpy(golden["input_ids"])
    with torch.inference_mode():
        is_valid = mark_valid(frames.shape[1], torch.from_numpy(golden["num_frames"]))
        frame_raw = model.video_encoder.encode_frames(frames, is_valid)
        words_raw = model.text_encoder.encode_tokens(token_ids)
    np.testing.assert_allclose(frame_raw, golden["frames_raw"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(words_raw, golden["words_raw"], rtol=0, atol=2e-5)
    end = token_ids.argmax(dim=-1)
    sentence_raw = words_raw[torch.arange(len(end)), end]
    np.testing.assert_allclose(sentence_raw, golden["sentence_raw"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_golden_logits_notice_every_matrix(model: XClip, golden: Golden, matrix: str) -> None:
    """Else a matrix used in the wrong place would go unseen."""
    parameter = getattr(model.scorer, matrix)
    kept = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.copy_(kept.T)
        assert np.abs(logits_of(model, golden) - golden["logits"]).max() > 1e-3
    finally:
        with torch.no_grad():
            parameter.copy_(kept)


@pytest.mark.parametrize(
    "pair", [("word_mat_weight", "word_mat_weight2"), ("frame_mat_weight", "frame_mat_weight2")]
)
def test_the_golden_logits_tell_the_two_aggregations_apart(
    model: XClip, golden: Golden, pair: tuple[str, str]
) -> None:
    first, second = (getattr(model.scorer, name) for name in pair)
    first.data, second.data = second.data, first.data
    try:
        assert np.abs(logits_of(model, golden) - golden["logits"]).max() > 1e-3
    finally:
        first.data, second.data = second.data, first.data


def test_pixels_of_padded_frames_do_not_matter(model: XClip, golden: Golden) -> None:
    altered = dict(golden)
    frames = golden["frames_uint8"].copy()
    for video, count in zip(frames, golden["num_frames"], strict=True):
        video[count:] = 255 - video[count:]
    altered["frames_uint8"] = frames
    np.testing.assert_array_equal(logits_of(model, altered), logits_of(model, golden))


@pytest.mark.parametrize("head", list(TemporalHead))
def test_every_head_scores_in_every_dtype(
    make_model: Any, inputs: tuple[torch.Tensor, ...], head: TemporalHead
) -> None:
    model = make_model(temporal_head=head)
    with torch.inference_mode():
        single = model(*inputs).logits
        double = model.double()(*inputs).logits
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    assert single.shape == (4, 3)
    torch.testing.assert_close(single, double.float(), rtol=1e-4, atol=1e-4)


def test_clip4clip_is_the_video_sentence_term_alone(
    make_model: Any, inputs: tuple[torch.Tensor, ...]
) -> None:
    token_ids, frames, num_frames = inputs
    model = make_model(grains=(Grain.VIDEO_SENTENCE,), sentence_projection=False)
    with torch.inference_mode():
        scores = model(token_ids, frames, num_frames)
        sentence = model.text_encoder(token_ids).sentence_features
        video = model.video_encoder(frames, num_frames).video_features
        expected = model.scorer.logit_scale.exp() * sentence @ video.T
    assert list(scores.grains) == ["video_sentence"]
    torch.testing.assert_close(scores.logits, expected)
    assert {name for name, _ in model.scorer.named_parameters()} == {"logit_scale"}


def test_families() -> None:
    from copy import deepcopy

    base: dict[str, Any] = {
        "embed_dim": 64,
        "vision": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "heads": 1},
        "text": {"width": 64, "layers": 1, "heads": 1},
    }
    plain: dict[str, Any] = {"grains": ("video_sentence",), "sentence_projection": False}
    recurrent: dict[str, Any] = {**plain, "temporal_head": "seqLSTM"}
    assert ModelConfig(**deepcopy(base)).family is Family.XCLIP
    assert ModelConfig(**base, **plain).family is Family.CLIP
    assert ModelConfig(**base, **recurrent).family is Family.CLIP4CLIP


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_words": 78}, "77 token positions"),
        ({"max_words": 2}, "no room for a word"),
        ({"grains": ()}, "at least one of video_sentence, "),
        ({"grains": ("video_word", "video_word")}, "each once"),
        ({"temporal_head": "seqTransf"}, "temporal_layers=0"),
        ({"temporal_layers": 2}, "do not fit temporal_head=meanP"),
        (
            {
                "temporal_head": "seqTransf",
                "temporal_layers": 1,
                "temporal_heads": 1,
                "temporal_positions": 4,
            },
            "exceeds the 4 frame positions",
        ),
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "embed_dim": 64,
        "vision": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "heads": 1},
        "text": {"width": 64, "layers": 1, "heads": 1},
        "max_frames": 5,
    }
    with pytest.raises(InvalidArgumentError, match=message):
        ModelConfig(**(fields | change))
