"""Pairs, gradients and steps of small models, for the tests of one training step."""

from __future__ import annotations

from typing import Any

import torch

from xclip_deploy.runtime.grains import Grain
from xclip_deploy.runtime.model_config import TemporalHead
from xclip_deploy.training.loss_scaling import LossScaler
from xclip_deploy.training.model import XClip
from xclip_deploy.training.optimizer import RecipeAdam
from xclip_deploy.training.step import Pairs, StepResult, contrastive_loss, train_step

KINDS: dict[str, dict[str, Any]] = {
    "x-clip": {"temporal_head": TemporalHead.TRANSFORMER},
    "x-clip, masked": {"mask_padding": True},
    "clip4clip": {
        "grains": (Grain.VIDEO_SENTENCE,),
        "sentence_projection": False,
        "temporal_head": TemporalHead.LSTM,
    },
}
"""Changes of the small model's configuration, by name."""


def random_pairs(count: int) -> Pairs:
    generator = torch.Generator().manual_seed(4)
    token_ids = torch.zeros(count, 10, dtype=torch.int64)
    for row in range(count):
        length = 3 + row % 8
        token_ids[row, : length - 1] = torch.randint(1, 598, (length - 1,), generator=generator)
        token_ids[row, length - 1] = 599
    frames = torch.randint(0, 256, (count, 5, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return Pairs(token_ids, frames, torch.arange(count) % 5 + 1)


def gradients_of(model: XClip) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def plain_gradients(model: XClip, pairs: Pairs) -> dict[str, torch.Tensor]:
    """By one graph from the pixels to the loss."""
    model.zero_grad()
    contrastive_loss(model(*pairs).logits).backward()  # type: ignore[no-untyped-call]
    return gradients_of(model)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-10, msg=name)


def scaler_at(scale: float) -> LossScaler:
    scaler = LossScaler("cpu")
    scaler.load_state_dict({**scaler.state_dict(), "scale": scale})
    return scaler


def fp16_steps(
    model: XClip, optimizer: RecipeAdam, scaler: LossScaler, count: int, **options: Any
) -> list[StepResult]:
    results = [
        train_step(model, optimizer, random_pairs(8), precision="fp16", scaler=scaler, **options)
        for _ in range(count)
    ]
    assert all(result is not None for result in results)
    return [result for result in results if result is not None]
