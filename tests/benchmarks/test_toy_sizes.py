"""Every benchmark runs from first to last at its toy size, as a user would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import performance
from benchmarks.measured import Run
from benchmarks.searching import DISK
from xclip_deploy.training.datasets.generated import SplitSizes, make_videos

ROOT = Path(__file__).parents[2]
BENCHMARKS = {
    file.stem
    for file in (ROOT / "benchmarks").glob("*.py")
    if 'if __name__ == "__main__"' in file.read_text(encoding="utf-8")
}
ELSEWHERE = {
    "performance",
    "compare",
    "indexing_child",
    "scan",
    "scan_tunings",
    "cluster",
    "gpu_encoders",
    "gpu_probe",
    "gpu_session",
}
"""Programs that the other files of this folder run."""
TOYS = (
    "grains",
    "candidates",
    "cores",
    "galleries",
    "grouping",
    "moments",
    "serving",
    "ten_minutes",
)


def run(name: str, folder: Path, *arguments: object) -> Any:
    """Run a benchmark in ``folder``; return its results."""
    places = ("--output", folder / "results", "--work", folder / "work")
    command = [sys.executable, "-m", f"benchmarks.{name}", "--toy"]
    command += [str(word) for word in (*places, *arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    written = {file.name for file in (folder / "results").iterdir()}
    assert written == {f"{name}.json", f"{name}.md", f"{name}.png"}
    table = (folder / "results" / f"{name}.md").read_text(encoding="utf-8")
    assert table in done.stdout
    return json.loads((folder / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_no_benchmark_is_forgotten() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert tested >= BENCHMARKS - ELSEWHERE == {*TOYS}
    assert BENCHMARKS >= ELSEWHERE


@pytest.mark.slow
def test_grains(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    content = run("grains", tmp_path, "--processes", 1)
    assert (content["epochs"], content["steps"], content["held_out"]) == (1, 2, 4)
    assert len({run["variant"] for run in content["runs"]}) == len(content["runs"]) == 8


@pytest.mark.slow
def test_candidates(checkpoint_path: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    make_videos(videos, SplitSizes(train=2, val=2, test=4))
    content = run("candidates", tmp_path, "--checkpoint", checkpoint_path, "--videos", videos)
    assert (content["videos"], content["queries"]) == (4 + 4 + 2 + 2, 4)
    # There are fewer videos than candidates, so that nothing is lost.
    assert {point["recall_at_10"] for point in content["points"]} == {1.0}


@pytest.mark.slow
def test_cores(checkpoint_path: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    make_videos(videos, SplitSizes(train=2, val=2, test=4))
    content = run("cores", tmp_path, "--checkpoint", checkpoint_path, "--videos", videos)
    assert [(point["workers"], point["videos"]) for point in content["indexing"]] == [
        (workers, 8) for workers in (1, 2, 4, 8)
    ]
    for point in content["indexing"]:
        # Every process counts in the cores' time; a tick of 10 ms may fall to either side.
        assert 0 < point["own_share"] <= point["busy_share"] + 0.1 <= 1.2
        assert point["switches_per_s"] > 0
    assert [point["threads"] for point in content["queries"]] == [
        "spin",
        "stop after a run",
        "never spin",
    ]


@pytest.mark.slow
def test_moments(checkpoint_path: Path, tmp_path: Path) -> None:
    content = run("moments", tmp_path, "--checkpoint", checkpoint_path)
    assert (content["videos"], content["queries"]) == (2, 20)
    names = ("kind", "window_s", "stride_s", "nms")
    points = {tuple(point[name] for name in names): point for point in content["points"]}
    shots = points.pop(("shots", 6, 3, 0.5))
    points = {key[1:]: point for key, point in points.items()}
    assert set(points) == {(6, 6, 0.5), (6, 3, None), (6, 3, 0.5)}
    assert (points[6, 6, 0.5]["segments"], points[6, 3, 0.5]["segments"]) == (20, 38)
    # Each event is a shot or part of one, and none is longer than two windows.
    assert 20 <= shots["segments"] <= 38
    assert shots["boundary_error_s"] <= 0.25
    # There are fewer windows than 100, so that only suppression and boundaries lose any.
    assert points[6, 3, None]["r100"] >= points[6, 3, 0.5]["r100"] > 50
    assert {point["video_r5"] for point in points.values()} == {100}


@pytest.mark.slow
def test_ten_minutes(checkpoint_path: Path, tmp_path: Path) -> None:
    content = run("ten_minutes", tmp_path, "--checkpoint", checkpoint_path)
    whole, windows = (content["answers"][name] for name in ("whole", "windows"))
    assert len(whole) == len(windows) == content["events"] == 10
    # The whole video has few frames, so that most events have none that could be right.
    frames = {answer["best_frame_s"] for answer in whole}
    assert len(frames) <= 4
    assert sum(answer["is_right"] for answer in whole) <= 4
    assert {tuple(answer["shown_s"]) for answer in whole} == {(0, 60)}
    assert all(answer["shown_s"][1] - answer["shown_s"][0] < 20 for answer in windows)


@pytest.mark.slow
def test_galleries(tmp_path: Path) -> None:
    content = run("galleries", tmp_path)
    assert [result["videos"] for result in content] == [100, 300]
    for result in content:
        assert len(result["flat_ms"]) == 100
        assert result["flat_recall_at_10"] > 0.9


@pytest.mark.slow
def test_grouping(checkpoint_path: Path, bundle_path: Path, tmp_path: Path) -> None:
    content = run("grouping", tmp_path)
    assert (content["segments"], content["videos"]) == (1000, 20)
    assert {name: len(times) for name, times in content["times_ms"].items()} == {
        "plain": 100,
        "grouped": 100,
        "grouped, refined": 100,
        "moments": 100,
    }
    # Without groups, one film fills a page.
    assert content["videos_in_ten_hits"]["plain"] < 3
    assert content["videos_in_ten_hits"]["grouped"] == 10
    assert min(content["recall_at_10"].values()) > 0.9
    # The same gallery serves the run of everything.
    words = ["--toy", "--only", "search", "--films", tmp_path / "work", "--sizes", "--disk-sizes"]
    words += ["--checkpoint", checkpoint_path, "--bundle", bundle_path]
    words += ["--work", tmp_path / "performance", "--output", tmp_path / "performance"]
    performance.main([str(word) for word in words])
    found = Run.read(tmp_path / "performance" / "performance.json")
    assert [(each.task, each.size) for each in found.series] == [(DISK, 1000)] * 2
    plain = found.fact("recall@10 of two stages, 1000 videos on disk")
    assert plain == content["recall_at_10"]["plain"]


@pytest.mark.slow
def test_serving(bundle_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    content = run("serving", tmp_path, "--bundle", bundle_path)
    assert set(content["modes"]) == {"batched", "unbatched"}
    for mode in content["modes"].values():
        for load in ("full", "paced"):
            assert set(mode[load]["statuses"]) == {"200"}
            assert mode[load]["p50_ms"] <= mode[load]["p99_ms"]
        assert sum(mode["paced"]["statuses"].values()) == 10
    long_run = content["long_run"]
    assert long_run["statuses"] == {"200": 100}
    assert len(long_run["resident_bytes"]) == 10
