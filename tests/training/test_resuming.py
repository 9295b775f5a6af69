"""Runs that are killed or stopped continue exactly, however the work is shared."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import assert_same_run, configured, losses, settings, state_of

from xclip_deploy import train
from xclip_deploy.training import loss_scaling, trainer


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
