"""Half precision where it is allowed, and FP32 where it must stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from xclip_deploy.runtime.model_config import TemporalHead
from xclip_deploy.training.precision import MASKED, LayerNorm, halve, l2_normalize


@pytest.mark.parametrize("head", list(TemporalHead))
def test_halved_weights_and_fp32_islands(make_model: Any, head: TemporalHead) -> None:
    model = halve(make_model(temporal_head=head))
    for name, parameter in model.named_parameters():
        stays = (
            ".ln_" in name
            or name.startswith("scorer.")
            or name in ("video_encoder.visual.proj", "text_encoder.text_projection")
        )
        assert parameter.dtype == (torch.float32 if stays else torch.float16), name


@pytest.mark.parametrize("head", list(TemporalHead))
def test_a_halved_model_gives_fp32_features_close_to_the_whole(
    make_model: Any, inputs: tuple[torch.Tensor, ...], head: TemporalHead
) -> None:
    token_ids, frames, num_frames = inputs
    model = make_model(temporal_head=head)
    with torch.inference_mode():
        expected = (*model.text_encoder(token_ids), *model.video_encoder(frames, num_frames))
        halve(model)
        found = (*model.text_encoder(token_ids), *model.video_encoder(frames, num_frames))
    for half, whole in zip(found, expected, strict=True):
        assert half.dtype == torch.float32
        assert not torch.equal(half, whole)
        assert nn.functional.cosine_similarity(half, whole, dim=-1).min() > 0.99999


def test_the_mask_fits_fp16_and_silences() -> None:
    scores = torch.tensor([[8.0, -8.0, 300.0 + MASKED]], dtype=torch.float16)
    assert scores.isfinite().all()
    assert scores.softmax(dim=-1)[0, 2] == 0


def test_layer_norm_does_not_overflow_in_half_precision() -> None:
    norm = LayerNorm(4)
    x = torch.tensor([[300.0, -300.0, 600.0, 1.0]], dtype=torch.float16)  # squares overflow FP16
    found = norm(x)
    assert found.dtype == torch.float16
    torch.testing.assert_close(
        found.float(), nn.functional.layer_norm(x.float(), (4,)), rtol=1e-3, atol=1e-3
    )


def test_l2_normalize_of_large_tiny_and_zero_vectors() -> None:
    large = l2_normalize(torch.full((1, 4), 60000.0, dtype=torch.float16))
    torch.testing.assert_close(large, torch.full((1, 4), 0.5))
    tiny = l2_normalize(torch.full((1, 4), 1e-5, dtype=torch.float16))
    torch.testing.assert_close(tiny, torch.full((1, 4), 0.5))
    assert l2_normalize(torch.zeros(1, 4)).eq(0).all()
