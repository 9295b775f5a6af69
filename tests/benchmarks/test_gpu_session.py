"""The run for a GPU machine keeps its limits, and leaves results whatever happens."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu_session
from benchmarks.gpu_encoders import device_bound, end_to_end
from benchmarks.gpu_probe import STEPS, Probe, tried
from benchmarks.gpu_session import Step, gpu_tests, run_steps, steps
from benchmarks.machine import ROOT
from benchmarks.setting import with_root
from xclip_deploy import Bundle
from xclip_deploy.cli.program import cli
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.nvidia_driver import VisibleGpu, why_no_gpu
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.sessions.onnx_runtime import why_no_provider


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


@pytest.mark.parametrize("is_toy", [False, True])
@pytest.mark.parametrize("gpu", [None, VisibleGpu("one", 9, 0), VisibleGpu("new", 13, 7)])
def test_every_command_line_parses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bundle: Bundle,
    is_toy: bool,
    gpu: VisibleGpu | None,
) -> None:
    """A wrong word would cost the time of a lent machine."""
    monkeypatch.setattr(gpu_session, "first_gpu", lambda: gpu)
    (tmp_path / "bundle").symlink_to(bundle.path)
    own = 0
    for step in steps(tmp_path, tmp_path, is_toy=is_toy):
        program, *words = step.words
        assert Path(program).is_file()
        if Path(program).name == "xclip-deploy":
            parent = cli.make_context(program, list(words))
            command = cli.get_command(parent, words[0])
            assert command is not None
            # Commands keep the help option of their first context, which is the parent's.
            context = command.make_context(words[0], words[1:], parent)
            assert context.params["bundle"] == tmp_path / "bundle"
            if words[0] == "build-scan":
                known = gpu is not None and gpu.major == 9
                assert context.params["compute_capabilities"] == (("9.0",) if known else ())
            own += 1
        elif words[1].startswith("benchmarks."):
            options = importlib.import_module(words[1]).parser().parse_args(words[2:])
            assert options.toy == is_toy
            own += 1
        else:
            assert words[:2] == ["-m", "pytest"]
    assert own == 8


def test_the_probe_runs_on_a_cpu_too(bundle_copy: Path) -> None:
    """All but where a GPU spends its time can be tried without one."""
    probe = Probe(Bundle.open(bundle_copy), "cpu", is_toy=True)
    found = {step: list(getattr(probe, step)()) for step in STEPS}
    assert [entry["fused"] for entry in found["nodes"]] == [False, True] * 2
    assert all(entry["median_ms"] > 0 for entry in found["text"])
    assert {(entry["videos"], entry["callers"]) for entry in found["videos"][:-1]} == {
        (size, callers) for size in (1, 2) for callers in (1, 2)
    }
    errors = {(e["graph"], e["precision"], e["fused"]): e["error"] for e in found["errors"]}
    assert errors["text_encoder", "fp32", "nothing"] == 0
    assert 0 < errors["frame_encoder", "fp32", "Gemm"] < 1e-6
    assert not list(bundle_copy.rglob("probe.onnx"))


def test_a_step_of_the_probe_that_fails_leaves_the_others(bundle: Bundle, tmp_path: Path) -> None:
    """Time on a GPU is short. ONNX Runtime's errors are no RuntimeErrors."""
    file = tmp_path / "damaged.onnx"
    file.write_bytes(b"no graph")
    probe = Probe(bundle, "cpu", is_toy=True)

    def step() -> Iterator[dict[str, Any]]:
        yield {"first": 1}
        probe._session(file)

    first, failed = tried("nodes", step())
    assert first == {"step": "nodes", "first": 1}
    assert failed["failed"].startswith("InvalidProtobuf: ")


@pytest.mark.skipif(
    why_no_provider("CUDAExecutionProvider") is None, reason="there is a GPU that runs it"
)
@pytest.mark.parametrize("program", ["gpu_probe", "gpu_encoders"])
def test_nothing_is_measured_on_the_cpu_instead(bundle: Bundle, program: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{program}", str(bundle.path)]
    command += ["--toy"] if program == "gpu_encoders" else [str(bundle.path), "--toy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("nothing was measured: ")
    assert done.stdout == ""


def test_an_encoder_without_a_fused_form_is_timed_as_exported(bundle: Bundle) -> None:
    manifest = bundle.manifest.without_fused(Graph.VIDEO_ENCODER, Precision.FP16)
    entries = device_bound(replace(bundle, manifest=manifest), 1, 1, "cpu")
    assert [entry["fused"] for entry in entries] == [False]


def test_children_find_what_their_parent_finds() -> None:
    """On a lent machine some packages lie in a folder that PYTHONPATH alone names."""
    assert with_root({"A": "b"}) == {"A": "b", "PYTHONPATH": str(ROOT)}
    assert with_root({"PYTHONPATH": "/one:/two"}) == {"PYTHONPATH": f"/one:/two:{ROOT}"}


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_session", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1].startswith("nothing was run: ")
    assert done.stderr == ""
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
