"""Whole runs on real mp4 files: what they write, and what stops them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import runner
from tiny_runs import assert_same_run, configured, losses, settings

from xclip_deploy import load_checkpoint, train
from xclip_deploy.errors import DatasetError, InvalidArgumentError, TrainingError
from xclip_deploy.training import step as step_module
from xclip_deploy.training import trainer
from xclip_deploy.training.run_folder import RunFolder


def test_a_run_leaves_everything(uninterrupted: Path) -> None:
    names = {path.name for path in uninterrupted.iterdir()}
    assert names == {
        "best.pt",
        "config.json",
        "curves-dark.png",
        "curves.png",
        "last.pt",
        "log.jsonl",
        "metrics.json",
        "train_videos.json",
        "val_videos.json",
    }
    assert (uninterrupted / "curves.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((uninterrupted / "metrics.json").read_text())
    assert metrics["text_to_video"]["num_queries"] == 4
    assert sorted(losses(uninterrupted)) == list(range(1, 13))


def test_fewer_validations_change_no_step(
    dataset: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    result = train(configured(dataset, validate_every_epochs=2), tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    # Four steps an epoch; the last epoch is validated whatever its number.
    assert [record["step"] for record in records if "validation" in record] == [8, 12]
    assert result.metrics == json.loads((uninterrupted / "metrics.json").read_text())


def test_the_checkpoints_can_be_exported(uninterrupted: Path) -> None:
    for name in ("best.pt", "last.pt"):
        model = load_checkpoint(uninterrupted / name)
        assert model.config.max_frames == 3
        assert model.notes == ()


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def spoil(logits: torch.Tensor) -> torch.Tensor:
        calls.append(logits)
        return logits.sum() * (float("nan") if len(calls) == 3 else 0.0)

    monkeypatch.setattr(step_module, "contrastive_loss", spoil)
    with pytest.raises(TrainingError, match="loss of step 3 is not finite"):
        train(configured(dataset), tmp_path / "run")
    failed = json.loads((tmp_path / "run" / "failed_batch.json").read_text())
    assert failed["step"] == 2
    assert len(failed["pairs"]) == 5
    for pair in failed["pairs"]:
        assert Path(pair["path"]).stem in pair["caption"]


def test_a_checkpoint_of_other_dimensions(
    dataset: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    from xclip_deploy.errors import CheckpointError

    start: dict[str, Any] = {
        "start__architecture": None,
        "start__checkpoint": str(uninterrupted / "best.pt"),
    }
    start["start__max_words"] = 8
    with pytest.raises(CheckpointError, match=r"is \[3, 3\] in the checkpoint, \[4, 4\]"):
        train(configured(dataset, start__max_frames=4, **start), tmp_path / "run")
    with pytest.raises(InvalidArgumentError, match="exceeds the 8 frame positions"):
        train(configured(dataset, start__max_frames=12, **start), tmp_path / "run2")


def test_too_many_unreadable_videos(dataset: Path, tmp_path: Path) -> None:
    for path in dataset.glob("*.mp4"):
        (tmp_path / path.name).write_bytes(b"no video" if path.stem < "gold" else path.read_bytes())
    changes: dict[str, Any] = {"data__videos": str(tmp_path), "data__frame_cache": None}
    with pytest.raises(DatasetError, match="of 10 videos 4 cannot be read"):
        train(configured(dataset, **changes), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "train_videos.json").read_text())
    assert len(report["unreadable"]) == 4
    changes["data__max_unreadable_share"] = 0.6
    changes["data__validation_split"] = None
    result = train(configured(dataset, **changes), tmp_path / "run2")
    assert result.best_recall is None
    assert result.steps == 6  # twelve captions in batches of five, three epochs


def test_what_must_be_given(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"start\.checkpoint must be given"):
        train(configured(dataset, start__architecture=None), tmp_path / "a")
    with pytest.raises(InvalidArgumentError, match=r"data\.annotations and data\.videos"):
        train(configured(dataset, data__videos=None), tmp_path / "b")


def test_the_command(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = runner(capfd)
    changed = settings(dataset, optimization__epochs=1)
    options = [word for setting in changed for word in ("--set", setting)]
    done = run("train", *options, "-o", tmp_path / "run", "--json")
    assert done.status == 0, done.err
    assert done.json()["steps"] == 4
    assert "step 4/4 epoch 1/1 loss" in done.err
    again = run("train", *options, "-o", tmp_path / "run")
    assert again.status == 2
    assert "choose another folder, or continue with --resume" in again.err


@pytest.mark.parametrize(("rule", "saved"), [("first", [1]), ("last", [1, 2, 3])])
def test_the_best_of_equally_good_epochs(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    saved: list[int],
) -> None:
    equal = {"text_to_video": {"recall_at_1": 50.0}, "video_to_text": {"recall_at_1": 25.0}}
    monkeypatch.setattr(trainer, "validate", lambda *_, **__: equal)
    epochs = []
    monkeypatch.setattr(RunFolder, "save_best", lambda *_: epochs.append(len(validated())))

    def validated() -> list[dict[str, Any]]:
        lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if "validation" in record]

    train(configured(dataset, best_of_equals=rule), tmp_path / "run")
    assert epochs == saved


def test_a_batch_that_the_parts_do_not_divide(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no multiple of accumulation_steps 2"):
        configured(dataset, **{"optimization.accumulation_steps": 2})
