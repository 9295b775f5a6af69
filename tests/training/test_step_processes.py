"""One step by two processes: the gradients are those of the whole batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from training_steps import KINDS, assert_same, fp16_steps, plain_gradients, random_pairs

from xclip_deploy.training.checkpoints import save_checkpoint
from xclip_deploy.training.loss_scaling import LossScaler
from xclip_deploy.training.optimizer import Recipe, make_optimizer
from xclip_deploy.training.step import contrastive_loss


class Case(NamedTuple):
    """Way of computing the gradients of one batch."""

    kind: str
    chunk_size: int | None
    average_encoders: bool = False


Results = list[tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""Loss and gradients of each process."""
EVERY_DAY = [Case("x-clip, masked", 3), Case("x-clip", None, average_encoders=True)]
"""Cases of the fast tests, which one launch computes: a launch imports PyTorch three times."""
PROCESS = """
import json, sys
import torch
from xclip_deploy import load_checkpoint
from xclip_deploy.training.distributed import process_group, rank, world_size
from xclip_deploy.training.step import Pairs, compute_gradients

folder, jobs = sys.argv[1], json.loads(sys.argv[2])
with process_group():
    pairs = Pairs(*torch.load(f"{folder}/pairs.pt", weights_only=True))
    share = len(pairs.token_ids) // world_size()
    mine = slice(rank() * share, (rank() + 1) * share)
    for number, (kind, chunk_size, average_encoders) in enumerate(jobs):
        model = load_checkpoint(f"{folder}/{number}.pt").build().double().train()
        loss = compute_gradients(
            model,
            Pairs(*(tensor[mine] for tensor in pairs)),
            chunk_size=chunk_size,
            average_encoders=average_encoders,
        )
        grads = {name: p.grad for name, p in model.named_parameters()}
        torch.save((loss, grads), f"{folder}/out-{number}-{rank()}.pt")
"""


def launch(script: Path, *arguments: object) -> None:
    """Run a script in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(word) for word in (script, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_two_processes(make_model: Any, folder: Path, cases: Sequence[Case]) -> list[Results]:
    """Compute the gradients of eight pairs, four in each process."""
    for number, case in enumerate(cases):
        model = make_model(**KINDS[case.kind])
        save_checkpoint(folder / f"{number}.pt", model.config, model.state_dict())
    torch.save(tuple(random_pairs(8)), folder / "pairs.pt")
    (folder / "process.py").write_text(PROCESS)
    launch(folder / "process.py", folder, json.dumps(cases))
    return [
        [torch.load(folder / f"out-{number}-{rank}.pt", weights_only=True) for rank in range(2)]
        for number in range(len(cases))
    ]


@pytest.fixture(scope="module")
def by_two_processes(
    make_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Case], Results]:
    """Compute a case; those of every day are computed together."""
    known: dict[Case, Results] = {}

    def results(case: Case) -> Results:
        if case not in known:
            cases = EVERY_DAY if case in EVERY_DAY else [case]
            folder = tmp_path_factory.mktemp("processes")
            known.update(zip(cases, run_two_processes(make_model, folder, cases), strict=True))
        return known[case]

    return results


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in EVERY_DAY else pytest.mark.slow)
        for case in (Case(*each) for each in product(KINDS, [None, 3]))
    ],
    ids=lambda case: f"{case.kind}-{case.chunk_size}",
)
def test_two_processes_with_four_pairs_are_one_with_eight(
    make_model: Any, by_two_processes: Callable[[Case], Results], case: Case
) -> None:
    pairs = random_pairs(8)
    model = make_model(**KINDS[case.kind]).double().train()
    expected = plain_gradients(model, pairs)
    for loss, found in by_two_processes(case):
        torch.testing.assert_close(loss, contrastive_loss(model(*pairs).logits.detach()))
        assert_same(found, expected)


def test_the_authors_average_the_encoders_gradients_too(
    make_model: Any, by_two_processes: Callable[[Case], Results]
) -> None:
    """Their AllGather keeps the own slice's gradient, and DDP takes the mean: 1/2 of the whole.

    The scorer comes after AllGather and has the whole gradient in every process.
    """
    model = make_model(**KINDS["x-clip"])
    expected = {
        name: gradient if name.startswith("scorer.") else gradient / 2
        for name, gradient in plain_gradients(model.double().train(), random_pairs(8)).items()
    }
    assert any(name.startswith("video_encoder.temporal") for name in expected)
    for _, found in by_two_processes(Case("x-clip", None, average_encoders=True)):
        assert_same(found, expected)


FP16_PROCESS = """
import sys
import torch
from xclip_deploy import load_checkpoint
from xclip_deploy.training.distributed import process_group, rank, sum_gradients
from xclip_deploy.training.loss_scaling import LossScaler
from xclip_deploy.training.optimizer import Recipe, make_optimizer
from xclip_deploy.training.step import Pairs, train_step

checkpoint, data, output = sys.argv[1:]
with process_group():
    model = load_checkpoint(checkpoint).build().train()
    optimizer = make_optimizer(model, Recipe(lr=1e-5, coef_lr=1.0, total_steps=40))
    scaler = LossScaler("cpu")
    pairs = Pairs(*torch.load(data, weights_only=True))
    mine = Pairs(*(tensor[4 * rank() : 4 * rank() + 4] for tensor in pairs))
    steps = []
    for _ in range(14):
        result = train_step(model, optimizer, mine, precision="fp16", scaler=scaler)
        steps.append((result.loss, result.skipped, result.loss_scale))
    weights = model.state_dict()
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    # Only the second process overflows, in one number.
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    if rank() == 1:
        next(model.text_encoder.parameters()).grad.view(-1)[0] = float("inf")
    sum_gradients(model.parameters())
    scaler.unscale(optimizer)
    alone = (scaler.step(optimizer), scaler.scale)
    torch.save((steps, weights, alone), f"{output}-{rank()}.pt")
"""


@pytest.mark.slow
def test_fp16_decides_alike_however_the_batch_is_shared(make_model: Any, tmp_path: Path) -> None:
    """Whole, in chunks and by two processes: the same steps skipped, the same losses."""
    model = make_model(**KINDS["x-clip"])
    save_checkpoint(tmp_path / "model.pt", model.config, model.state_dict())
    torch.save(tuple(random_pairs(8)), tmp_path / "pairs.pt")
    (tmp_path / "process.py").write_text(FP16_PROCESS)
    script, *files = (tmp_path / name for name in ("process.py", "model.pt", "pairs.pt", "out"))
    launch(script, *files)
    alone = {}
    for chunk_size in (None, 3):
        model = make_model(**KINDS["x-clip"]).train()
        optimizer = make_optimizer(model, Recipe(lr=1e-5, coef_lr=1.0, total_steps=40))
        alone[chunk_size] = fp16_steps(
            model, optimizer, LossScaler("cpu"), 14, chunk_size=chunk_size
        )
    (steps, weights, poisoned), (other_steps, other_weights, other_poisoned) = (
        torch.load(tmp_path / f"out-{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert steps == other_steps
    assert all(torch.equal(tensor, other_weights[name]) for name, tensor in weights.items())
    decisions = [(skipped, scale) for _, skipped, scale in steps]
    assert {skipped for skipped, _ in decisions} == {True, False}
    for results in alone.values():
        assert [(result.skipped, result.loss_scale) for result in results] == decisions
        losses = [result.loss for result in results]
        assert losses == pytest.approx([loss for loss, _, _ in steps], rel=5e-3)
    assert poisoned == other_poisoned == (False, decisions[-1][1] / 2)
