"""A run's folder: nothing overwritten, nothing half-written, resumed as it was."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from xclip_deploy import load_checkpoint
from xclip_deploy.errors import CheckpointReadError, InvalidArgumentError, TrainingError
from xclip_deploy.training.config import TrainConfig, resolve_config
from xclip_deploy.training.model import XClip
from xclip_deploy.training.optimizer import Recipe, RecipeAdam, make_optimizer
from xclip_deploy.training.run_folder import Position, RunFolder, draw_curves

CONFIG = TrainConfig()
RECIPE = Recipe(lr=0.1, coef_lr=0.5, total_steps=10)


def trained(make_model: Any, steps: int) -> tuple[XClip, RecipeAdam]:
    model = make_model()
    optimizer = make_optimizer(model, RECIPE)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = 0.01 * parameter.detach()
        optimizer.step()
    return model, optimizer


def test_resumed_is_as_it_was(make_model: Any, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", CONFIG, resume=False)
    model, optimizer = trained(make_model, 3)
    run.save_last(model, optimizer, Position(3, 41.5))
    again = RunFolder(tmp_path / "run", CONFIG, resume=True)
    other, other_optimizer = trained(make_model, 0)
    assert again.load_last(other, other_optimizer) == Position(3, 41.5)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert [group["step"] for group in other_optimizer.param_groups] == [3] * 3
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[a]["square"], other_optimizer.state[b]["square"])


def test_the_last_state_is_a_checkpoint_like_any_other(make_model: Any, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", CONFIG, resume=False)
    model, optimizer = trained(make_model, 2)
    run.save_last(model, optimizer, Position(2, -1))
    run.save_best(model)
    for name in ("last.pt", "best.pt"):
        loaded = load_checkpoint(tmp_path / "run" / name)
        assert loaded.config == model.config
        for key, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict[key], tensor)


@pytest.mark.parametrize("square_pixels", [False, True])
def test_checkpoints_tell_of_square_pixels(
    make_model: Any, tmp_path: Path, square_pixels: bool
) -> None:
    config = resolve_config(overrides=[f"data.square_pixels={json.dumps(square_pixels)}"])
    run = RunFolder(tmp_path / "run", config, resume=False)
    model, optimizer = trained(make_model, 1)
    run.save_last(model, optimizer, Position(1, -1))
    run.save_best(model)
    for name in ("last.pt", "best.pt"):
        assert load_checkpoint(tmp_path / "run" / name).square_pixels is square_pixels


def test_nothing_saved_yet(make_model: Any, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", CONFIG, resume=False)
    assert run.load_last(*trained(make_model, 0)) is None


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(InvalidArgumentError, match="not empty"):
            RunFolder(path, CONFIG, resume=False)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_run_that_stopped_before_its_first_step_is_in_nobodys_way(tmp_path: Path) -> None:
    """A mistyped path must not cost the folder's name."""
    RunFolder(tmp_path / "run", CONFIG, resume=False)
    (tmp_path / "run" / "train_videos.json").write_text("{}")
    other = resolve_config(overrides=["optimization.batch_size=64"])
    run = RunFolder(tmp_path / "run", other, resume=False)
    run.log({"step": 1, "loss": 1.0})
    with pytest.raises(InvalidArgumentError, match="not empty"):
        RunFolder(tmp_path / "run", other, resume=False)


def test_no_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no run to resume"):
        RunFolder(tmp_path, CONFIG, resume=True)


def test_resuming_with_another_configuration(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", CONFIG, resume=False)
    other = resolve_config(overrides=["optimization.batch_size=64"])
    with pytest.raises(InvalidArgumentError, match=r"optimization\.batch_size=300, now it is 64"):
        RunFolder(tmp_path / "run", other, resume=True)


def test_a_full_disk_while_saving(
    make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run", CONFIG, resume=False)
    model, optimizer = trained(make_model, 1)
    run.save_last(model, optimizer, Position(1, -1))
    before = (tmp_path / "run" / "last.pt").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TrainingError, match=r"No space left.*--resume"):
            run.save_last(model, optimizer, Position(2, -1))
        with pytest.raises(TrainingError, match="No space left"):
            run.save_best(model)
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "last.pt"]


def test_a_damaged_state(make_model: Any, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", CONFIG, resume=False)
    model, optimizer = trained(make_model, 1)
    run.save_last(model, optimizer, Position(1, -1))
    path = tmp_path / "run" / "last.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointReadError):
        run.load_last(model, optimizer)
    run.save_best(model)
    (tmp_path / "run" / "best.pt").replace(path)  # weights without a state
    with pytest.raises(CheckpointReadError, match="no state to resume from"):
        run.load_last(model, optimizer)


def test_the_log(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", CONFIG, resume=False)
    assert run.records() == []
    for step in range(1, 6):
        run.log({"step": step, "loss": step / 2})
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    assert [record["step"] for record in run.records()] == [1, 2, 3, 4, 5]
    run.rewind_log(3)
    run.log({"step": 4, "loss": 9.0})
    assert [record["step"] for record in run.records()] == [1, 2, 3, 4]


def _size_of(path: Path) -> tuple[int, int]:
    from PIL import Image

    image: Image.Image
    with Image.open(path) as image:
        return image.size


def test_curves_have_no_panel_without_a_validation(tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = [{"step": step, "loss": 3.0 / step} for step in range(1, 9)]
    recall = {"text_to_video": {"recall_at_1": 40.0}, "video_to_text": {"recall_at_1": 30.0}}
    draw_curves(steps, tmp_path / "loss.png")
    draw_curves([*steps, {"step": 8, "validation": recall}], tmp_path / "both.png")
    draw_curves([], tmp_path / "none.png")
    loss, both = _size_of(tmp_path / "loss.png"), _size_of(tmp_path / "both.png")
    assert both == (2 * loss[0], loss[1])
    assert _size_of(tmp_path / "none.png") == loss
