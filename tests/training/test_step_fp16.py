"""A step in FP16: close to FP32, and its loss scale skips what overflows and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_steps import KINDS, fp16_steps, gradients_of, random_pairs, scaler_at

from xclip_deploy.errors import TrainingError
from xclip_deploy.runtime.model_config import PatchEmbedding
from xclip_deploy.training.config import TrainConfig
from xclip_deploy.training.loss_scaling import INITIAL_SCALE, LossScaler
from xclip_deploy.training.model import XClip
from xclip_deploy.training.optimizer import Recipe, RecipeAdam, make_optimizer
from xclip_deploy.training.run_folder import Position, RunFolder
from xclip_deploy.training.step import (
    Pairs,
    compute_gradients,
    set_gradient_checkpointing,
    train_step,
)


def gradient_errors(model: XClip, pairs: Pairs, scale: float | None, **options: Any) -> list[float]:
    """Of each parameter in FP16: the norm of the difference to FP32, relative to FP32's."""
    model.zero_grad()
    whole = compute_gradients(model, pairs)
    expected = gradients_of(model)
    model.zero_grad()
    scaler = None if scale is None else scaler_at(scale)
    half = compute_gradients(model, pairs, precision="fp16", scaler=scaler, **options)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=0.01)
    found = gradients_of(model)
    assert found.keys() == expected.keys()
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    errors = [
        float((found[name] / (scale or 1.0) - gradient).norm() / gradient.norm())
        for name, gradient in expected.items()
    ]
    assert max(errors) > 1e-4  # it really is FP16
    return errors


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("kind", [*KINDS, "3d patches"])
def test_fp16_gradients_are_close(make_model: Any, kind: str, chunk_size: int | None) -> None:
    """Within 0.5 % of FP32's norm, parameter by parameter.

    Within 10 % behind the fine grains: their temperature of 0.01 enlarges the rounding of the
    features a hundredfold.
    """
    three_d = {"patch_embedding": PatchEmbedding.CONV_3D}
    model = make_model(**KINDS.get(kind, three_d)).train()
    errors = gradient_errors(model, random_pairs(8), 256.0, chunk_size=chunk_size)
    assert max(errors) < (0.005 if kind == "clip4clip" else 0.1)


def test_fp16_with_checkpointing(make_model: Any) -> None:
    model = make_model(**KINDS["clip4clip"]).train()
    set_gradient_checkpointing(model, True)
    assert max(gradient_errors(model, random_pairs(4), 256.0)) < 0.005


def test_the_scale_saves_gradients_that_fp16_loses(make_model: Any) -> None:
    """With a small logit scale the gradients lie below what FP16 can hold."""
    model = make_model(**KINDS["clip4clip"]).train()
    with torch.no_grad():
        model.scorer.logit_scale.fill_(-12.0)
    lost = gradient_errors(model, random_pairs(8), None)
    assert sum(error > 0.5 for error in lost) > len(lost) / 2
    assert max(gradient_errors(model, random_pairs(8), 2.0**20)) < 0.005


def test_fp16_skips_what_overflows_and_nothing_else(make_model: Any) -> None:
    model = make_model(**KINDS["x-clip"]).train()
    optimizer = make_optimizer(model, Recipe(lr=1e-4, coef_lr=1.0, total_steps=40))
    fp16_steps(model, optimizer, scaler_at(256.0), 2)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = [
        {name: tensor.clone() for name, tensor in optimizer.state[p].items()}
        for p in model.parameters()
    ]
    scaler = LossScaler("cpu")
    (skipped,) = fp16_steps(model, optimizer, scaler, 1)
    assert (skipped.skipped, skipped.loss_scale, skipped.grad_norm) == (True, INITIAL_SCALE, None)
    assert skipped.loss > 0
    assert scaler.scale == INITIAL_SCALE / 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    for parameter, before in zip(model.parameters(), moments, strict=True):
        for name, tensor in optimizer.state[parameter].items():
            assert torch.equal(tensor, before[name])
    assert {group["step"] for group in optimizer.param_groups} == {3}
    results = fp16_steps(model, optimizer, scaler, 12)
    assert not results[-1].skipped
    # The norm that is reported, and clipped, is the unscaled one: powers of two change nothing
    # but what underflows, so any other scale must give it. FP32's would not do as a reference:
    # behind the fine grains it is up to a tenth off, by how much depends on the CPU.
    assert scaler.scale > 16.0
    model.zero_grad()
    compute_gradients(model, random_pairs(8), precision="fp16", scaler=scaler_at(16.0))
    norm = torch.nn.utils.get_total_norm(gradients_of(model).values()) / 16.0
    (last,) = fp16_steps(model, optimizer, scaler, 1)
    assert last.grad_norm == pytest.approx(float(norm), rel=1e-3)


def test_fp16_lowers_the_loss(make_model: Any) -> None:
    model = make_model().train()
    optimizer = make_optimizer(model, Recipe(lr=3e-3, coef_lr=1.0, total_steps=40))
    losses = [result.loss for result in fp16_steps(model, optimizer, LossScaler("cpu"), 40)]
    assert losses[-1] < 0.2 * losses[0]


def test_fp16_that_never_fits_stops(make_model: Any) -> None:
    """Gradients beyond FP16's largest number, with a finite loss."""
    model = make_model(**KINDS["clip4clip"]).train()
    optimizer = make_optimizer(model, Recipe(lr=1.0, coef_lr=1.0, total_steps=1, warmup=0.0))
    with torch.no_grad():
        model.scorer.logit_scale.fill_(25.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(TrainingError, match="overflow FP16 even with a loss scale of 1"):
        fp16_steps(model, optimizer, LossScaler("cpu"), 30)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_loss_that_is_not_finite_is_no_overflow(make_model: Any) -> None:
    model = make_model().train()
    optimizer = make_optimizer(model, Recipe(lr=1.0, coef_lr=1.0, total_steps=1, warmup=0.0))
    with torch.no_grad():
        model.text_encoder.text_projection[0, 0] = float("nan")
    scaler = LossScaler("cpu")
    assert train_step(model, optimizer, random_pairs(3), precision="fp16", scaler=scaler) is None
    assert scaler.scale == INITIAL_SCALE


def test_a_resumed_fp16_run_continues_exactly(make_model: Any, tmp_path: Path) -> None:
    """Saved in the middle of finding the scale."""
    recipe = Recipe(lr=1e-4, coef_lr=1.0, total_steps=40)

    def start() -> tuple[XClip, RecipeAdam, LossScaler]:
        model = make_model(**KINDS["x-clip"]).train()
        return model, make_optimizer(model, recipe), LossScaler("cpu")

    straight = start()
    expected = fp16_steps(*straight, 14)
    assert {result.skipped for result in expected} == {True, False}
    run = RunFolder(tmp_path / "run", TrainConfig(), resume=False)
    for first in (3, 11):
        model, optimizer, scaler = start()
        fp16_steps(model, optimizer, scaler, first)
        run.save_last(model, optimizer, Position(first, -1.0), scaler)
        resumed = start()
        assert run.load_last(*resumed) == Position(first, -1.0)
        rest = fp16_steps(*resumed, 14 - first)
        assert [(r.loss, r.skipped, r.loss_scale, r.grad_norm) for r in rest] == [
            (r.loss, r.skipped, r.loss_scale, r.grad_norm) for r in expected[first:]
        ]
        assert resumed[2].state_dict() == straight[2].state_dict()
        for a, b in zip(resumed[0].parameters(), straight[0].parameters(), strict=True):
            assert torch.equal(a, b)
