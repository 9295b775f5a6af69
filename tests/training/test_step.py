"""One step: the gradients do not depend on how memory is saved or processes share the work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from xclip_deploy.runtime.model_config import Grain, TemporalHead
from xclip_deploy.training.checkpoints import save_checkpoint
from xclip_deploy.training.loss import contrastive_loss
from xclip_deploy.training.model import XClip
from xclip_deploy.training.optimizer import Recipe, make_optimizer
from xclip_deploy.training.step import (
    Pairs,
    compute_gradients,
    set_gradient_checkpointing,
    train_step,
)

KINDS: dict[str, dict[str, Any]] = {
    "x-clip": {"temporal_head": TemporalHead.TRANSFORMER},
    "x-clip, masked": {"mask_padding": True},
    "clip4clip": {
        "grains": (Grain.VIDEO_SENTENCE,),
        "sentence_projection": False,
        "temporal_head": TemporalHead.LSTM,
    },
}


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


PROCESS = """
import json, sys
import torch
from xclip_deploy import load_checkpoint
from xclip_deploy.training.distributed import process_group, rank, world_size
from xclip_deploy.training.step import Pairs, compute_gradients

checkpoint, data, chunk_size, output = sys.argv[1:]
with process_group():
    model = load_checkpoint(checkpoint).build().double().train()
    pairs = Pairs(*torch.load(data, weights_only=True))
    share = len(pairs.token_ids) // world_size()
    mine = slice(rank() * share, (rank() + 1) * share)
    loss = compute_gradients(
        model, Pairs(*(tensor[mine] for tensor in pairs)), chunk_size=json.loads(chunk_size)
    )
    grads = {name: p.grad for name, p in model.named_parameters()}
    torch.save((loss, grads), f"{output}-{rank()}.pt")
"""


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_with_four_pairs_are_one_with_eight(
    make_model: Any, tmp_path: Path, kind: str, chunk_size: int | None
) -> None:
    model = make_model(**KINDS[kind])
    save_checkpoint(tmp_path / "model.pt", model.config, model.state_dict())
    pairs = random_pairs(8)
    torch.save(tuple(pairs), tmp_path / "pairs.pt")
    (tmp_path / "process.py").write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / name) for name in ("process.py", "model.pt", "pairs.pt")]
    command += [json.dumps(chunk_size), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = model.double().train()
    expected = plain_gradients(model, pairs)
    for rank in range(2):
        loss, found = torch.load(tmp_path / f"out-{rank}.pt", weights_only=True)
        torch.testing.assert_close(loss, contrastive_loss(model(*pairs).logits.detach()))
        assert_same(found, expected)


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
