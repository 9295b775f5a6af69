"""Everything that waits for an NVIDIA GPU, in one run of bounded time.

    python -m benchmarks.gpu_session OUTPUT

The steps, in order: a bundle of ViT-B/32 with 12 frames and random weights, where the time of its
encoders goes, its scan kernels, the scan, the encoders from host memory and with inputs on the GPU,
``verify``, ``pytest -m gpu``, and searches end to end. Each step is a process with its own log in
OUTPUT. ``summary.json`` is written after every step, so that a run which is cut off leaves what it
has. Steps that would begin too late are left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, Surroundings
from benchmarks.setting import program, with_root
from xclip_deploy.export.scan_kernels import ARCHITECTURES
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.nvidia_driver import first_gpu, why_no_gpu

PACKAGES = {
    "cuda.bindings.runtime": "the resident gallery, and uploads from pinned memory",
    "triton": "compiling the scan's kernels",
    "onnx": "exporting the bundle",
    "onnxruntime": "running the encoders",
    "lancedb": "tests of galleries on disk",
    "pytest": "the tests",
}
"""Modules that the steps need, and for what."""
_LEAST_S = 10.0
"""A step that would have less time is left out."""


@dataclass(frozen=True)
class Step:
    """One process of the run."""

    name: str
    words: tuple[str, ...]
    """Command line."""
    most_s: float
    """Longest time, seconds."""


def gpu_tests() -> list[str]:
    """List the files of tests that are marked ``gpu``, and the folders where a fixture is."""
    marked = [
        file.parent if file.name == "conftest.py" else file
        for file in sorted((ROOT / "tests").rglob("*.py"))
        if re.search(r"\bmarks?\.gpu\b", file.read_text(encoding="utf-8"))
    ]
    chosen = [path for path in marked if not any(other in path.parents for other in marked)]
    return [str(path.relative_to(ROOT)) for path in dict.fromkeys(chosen)]


def steps(output: Path, work: Path, *, is_toy: bool = False) -> list[Step]:
    """List the steps, the most wanted first. ``work``: folder of checkpoint and bundle."""
    python, xclip, bundle = sys.executable, program(), str(work / "bundle")
    toy = ("--toy",) if is_toy else ()
    encoders = (python, "-m", "benchmarks.gpu_encoders", bundle, "--output", str(output), *toy)
    probe = (python, "-m", "benchmarks.gpu_probe", bundle, str(output), *toy)
    scan = (python, "-m", "benchmarks.scan", "--bundle", bundle, "--output", str(output), *toy)
    times = ("--seconds", "0.1" if is_toy else "1", "--rounds", "2" if is_toy else "3")
    batches = (
        "--video-batches",
        "1,8,32,64,128",
        "--text-batches",
        "1,32",
        "--scored-videos",
        "1000",
    )
    session = "backend=onnxruntime,device=cuda,precision=fp16"
    variants = ("", ",cuda_graphs=false", ",cuda_graphs=false,fused_graphs=false", ",streams=1")
    compared = tuple(word for each in variants for word in ("--session", session + each))
    # Code for other GPUs would take a minute of this machine's time.
    gpu = first_gpu()
    target: tuple[str, ...] = ()
    if gpu is not None and (gpu.major, gpu.minor) in ARCHITECTURES:
        target = ("--compute-capability", f"{gpu.major}.{gpu.minor}")
    # Other tests need packages that such a machine may lack, even to be collected.
    tests = (python, "-m", "pytest", "-m", "gpu", *gpu_tests(), "-q", "-p", "no:cacheprovider")
    return [
        Step("bundle", (python, "-m", "benchmarks.gpu_encoders", bundle, "--make", *toy), 180),
        Step("probe", probe, 100),
        Step("build-scan", (xclip, "build-scan", bundle, *target), 90),
        Step("scan", scan, 120),
        Step("bench", (xclip, "bench", bundle, *compared, *batches, *times, "--json"), 120),
        Step("device-bound", encoders, 60),
        Step("verify", (xclip, "verify", bundle, "-o", str(output / "verify"), "--no-report"), 90),
        # Warnings of that machine's own versions are no failures of this code.
        Step("pytest", (*tests, "-o", "filterwarnings=default"), 240),
        Step("end-to-end", (*encoders, "--search", "2000" if is_toy else "1000000"), 150),
    ]


def run_steps(
    wanted: Sequence[Step], output: Path, limit_s: float, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """Run the steps within ``limit_s`` seconds, and write the summary after each.

    ``facts``: what else the summary holds. Returns an entry for each step: its status is ``done``,
    ``failed``, ``out of time`` or ``left out``.
    """
    started_s = time.monotonic()
    entries: list[dict[str, Any]] = []
    for step in wanted:
        left_s = limit_s - (time.monotonic() - started_s)
        entry: dict[str, Any] = {"step": step.name, "command": list(step.words)}
        if left_s < min(_LEAST_S, step.most_s):
            entry |= {"status": "left out", "seconds": 0.0}
        else:
            entry |= _run(step, output, min(step.most_s, left_s))
        entries.append(entry)
        print(f"{step.name}: {entry['status']} ({entry['seconds']:.0f} s)", flush=True)
        content = {**facts, "limit_s": limit_s, "steps": entries}
        replace_text(output / "summary.json", json.dumps(content, indent=1) + "\n")
    return entries


def _run(step: Step, output: Path, most_s: float) -> dict[str, Any]:
    start_s = time.monotonic()
    with (output / f"{step.name}.log").open("wb") as log:
        try:
            done = subprocess.run(  # noqa: S603 - words of this module
                step.words,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=most_s,
                check=False,
                env=with_root(os.environ),
            )
            status = "done" if done.returncode == 0 else "failed"
            found: dict[str, Any] = {"status": status, "returncode": done.returncode}
        except subprocess.TimeoutExpired:
            found = {"status": "out of time", "allowed_s": most_s}
        except OSError as error:
            found = {"status": "failed", "reason": str(error)}
    return found | {"seconds": round(time.monotonic() - start_s, 2)}


def main(words: Sequence[str] | None = None) -> int:
    """Run what there is time for; return 0 if every step was done."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("output", type=Path, help="folder for logs and results")
    parser.add_argument("--limit-s", type=float, default=470.0, help="most seconds in all")
    parser.add_argument("--work", type=Path, help="folder of the bundle, to use it again")
    parser.add_argument("--toy", action="store_true", help="try it with a toy model")
    options = parser.parse_args(words)
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    missing = why_no_gpu()
    lacking = {name: use for name, use in PACKAGES.items() if not _is_there(name)}
    facts = {"surroundings": vars(Surroundings.now()), "no_gpu": missing, "lacking": lacking}
    for name, use in lacking.items():
        print(f"{name} is not installed, which is for {use}", flush=True)
    if missing is not None:
        print(f"nothing was run: {missing}", flush=True)
        replace_text(output / "summary.json", json.dumps({**facts, "steps": []}, indent=1) + "\n")
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        # The bundle is large, and no result.
        work = (options.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        wanted = steps(output, work, is_toy=options.toy)
        entries = run_steps(wanted, output, options.limit_s, facts)
    return 0 if all(entry["status"] == "done" for entry in entries) else 1


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())
