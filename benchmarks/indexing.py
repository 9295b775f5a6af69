"""Measure indexing from files to gallery, and its memory. Each run is a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks.interleaving import interleave
from benchmarks.machine import ROOT, usage_of_cores
from benchmarks.measured import Part, Series
from benchmarks.setting import Setting, generated_videos
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.training.datasets.generated import make_splits
from xclip_deploy.training.datasets.generated.encoding import video_writer
from xclip_deploy.training.datasets.generated.rendering import render
from xclip_deploy.training.datasets.generated.splits import SplitSizes

INDEXING, MEMORY = "indexing", "memory of indexing beside the model"
BEFORE = "before: "
"""Begins the names of contenders that run other code."""
STAGES = ("encoding_s", "own_cpu_s", "decoders_cpu_s")
_SAMPLE_S = 0.1


def measure_indexing(setting: Setting) -> Part:
    """Measure indexing with every session, and with the code of ``setting.before``.

    The session is open before the time counts.
    """
    videos = [str(path.absolute()) for path in setting.videos(3 if setting.is_toy else None)]
    sessions = setting.sessions
    if setting.is_toy:  # a process a session takes seconds
        sessions = dict(list(sessions.items())[:1])
    answers: dict[str, list[dict[str, Any]]] = {}

    def runner(name: str, options: SessionOptions, code: Path) -> Callable[[], object]:
        def run() -> None:
            session = asdict(options)
            session = {key: session[key] for key in ("device", "precision", "backend")}
            answers.setdefault(name, []).append(index(setting, videos, session, code))

        return run

    contenders = {name: runner(name, options, ROOT) for name, options in sessions.items()}
    if setting.before is not None:
        contenders[f"{BEFORE}auto"] = runner(f"{BEFORE}auto", SessionOptions("cpu"), setting.before)
    rounds = setting.turns(4, toy=1)
    busy = usage_of_cores(lambda: interleave(contenders, rounds, warm=False))
    series, facts = [], dict[str, float | str]()
    for name, found in answers.items():
        added = {answer["added"] for answer in found}
        if len(added) != 1 or 0 in added:
            raise SystemExit(
                f"{name} indexed {sorted(added)} videos in turn; expected as many each"
            )
        times = tuple(answer["seconds"] for answer in found)
        is_before = name.startswith(BEFORE)
        work, size = float(added.pop()), float(len(videos))
        series.append(
            Series(INDEXING, size, name, times, work=work, item="videos", is_yardstick=is_before)
        )
        facts[f"{name}, session"] = found[-1]["session"]
        facts[f"{name}, files that failed"] = found[-1]["failed"]
        for stage in STAGES:
            middle = sorted(answer[stage] for answer in found)[len(found) // 2]
            facts[f"{name}, {stage}"] = middle
    if busy is not None:
        facts["share of all cores that was busy"] = busy
    return Part("indexing", tuple(series), facts)


def measure_memory(setting: Setting) -> Part:
    """Measure the most memory of indexing few, many and long videos, above the open model."""
    few, many, seconds = (2, 4, 12) if setting.is_toy else (8, 48, 300)
    short = sorted(generated_videos(setting.work / f"videos-{many}", many).glob("*.mp4"))
    long = long_video(setting.work, seconds, setting.seed)
    cases: dict[str, tuple[Sequence[Path], dict[str, Any]]] = {
        "one long video": ([long], {"segment": "8s"}),
        f"{few} short videos": (short[:few], {}),
        f"{many} short videos": (short, {}),
    }
    if setting.is_toy:  # a process a case takes seconds
        cases = dict(list(cases.items())[:1])
    series: list[Series] = []
    facts: dict[str, float | str] = {}
    for name, (paths, how) in cases.items():
        beside, tree = [], []
        for _ in range(setting.turns(4, toy=1)):
            answer = index(setting, [str(path.absolute()) for path in paths], {}, how=how)
            if answer["peak_bytes"] is None or not answer["tree_bytes"]:
                return Part("memory", (), {"left out": "this system tells no peak of memory"})
            if answer["failed"] or not answer["added"]:
                raise SystemExit(f"{name}: {answer['failed']} failed; expected none")
            beside.append(answer["peak_bytes"] - answer["model_bytes"])
            tree.append(answer["tree_bytes"] - answer["model_pss_bytes"])
            facts["open model, MB"] = answer["model_bytes"] / 1e6
            facts["session"] = answer["session"]
        size = float(len(paths))
        series += [
            Series(MEMORY, size, f"{name}, indexing process", tuple(beside), unit="bytes"),
            Series(MEMORY, size, f"{name}, with decoders", tuple(tree), unit="bytes"),
        ]
    return Part("memory", tuple(series), facts)


def index(
    setting: Setting,
    videos: Sequence[str],
    session: dict[str, Any],
    code: Path = ROOT,
    how: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Index videos into a new gallery in a new process; return its answer.

    ``tree_bytes`` is the most memory of the process and its decoders together. ``code``: folder of
    the code that indexes. Raises SystemExit with the process's last words where it fails.
    """
    gallery = setting.work / "indexed"
    shutil.rmtree(gallery, ignore_errors=True)
    request = {
        "bundle": str(setting.bundle_path.absolute()),
        # A toy saves the start of a decoder, and the import of LanceDB.
        "gallery": None if setting.is_toy else str(gallery.absolute()),
        "videos": list(videos),
        "session": session,
        "how": {**(how or {}), **({"workers": 1} if setting.is_toy else {})},
    }
    script = ROOT / "benchmarks" / "indexing_child.py"
    command = [sys.executable, str(script), json.dumps(request)]
    with subprocess.Popen(  # noqa: S603 - words of this module
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=setting.child_environment(code),
    ) as process:
        watch = TreeMemory(process.pid)
        output, said = process.communicate()
        peak = watch.stop()
    if process.returncode != 0:
        raise SystemExit(f"indexing failed: {said[-500:]}")
    answer: dict[str, Any] = {**json.loads(output.splitlines()[-1]), "tree_bytes": peak}
    return answer


class TreeMemory:
    """Most memory of a process and its children, looked at ten times a second.

    Pages that processes share count once (PSS). Shorter peaks can be missed.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._most = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """End the watch; return the most memory, bytes."""
        self._is_over.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while not self._is_over.wait(_SAMPLE_S):
            try:
                process = psutil.Process(self._pid)
                tree = [process, *process.children(recursive=True)]
                held = sum(each.memory_full_info().pss for each in tree)
            except (psutil.Error, AttributeError):  # a process ended, or no PSS on this system
                continue
            self._most = max(self._most, held)


def long_video(work: Path, seconds: int, seed: int) -> Path:
    """Draw one video of generated scenes, one after the other, unless it is there."""
    import numpy as np

    path = work / f"long-{seconds}.mp4"
    if not path.is_file():
        scenes = make_splits(SplitSizes(train=0, val=0, test=64), seed)["test"]
        with video_writer(path) as write:
            # A scene takes six seconds.
            for number in range(-(-seconds // 6)):
                scene = scenes[number % len(scenes)]
                for picture in render(scene, np.random.default_rng((seed, number))):
                    write(picture)
    return path
