"""Pictures other than explanations, light and dark, compared with small ones in ``golden/``."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from compared_pictures import ALLOWED, assert_as_before, difference, opened, reduced

pytest.importorskip("matplotlib", reason="the extra plot is not installed")

from benchmarks.candidates import draw_candidates
from benchmarks.gallery_report import draw_galleries
from benchmarks.grains import draw_grains
from benchmarks.grouping import draw as draw_grouping
from benchmarks.measured import Run as MeasuredBenchmark
from benchmarks.moments import draw_moments
from benchmarks.performance_plots import draw as draw_performance
from benchmarks.serving_report import draw_serving
from xclip_deploy.export.verification import plots
from xclip_deploy.export.verification.certificate import RunIdentity
from xclip_deploy.export.verification.differences import Differences
from xclip_deploy.export.verification.judging import judge
from xclip_deploy.export.verification.measuring import MeasuredRun, MeasuredRuns
from xclip_deploy.export.verification.runs import Run
from xclip_deploy.runtime.benchmark import Benchmark, draw_benchmark
from xclip_deploy.runtime.evaluation import Matcher
from xclip_deploy.runtime.manifest import Graph, Precision, Tolerance
from xclip_deploy.runtime.moments import GridCell, plot_results
from xclip_deploy.runtime.theme import PALETTES, Theme, write_png
from xclip_deploy.training.run_folder import draw_curves

GOLDEN = Path(__file__).parent / "golden" / "pictures"
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def curves(path: Path, theme: Theme, *, has_validation: bool) -> None:
    """Draw the log of a run whose loss falls and whose recall rises."""
    steps = range(1, 401)
    noise = np.random.default_rng(0).normal(0, 0.1, len(steps))
    records: list[dict[str, Any]] = [
        {"step": step, "loss": float(4.5 * np.exp(-step / 200 + each))}
        for step, each in zip(steps, noise, strict=True)
    ]
    for step in range(100, 401, 100) if has_validation else ():
        recalls = {"text_to_video": step / 8, "video_to_text": step / 9}
        validation = {name: {"recall_at_1": value} for name, value in recalls.items()}
        records.append({"step": step, "validation": validation})
    draw_curves(records, path)
    if theme == "dark":
        path.with_stem(f"{path.stem}-dark").replace(path)


def bench(path: Path, theme: Theme) -> None:
    """Draw a benchmark of two sessions."""
    sessions, measurements = [], []
    for factor, precision in ((1.0, "fp32"), (0.6, "fp16")):
        name = f"onnxruntime cpu {precision}"
        common = {"backend": "onnxruntime", "device": "cpu", "options": {}}
        sessions.append({"name": name, "precision": precision, **common})
        for graph, sizes, base_s in (
            ("video_encoder", (1, 8), 0.02), ("text_encoder", (1, 32), 0.001),
            ("scorer", (100, 1000), 0.0004),
        ):  # fmt: skip
            for size in sizes:
                seconds = [base_s * size**0.8 * factor * (1 + n / 50) for n in range(20)]
                measured = {"session": name, "graph": graph, "size": size, "latencies_s": seconds}
                memory = {"peak_memory_bytes": 20_000_000 + size * 10_000}
                measurements.append({**measured, **memory, "device_memory_bytes": None})
    machine = {"cpu": "A CPU", "cores": 2, "memory_bytes": 16 << 30, "gpus": (), "system": "Linux"}
    content = {
        "bundle": "xclip-bundle", "fingerprint": "0" * 64, "model": "x-clip, 3 layers of 96",
        "machine": {**machine, "load_average": 0.1}, "versions": {"onnxruntime": "1.31.1"},
        "created_utc": "2026-11-26T12:00:00+00:00", "rounds": 1, "seconds": 1.0, "warmup": 0,
        "sessions": sessions, "skipped": (), "loadings": (), "measurements": measurements,
    }  # fmt: skip
    draw_benchmark(Benchmark.model_validate(content), path, theme)


def grid(path: Path, theme: Theme) -> None:
    """Draw hits: wide, tall, with a long name, without a picture."""
    cells = []
    for number, name in enumerate(("a.mp4", "a folder/" * 9 + "b.mp4", "gone.mp4", "tall.mp4")):
        height, width = (160, 90) if name == "tall.mp4" else (90, 160)
        y, x = np.mgrid[:height, :width]
        rgb = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60 * number)], -1)
        shown = None if name == "gone.mp4" else rgb.astype(np.uint8)
        start_s = 3723.5 + 8 * number
        cells.append(GridCell.of(shown, number + 1, 23.4 - number, name, start_s, start_s + 8))
    plot_results(cells, path, title="a red square moves right", theme=theme)


def verification(path: Path, theme: Theme, *, what: str) -> None:
    """Draw a figure of the verification report, of two runs with made errors."""
    random = np.random.default_rng(1)
    tolerance = Tolerance(
        feature=5e-3, cosine=0.99, score=0.02, outlier_factor=50, recall_points=2.0,
        top1_agreement=0.98,
    )  # fmt: skip
    reference = random.normal(5, 5, (24, 12)).astype(np.float32)
    vectors = random.normal(0, 0.1, (50, 96)).astype(np.float32)
    runs = []
    for precision, error in ((Precision.FP16, 0.02), (Precision.INT8, 0.3)):
        identity = RunIdentity(
            backend="onnxruntime", precision=precision, device="cpu", artefacts={"x": "0" * 64},
            size_bytes=1,
        )  # fmt: skip
        found = reference + random.normal(0, error, reference.shape).astype(np.float32)
        logits, features = Differences(are_vectors=False), Differences(are_vectors=True)
        logits.add(reference, found)
        features.add(vectors, vectors + random.normal(0, error / 300, vectors.shape))
        differences = {
            (Graph.VIDEO_ENCODER, "video_features"): features,
            (Graph.SCORER, "logits"): logits,
        }
        runs.append(MeasuredRun(Run(identity, cast("Matcher", None)), differences, found))
    measurement = MeasuredRuns(
        reference=runs[0].run, reference_seconds={}, reference_logits=reference, score_scale=15.0,
        measured=tuple(runs), texts=("a text",) * 24, video_ids=("a video",) * 12,
        video_of_text=None, thumbnails=(), unreadable=(),
    )  # fmt: skip
    judged = [judge(measurement, run, tolerance) for run in runs]
    comparisons = [comparison for comparison, _ in judged]
    figures = {
        "errors": lambda: plots.error_distributions(measurement, comparisons),
        "scores": lambda: plots.score_scatter(measurement, comparisons),
        "moves": lambda: plots.rank_moves(comparisons, [ranks for _, ranks in judged]),
    }
    write_png(cast("Callable[[], Any]", figures[what]), path, theme)


PICTURES: dict[str, Callable[[Path, Theme], None]] = {
    "curves": partial(curves, has_validation=True),
    "curves-without-validation": partial(curves, has_validation=False),
    "bench": bench,
    "grid": grid,
    **{
        f"report-{what}": partial(verification, what=what) for what in ("errors", "scores", "moves")
    },
}


@pytest.mark.parametrize(
    ("name", "theme"),
    # Every day, two dark pictures tell the colours: the layout is the light one's.
    [
        pytest.param(
            name,
            theme,
            marks=pytest.mark.slow
            if theme == "dark" and name not in ("curves", "report-scores")
            else (),
        )
        for name in PICTURES
        for theme in PALETTES
    ],
)
def test_pictures_look_as_before(
    name: str, theme: Theme, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "a.png"
    PICTURES[name](path, theme)
    regenerate = request.config.getoption("--regenerate-pictures")
    assert_as_before(path, GOLDEN / f"{name}-{theme}.png", regenerate=regenerate)
    page = tuple(int(PALETTES[theme].page[n : n + 2], 16) for n in (1, 3, 5))
    assert opened(path).getpixel((1, 1)) == page


def read_json(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


PLOTS: dict[str, Callable[[Path], None]] = {
    "candidates": lambda path: draw_candidates(read_json("candidates"), path),
    "galleries": lambda path: draw_galleries(read_json("galleries"), path),
    "grains": lambda path: draw_grains(read_json("grains"), path),
    "grouping": lambda path: draw_grouping(read_json("grouping"), path),
    "moments": lambda path: draw_moments(read_json("moments"), path),
    "performance": lambda path: draw_performance(
        MeasuredBenchmark.read(RESULTS / "performance.json"), path
    ),
    "serving": lambda path: draw_serving(read_json("serving"), path),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLOTS)
def test_plots_of_benchmarks_show_the_results_beside_them(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The pictures in ``benchmarks/results`` are what the code draws of the JSON there."""
    folder = RESULTS if request.config.getoption("--regenerate-pictures") else tmp_path
    PLOTS[name](folder / f"{name}.png")
    for file in (f"{name}.png", f"{name}-dark.png"):
        drawn, kept = (reduced(opened(place / file)) for place in (folder, RESULTS))
        assert difference(drawn, kept) <= ALLOWED, f"look at {folder / file} and {RESULTS / file}"
