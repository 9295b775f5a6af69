"""Whole runs on real mp4 files: what they write, and that a kill loses nothing."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from command_line import runner

from xclip_deploy import load_checkpoint, resolve_config, train
from xclip_deploy.errors import DatasetError, InvalidArgumentError, TrainingError
from xclip_deploy.training import loss_scaling, trainer
from xclip_deploy.training import step as step_module
from xclip_deploy.training.config import TrainConfig

COLOURS = ("red", "green", "blue", "white", "black", "grey", "pink", "brown", "cyan", "gold")
ARCHITECTURE = {
    "embed_dim": 64,
    "vision": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "heads": 1},
    "text": {"width": 64, "layers": 1, "heads": 1},
    "temporal_head": "seqTransf",
    "temporal_layers": 1,
    "temporal_heads": 1,
    "temporal_positions": 8,
    "max_words": 8,
    "max_frames": 3,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of one colour each, with two captions; the last four validate too."""
    folder = tmp_path_factory.mktemp("dataset")
    random = np.random.default_rng(0)
    rows = [("file", "caption", "split")]
    for number, colour in enumerate(COLOURS):
        with av.open(str(folder / f"{colour}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=4)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            base = random.integers(0, 256, 3)
            for _ in range(10):
                picture = np.clip(base + random.normal(0, 9, (32, 32, 3)), 0, 255)
                frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        rows += [(f"{colour}.mp4", text, "train") for text in (colour, f"all is {colour}")]
        if number >= 6:
            rows.append((f"{colour}.mp4", f"only {colour}", "val"))
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def settings(dataset: Path, **changes: Any) -> list[str]:
    values = {
        "start.architecture": ARCHITECTURE,
        "data.annotations": str(dataset / "captions.csv"),
        "data.videos": str(dataset),
        "data.workers": 0,
        "data.frame_cache": str(dataset / "cache"),
        "optimization.batch_size": 5,
        "optimization.epochs": 3,
        "optimization.lr": 1e-3,
        "optimization.coef_lr": 1.0,
        "optimization.freeze_layers": -1,
        "save_every_steps": 3,
    }
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


def configured(dataset: Path, **changes: Any) -> TrainConfig:
    return resolve_config(overrides=settings(dataset, **changes))


def losses(run: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "loss" in record]
    assert len(steps) == len(set(steps)), "a step is logged twice"
    return {record["step"]: record["loss"] for record in records if "loss" in record}


@pytest.fixture(scope="module")
def uninterrupted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    reports: list[trainer.StepReport] = []
    result = train(configured(dataset), run, on_step=reports.append)
    assert [report.step for report in reports] == list(range(1, 13))
    assert {report.total_steps for report in reports} == {12}
    assert result.steps == 12
    assert result.best_recall is not None
    return run


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


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "last.pt").state_dict


def assert_same_run(found: Path, expected: Path) -> None:
    assert losses(found) == losses(expected)
    for name, tensor in weights(expected).items():
        assert torch.equal(weights(found)[name], tensor), name
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (found, expected)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    "killed_at",
    [pytest.param(1, marks=pytest.mark.slow), 5, pytest.param(8, marks=pytest.mark.slow)],
)
def test_a_killed_run_continues_exactly(
    dataset: Path, tmp_path: Path, uninterrupted: Path, killed_at: int
) -> None:
    run = tmp_path / "run"
    script = (
        "import json, os, signal, sys\n"
        "from xclip_deploy import resolve_config, train\n"
        "def kill(report):\n"
        "    if report.step == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(resolve_config(overrides=json.loads(sys.argv[3])), sys.argv[1], on_step=kill)\n"
    )
    arguments = [str(run), str(killed_at), json.dumps(settings(dataset))]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert max(losses(run)) == killed_at
    train(configured(dataset), run, resume=True)
    assert_same_run(run, uninterrupted)


@pytest.mark.slow
def test_an_fp16_run_skips_reports_and_continues_exactly(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that overflow while the scale finds itself are in the log, and counted."""
    monkeypatch.setattr(loss_scaling, "INITIAL_SCALE", 2.0**19)  # too much for this model
    config = configured(dataset, optimization__precision="fp16", data__validation_split=None)
    reports: list[trainer.StepReport] = []
    train(config, tmp_path / "straight", on_step=reports.append)
    assert [report.step for report in reports] == list(range(1, 13))
    assert {report.skipped for report in reports} == {True, False}
    assert all((report.grad_norm is None) is report.skipped for report in reports)
    scales = [report.loss_scale for report in reports]
    assert scales[0] == 2**19
    for report, scale, following in zip(reports, scales, scales[1:], strict=False):
        assert scale is not None
        assert following == (scale / 2 if report.skipped else scale)

    def interrupt(report: trainer.StepReport) -> None:
        if report.step == 7:  # saved after the sixth
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", on_step=interrupt)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert (state["step"], state["loss_scaler"]["scale"]) == (6, scales[6])
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "straight")


# Every day, test_a_killed_run_continues_exactly kills a run, and test_files.py a writer.
@pytest.mark.slow
def test_a_kill_while_saving_keeps_the_checkpoint_before(
    dataset: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    run = tmp_path / "run"
    script = (
        "import json, os, signal, sys, torch\n"
        "from xclip_deploy import resolve_config, train\n"
        "save, saved = torch.save, []\n"
        "def kill(content, path):\n"
        "    saved.append(path)\n"
        "    save(content, path)\n"
        "    if 'optimizer' in content and content['step'] == 6:\n"
        "        with open(path, 'r+b') as file: file.truncate(5000)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "torch.save = kill\n"
        "train(resolve_config(overrides=json.loads(sys.argv[2])), sys.argv[1])\n"
    )
    arguments = [str(run), json.dumps(settings(dataset))]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert torch.load(run / "last.pt", weights_only=True)["step"] == 4  # of the epoch's end
    train(configured(dataset), run, resume=True)
    assert_same_run(run, uninterrupted)
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(
    dataset: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    run = tmp_path / "run"
    train(configured(dataset), run)
    train(configured(dataset), run, resume=True)
    assert_same_run(run, uninterrupted)


@pytest.mark.slow
def test_worker_processes_change_nothing(
    dataset: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    train(configured(dataset, data__workers=1), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(uninterrupted)


@pytest.mark.slow  # test_step_processes.py compares their gradients every day
def test_two_processes_train_as_one(dataset: Path, tmp_path: Path) -> None:
    """Up to rounding: sums are taken in another order."""
    changes = {"optimization__batch_size": 4, "optimization__epochs": 1}
    train(configured(dataset, **changes), tmp_path / "one")
    script = tmp_path / "both.py"
    script.write_text(
        "import json, sys\n"
        "from xclip_deploy import resolve_config, train\n"
        "train(resolve_config(overrides=json.loads(sys.argv[2])), sys.argv[1])\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(script), str(tmp_path / "two"), json.dumps(settings(dataset, **changes))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    for number, loss in one.items():
        assert two[number] == pytest.approx(loss, rel=1e-4)


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
    changes = {"data__videos": str(tmp_path), "data__frame_cache": None}
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
    monkeypatch.setattr(trainer.RunFolder, "save_best", lambda *_: epochs.append(len(validated())))

    def validated() -> list[dict[str, Any]]:
        lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if "validation" in record]

    train(configured(dataset, best_of_equals=rule), tmp_path / "run")
    assert epochs == saved


def test_a_run_by_the_published_recipe_resumes_exactly(dataset: Path, tmp_path: Path) -> None:
    """With FP16 weights, random captions and orders, and gradients in two parts."""
    changes = {
        "optimization.clip_in_fp16": True,
        "optimization.average_encoder_gradients": True,
        "optimization.accumulation_steps": 2,
        "optimization.batch_size": 4,
        "data.expand_sentences": False,
        "data.frame_order": 2,
        "data.slice_position": 1,
        "best_of_equals": "last",
    }
    config = configured(dataset, **changes)
    train(config, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(report: trainer.StepReport) -> None:
        if report.step == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(config, tmp_path / "resumed", on_step=stop)
    train(config, tmp_path / "resumed", resume=True)
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    whole, resumed = (state_of(tmp_path / name) for name in ("whole", "resumed"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "last.pt").state_dict


def test_a_batch_that_the_parts_do_not_divide(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no multiple of accumulation_steps 2"):
        configured(dataset, **{"optimization.accumulation_steps": 2})
