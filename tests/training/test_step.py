"""One step: the gradients do not depend on how memory is saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training_steps import KINDS, assert_same, gradients_of, plain_gradients, random_pairs

from xclip_deploy.runtime.model_config import TemporalHead
from xclip_deploy.training.optimizer import Recipe, make_optimizer
from xclip_deploy.training.step import (
    compute_gradients,
    contrastive_loss,
    set_gradient_checkpointing,
    train_step,
)


def test_the_loss_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    exp = logits.exp()
    rows = -(exp[0, 0] / exp[0].sum()).log() - (exp[1, 1] / exp[1].sum()).log()
    columns = -(exp[0, 0] / exp[:, 0].sum()).log() - (exp[1, 1] / exp[:, 1].sum()).log()
    torch.testing.assert_close(contrastive_loss(logits), (rows + columns) / 4)


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_no_gradient(make_model: Any, kind: str, chunk_size: int | None) -> None:
    model = make_model(**KINDS[kind]).double().train()
    pairs = random_pairs(8)
    expected = plain_gradients(model, pairs)
    model.zero_grad()
    loss = compute_gradients(model, pairs, chunk_size=chunk_size)
    torch.testing.assert_close(loss, contrastive_loss(model(*pairs).logits))
    assert_same(gradients_of(model), expected)


def test_checkpointing_changes_no_gradient(make_model: Any) -> None:
    model = make_model(temporal_head=TemporalHead.TRANSFORMER).double().train()
    pairs = random_pairs(4)
    expected = plain_gradients(model, pairs)
    model.zero_grad()
    set_gradient_checkpointing(model, True)
    compute_gradients(model, pairs)
    assert_same(gradients_of(model), expected)


def test_frozen_encoders(make_model: Any) -> None:
    model = make_model().double().train()
    model.text_encoder.requires_grad_(False)
    expected = plain_gradients(model, random_pairs(4))
    model.zero_grad()
    compute_gradients(model, random_pairs(4), chunk_size=3)
    assert_same(gradients_of(model), expected)
    assert not any(name.startswith("text_encoder") for name in expected)


def test_bf16_is_close_and_scores_in_fp32(make_model: Any) -> None:
    model = make_model(temporal_head=TemporalHead.TRANSFORMER).train()
    whole = compute_gradients(model, random_pairs(4))
    half = compute_gradients(model, random_pairs(4), precision="bf16")
    assert half.dtype == torch.float32
    assert half.item() != whole.item()
    assert half.item() == pytest.approx(whole.item(), rel=0.05)


def test_steps_lower_the_loss(make_model: Any) -> None:
    model = make_model().train()
    optimizer = make_optimizer(model, Recipe(lr=3e-3, coef_lr=1.0, total_steps=40))
    results = [train_step(model, optimizer, random_pairs(3)) for _ in range(30)]
    losses = [result.loss for result in results if result is not None]
    assert len(losses) == 30
    assert losses[1] == pytest.approx(losses[0])  # the first step has rate 0
    assert losses[-1] < 0.2 * losses[0]


def test_a_loss_that_is_not_finite_updates_nothing(make_model: Any) -> None:
    model = make_model().train()
    optimizer = make_optimizer(model, Recipe(lr=1.0, coef_lr=1.0, total_steps=1, warmup=0.0))
    with torch.no_grad():
        model.text_encoder.text_projection[0, 0] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert train_step(model, optimizer, random_pairs(3)) is None
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
