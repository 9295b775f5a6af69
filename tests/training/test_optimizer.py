"""The recipe against six recorded steps of the authors' code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from xclip_deploy import load_checkpoint
from xclip_deploy.training.checkpoints import to_authors_state_dict
from xclip_deploy.training.model import XClip
from xclip_deploy.training.optimizer import (
    Recipe,
    RecipeAdam,
    clamp_logit_scale,
    clip_gradients,
    is_clips,
    make_optimizer,
    warmup_cosine,
)
from xclip_deploy.training.step import contrastive_loss

STEP = Path(__file__).resolve().parents[1] / "golden" / "train_step"


@pytest.fixture(scope="module")
def recorded() -> dict[str, npt.NDArray[Any]]:
    with np.load(STEP / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    config = json.loads((STEP / "config.json").read_text())
    names = ("lr", "coef_lr", "total_steps", "warmup", "weight_decay", "eps", "max_grad_norm")
    return Recipe(**{name: config[name] for name in names}, betas=tuple(config["betas"]))


def test_six_steps_are_the_authors(recorded: dict[str, npt.NDArray[Any]], recipe: Recipe) -> None:
    model = load_checkpoint(STEP / "initial_state_dict.bin").build().train()
    optimizer = make_optimizer(model, recipe)
    frames = torch.from_numpy(recorded["frames_uint8"])
    token_ids = torch.from_numpy(recorded["input_ids"])
    num_frames = torch.from_numpy(recorded["num_frames"])
    losses, norms = [], []
    for _ in range(6):
        optimizer.zero_grad()
        loss = contrastive_loss(model(token_ids, frames, num_frames).logits)
        loss.backward()  # type: ignore[no-untyped-call]
        norms.append(float(clip_gradients(model, recipe)))
        optimizer.step()
        clamp_logit_scale(model)
        losses.append(loss.item())
    np.testing.assert_allclose(losses, recorded["losses"], rtol=1e-4)
    np.testing.assert_allclose(norms, recorded["grad_norms"], rtol=1e-4)
    after = to_authors_state_dict(model.config, model.state_dict())
    names = [name.removeprefix("after/") for name in recorded if name.startswith("after/")]
    assert len(names) >= 10
    for name in names:
        np.testing.assert_allclose(
            after[name], recorded[f"after/{name}"], rtol=0, atol=1e-5, err_msg=name
        )


def test_the_schedule_at_known_points() -> None:
    assert warmup_cosine(0.0, 0.1) == 0.0
    assert warmup_cosine(0.05, 0.1) == pytest.approx(0.5)
    # The cosine spans the whole run: at the end of the warm-up it has begun to fall.
    assert warmup_cosine(0.1, 0.1) == pytest.approx(0.5 * (1 + math.cos(0.1 * math.pi)))
    assert warmup_cosine(0.5, 0.1) == pytest.approx(0.5)
    assert warmup_cosine(1.0, 0.1) == pytest.approx(0.0)
    assert warmup_cosine(0.0, 0.0) == 1.0


def test_the_first_step_moves_nothing(make_model: Any) -> None:
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, Recipe(lr=1.0, coef_lr=1.0, total_steps=10))
    for moved in (False, True):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert changed == (set(before) if moved else set())


def test_groups(make_model: Any) -> None:
    from xclip_deploy.runtime.model_config import TemporalHead

    model = make_model(temporal_head=TemporalHead.TRANSFORMER)
    optimizer = make_optimizer(model, Recipe(lr=2.0, coef_lr=0.25, total_steps=10))
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {
        "video_encoder.visual.conv1.weight": (0.5, 0.2),
        "video_encoder.visual.transformer.resblocks.0.attn.in_proj_bias": (0.5, 0.0),
        "text_encoder.ln_final.weight": (0.5, 0.2),  # the recipe decays layer norms
        "text_encoder.ln_final.bias": (0.5, 0.0),
        "scorer.logit_scale": (0.5, 0.2),
        "scorer.global_mat_weight": (2.0, 0.2),
        "video_encoder.temporal.transformer.resblocks.1.mlp.c_fc.weight": (2.0, 0.2),
        "video_encoder.temporal.transformer.resblocks.1.mlp.c_fc.bias": (2.0, 0.0),
    }
    parameters = dict(model.named_parameters())
    assert {name: found[id(parameters[name])] for name in expected} == expected
    assert len(found) == len(parameters)
    assert not is_clips("video_encoder.temporal.frame_position_embeddings.weight")


@pytest.mark.parametrize("coef_lr", [0.25, 1.0, 4.0])
def test_the_rates_that_are_reported(make_model: Any, coef_lr: float) -> None:
    model = make_model()
    optimizer = make_optimizer(model, Recipe(lr=2.0, coef_lr=coef_lr, total_steps=10, warmup=0.5))
    for step in range(4):
        others, clips = optimizer.rates()
        assert others == pytest.approx(2.0 * step / 5)
        assert clips == others * coef_lr
        found = {optimizer.rate(group) for group in optimizer.param_groups}
        assert found == {others, clips}
        optimizer.advance_schedule()


def test_frozen_parameters_stay_out(make_model: Any) -> None:
    model = make_model()
    model.text_encoder.requires_grad_(False)
    optimizer = make_optimizer(model, Recipe(lr=1.0, coef_lr=1.0, total_steps=10))
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == sum(p.requires_grad for p in model.parameters()) < len(list(model.parameters()))


def test_state_survives_saving(make_model: Any, tmp_path: Path) -> None:
    """Also through a file that is opened for its weights alone."""
    recipe = Recipe(lr=0.1, coef_lr=1.0, total_steps=10)

    def steps(model: XClip, optimizer: RecipeAdam, count: int) -> None:
        for _ in range(count):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.01) * parameter
            optimizer.step()

    first = make_model()
    optimizer = make_optimizer(first, recipe)
    steps(first, optimizer, 3)
    torch.save((first.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    steps(first, optimizer, 3)
    second = make_model()
    resumed = make_optimizer(second, recipe)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(weights)
    resumed.load_state_dict(state)
    steps(second, resumed, 3)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_logit_scale_is_bounded(make_model: Any) -> None:
    model = make_model()
    with torch.no_grad():
        model.scorer.logit_scale.fill_(5.0)
    clamp_logit_scale(model)
    assert float(model.scorer.logit_scale.detach().exp()) == pytest.approx(100.0)
