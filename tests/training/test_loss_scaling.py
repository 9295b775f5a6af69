"""The loss scale: where it goes, when a step is skipped, and that it survives saving."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xclip_deploy.errors import TrainingError
from xclip_deploy.training.loss_scaling import INITIAL_SCALE, MAX_SCALE, MIN_SCALE, LossScaler
from xclip_deploy.training.optimizer import Recipe, RecipeAdam

INTERVAL = 3


def weight_and_optimizer() -> tuple[nn.Parameter, RecipeAdam]:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    recipe = Recipe(lr=0.1, coef_lr=1.0, total_steps=1000, warmup=0.0)
    return weight, RecipeAdam([{"params": [weight]}], recipe)


def step(scaler: LossScaler, weight: nn.Parameter, optimizer: RecipeAdam, gradient: float) -> bool:
    optimizer.zero_grad()
    scaler.scaled((weight * gradient).sum()).backward()  # type: ignore[no-untyped-call]
    scaler.unscale(optimizer)
    return scaler.step(optimizer)


def at(scale: float) -> LossScaler:
    scaler = LossScaler("cpu", growth_interval=INTERVAL)
    scaler.load_state_dict({**scaler.state_dict(), "scale": scale})
    return scaler


def test_a_step_is_the_unscaled_one() -> None:
    weight, optimizer = weight_and_optimizer()
    assert step(LossScaler("cpu"), weight, optimizer, 0.3)
    plain, plain_optimizer = weight_and_optimizer()
    plain.grad = torch.full_like(plain, 0.3)
    plain_optimizer.step()
    torch.testing.assert_close(weight, plain)
    torch.testing.assert_close(optimizer.state[weight], plain_optimizer.state[plain])


@pytest.mark.parametrize("gradient", [math.inf, -math.inf, math.nan])
def test_overflow_halves_the_scale_and_moves_nothing(gradient: float) -> None:
    weight, optimizer = weight_and_optimizer()
    scaler = LossScaler("cpu")
    assert step(scaler, weight, optimizer, 0.3)
    before = weight.detach().clone()
    moments = {name: tensor.clone() for name, tensor in optimizer.state[weight].items()}
    assert not step(scaler, weight, optimizer, gradient)
    assert scaler.scale == INITIAL_SCALE / 2
    assert torch.equal(weight, before)
    assert all(torch.equal(optimizer.state[weight][name], moments[name]) for name in moments)
    assert optimizer.param_groups[0]["step"] == 2  # the schedule goes on


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), max_size=25))
def test_the_scale_follows_the_rule(good: list[bool]) -> None:
    """Doubled after three good steps in a row, halved at each bad one, within the bounds."""
    weight, optimizer = weight_and_optimizer()
    scaler = at(4 * MIN_SCALE)
    expected, in_a_row, follows_good = 4 * MIN_SCALE, 0, False
    for is_good in good:
        assert scaler.scale == expected
        if not is_good and expected == MIN_SCALE and not follows_good:
            with pytest.raises(TrainingError):
                step(scaler, weight, optimizer, math.inf)
            return
        assert step(scaler, weight, optimizer, 0.1 if is_good else math.inf) is is_good
        in_a_row = in_a_row + 1 if is_good else 0
        if in_a_row == INTERVAL:
            expected, in_a_row = expected * 2, 0
        if not is_good:
            expected = max(MIN_SCALE, expected / 2)
        follows_good = is_good
    assert scaler.scale == expected


def test_the_scale_is_bounded_above() -> None:
    weight, optimizer = weight_and_optimizer()
    scaler = at(MAX_SCALE)
    for _ in range(2 * INTERVAL):
        assert step(scaler, weight, optimizer, 0.1)
        assert scaler.scale == MAX_SCALE


def test_overflow_at_every_scale_stops_the_run() -> None:
    weight, optimizer = weight_and_optimizer()
    scaler = LossScaler("cpu")
    for _ in range(int(math.log2(INITIAL_SCALE / MIN_SCALE))):
        assert not step(scaler, weight, optimizer, math.inf)
    assert scaler.scale == MIN_SCALE
    with pytest.raises(TrainingError, match=r"scale of 1, .* optimization\.precision=bf16"):
        step(scaler, weight, optimizer, math.inf)


def test_one_bad_batch_at_the_smallest_scale_is_skipped() -> None:
    weight, optimizer = weight_and_optimizer()
    scaler = at(MIN_SCALE)
    for _ in range(3):
        assert step(scaler, weight, optimizer, 0.1)
        assert not step(scaler, weight, optimizer, math.inf)
        assert scaler.scale == MIN_SCALE


def test_state_survives_saving(tmp_path: Any) -> None:
    """The good steps counted so far too: both double the scale at the same step."""
    weight, optimizer = weight_and_optimizer()
    first = LossScaler("cpu", growth_interval=INTERVAL)
    step(first, weight, optimizer, math.inf)
    for _ in range(INTERVAL - 1):
        step(first, weight, optimizer, 0.1)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = LossScaler("cpu")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for scaler in (first, second):
        assert scaler.scale == INITIAL_SCALE / 2
        step(scaler, weight, optimizer, 0.1)
        assert scaler.scale == INITIAL_SCALE
    assert first.state_dict() == second.state_dict()
