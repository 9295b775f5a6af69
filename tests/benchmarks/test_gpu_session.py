"""The run for a GPU machine keeps its limits, and leaves results whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_encoders import device_bound, end_to_end
from benchmarks.gpu_session import Step, gpu_tests, run_steps, steps
from benchmarks.machine import ROOT
from xclip_deploy import Bundle
from xclip_deploy.runtime.nvidia_driver import why_no_gpu
from xclip_deploy.runtime.sessions import SessionOptions


def python(name: str, code: str, most_s: float = 60) -> Step:
    return Step(name, (sys.executable, "-c", code), most_s)


def test_steps_fail_run_out_of_time_and_are_left_out(tmp_path: Path) -> None:
    """The steps after them run all the same, and the summary holds what was done by then."""
    wanted = [
        python("good", "print('hello')"),
        python("bad", "raise SystemExit(3)"),
        python("slow", "import time; time.sleep(60)", 0.5),
        Step("absent", (str(tmp_path / "no-program"),), 10),
    ]
    entries = run_steps(wanted, tmp_path, 120, {"no_gpu": None})
    assert [entry["status"] for entry in entries] == ["done", "failed", "out of time", "failed"]
    assert (tmp_path / "good.log").read_text() == "hello\n"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == entries
    assert summary["no_gpu"] is None
    (entry,) = run_steps([python("late", "print(1)")], tmp_path, 1, {})
    assert entry["status"] == "left out"
    assert not (tmp_path / "late.log").exists()


def test_the_steps_name_what_there_is(tmp_path: Path) -> None:
    """Every program answers its options, and every marked test is among those that run."""
    names = [step.name for step in steps(tmp_path, tmp_path)]
    assert names[0] == "bundle"
    assert {"scan", "bench", "device-bound", "verify", "pytest", "end-to-end"} < set(names)
    for path in gpu_tests():
        assert (ROOT / path).exists()
    assert "tests/runtime/sessions" in gpu_tests()
    assert "tests/runtime/resident/test_on_gpu.py" in gpu_tests()


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_session", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "nothing was run: " in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == []
    assert summary["no_gpu"]


def test_what_it_measures_runs_on_a_cpu(bundle: Bundle) -> None:
    entries = device_bound(bundle, 2, 1, "cpu")
    assert [entry["fused"] for entry in entries] == [False, True]
    assert all(entry["videos_a_second"] > 0 for entry in entries)
    found = end_to_end(bundle, 30, 1, SessionOptions(device="cpu"))
    assert found["videos"] == 30
    assert np.isfinite(found["exact"]["median_ms"])
    assert found["residence"] == ""
