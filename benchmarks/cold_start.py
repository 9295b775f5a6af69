"""Measure the command ``xclip-deploy search`` from its start to its end, in new processes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.galleries import World
from benchmarks.indexing import BEFORE
from benchmarks.interleaving import measure
from benchmarks.measured import Part, quartiles
from benchmarks.setting import TEXT, Setting, make_bundle, make_checkpoint, program
from xclip_deploy import Bundle, Retriever
from xclip_deploy.runtime.gallery import GalleryVideo
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.training.config import resolve_config

COLD = "cold start"
SMALL, LARGE = "search, the demo's model", "search, the model"


def measure_cold_start(setting: Setting) -> Part:
    """Measure searches of 200 videos, the command without work, and Python itself.

    The system's cache holds the files, as after any earlier call.
    """
    count = 20 if setting.is_toy else 200
    places = {LARGE: (setting.bundle_path, setting.work / "cold-gallery")}
    if not setting.is_toy:
        small = make_checkpoint(setting.work / "demo.pt", demo_config(), setting.seed)
        bundle = make_bundle(setting.work / "demo-bundle", small)
        places = {SMALL: (bundle, setting.work / "demo-gallery"), **places}
    environment = setting.child_environment()
    contenders = {
        "python": Command([sys.executable, "-c", "pass"], environment),
        "xclip-deploy --version": Command([program(), "--version"], environment),
    }
    for name, (bundle, gallery) in places.items():
        fill(bundle, gallery, count)
        words: list[str | Path] = [
            program(),
            "search",
            TEXT,
            "--json",
            "--bundle",
            bundle,
            "--gallery",
            gallery,
        ]
        contenders[name] = Command(words, environment)
        if setting.before is not None:
            contenders[f"{BEFORE}{name}"] = Command(
                words, setting.child_environment(setting.before)
            )
    series = measure(
        COLD,
        count,
        contenders,
        setting.turns(9, toy=1),
        warm=False,
        yardsticks=frozenset(("python", *(n for n in contenders if n.startswith(BEFORE)))),
        work=1,
        item="commands",
    )
    facts: dict[str, float | str] = {
        f"{name}, CPU seconds": quartiles(run.cpu_s).median for name, run in contenders.items()
    }
    return Part("cold start", tuple(series), facts)


def demo_config() -> ModelConfig:
    """Return the dimensions of the demo's model."""
    architecture = resolve_config("demo").start.architecture
    assert architecture is not None
    return architecture


def fill(bundle: Path, gallery: Path, count: int) -> None:
    """Make a gallery of synthetic features, unless it is there."""
    if gallery.is_dir():
        return
    manifest = Bundle.open(bundle).manifest
    config = manifest.model
    features = World(count, config.embed_dim, config.max_frames).videos(0, count)
    videos = [
        GalleryVideo(
            id=f"/videos/{number:04d}.mp4",
            path=f"/videos/{number:04d}.mp4",
            content_sha256=f"{number:064x}",
            duration_s=float(config.max_frames),
            frame_times_s=tuple(np.arange(config.max_frames, dtype=float).tolist()),
        )
        for number in range(count)
    ]
    with Retriever(bundle, gallery, create=True) as retriever:
        retriever.add_features(videos, features)


class Command:
    """A command that runs in a new process each time; it keeps the CPU time of each run."""

    def __init__(self, words: Sequence[str | Path], environment: dict[str, str]) -> None:
        self._words = [os.fspath(word) for word in words]
        self._environment = environment
        self.cpu_s: list[float] = []
        """CPU seconds of each run, child processes included."""

    def __call__(self) -> None:
        """Run the command. Raises SystemExit with its last words where it fails."""
        before = _cpu_seconds_of_children()
        done = subprocess.run(  # noqa: S603 - words of this module
            self._words,
            check=False,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(self._words[:2])} failed: {done.stderr[-500:]}")
        self.cpu_s.append(_cpu_seconds_of_children() - before)


def _cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
