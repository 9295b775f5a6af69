"""Moments in long videos: what window, stride and suppression do to recall, time and storage.

    python -m benchmarks.moments --checkpoint demo-output/run/last.pt

The benchmark makes 20 videos of ten minutes with 100 captioned events each. Every caption is
searched in all of them. The reference is the recall among the same 2,000 events when each is a
file of its own. ``--by windows`` ranks windows by brute force, without a gallery; ``--by gallery``
indexes and searches as users do. ``--toy`` runs all of it on two videos of a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.moment_windows import ReadVideos, Windows
from xclip_deploy.export.exporter import export_bundle
from xclip_deploy.moment_evaluation import SearchRanker, index_moments
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.datasets import open_dataset
from xclip_deploy.runtime.datasets.moments import MomentSplit, open_moments
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.evaluation import evaluate_matcher
from xclip_deploy.runtime.evaluation.moments import Ranker, evaluate_moments
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.retriever import Retriever
from xclip_deploy.runtime.theme import write_pngs
from xclip_deploy.runtime.video.segmentation import Segmentation
from xclip_deploy.training.datasets.generated import LongVideoSizes, make_long_videos
from xclip_deploy.training.datasets.generated.long_videos import CLIPS, TOY

if TYPE_CHECKING:
    from matplotlib.figure import Figure


VIDEO_AMONG = 5
"""Number of videos among which the right one should be."""
MAIN_NMS = 0.5
"""Suppression of the curves over window and stride."""


@dataclass(frozen=True)
class Plan:
    """Videos, windows and levels of suppression to measure."""

    sizes: LongVideoSizes
    windows: tuple[tuple[float, float], ...]
    """Length and stride of windows, seconds."""
    shots: tuple[tuple[float, float], ...]
    """Length and stride of the windows within shots, seconds; for galleries alone."""
    nms: tuple[float | None, ...]
    nms_window: tuple[float, float]
    """Length and stride at which suppression varies."""


PLAN = Plan(
    sizes=LongVideoSizes(),
    windows=((4, 4), (4, 2), (6, 6), (6, 3), (6, 1.5), (6, 1), (8, 8), (8, 4), (12, 6)),
    shots=((6, 6), (6, 3), (8, 4)),
    nms=(None, 0.3, 0.5, 0.7),
    nms_window=(6, 1.5),
)
TOY_PLAN = Plan(
    sizes=TOY, windows=((6, 6), (6, 3)), shots=((6, 3),), nms=(None, 0.5), nms_window=(6, 3)
)
"""Plan of a test: it shows that the benchmark runs, and nothing of windows."""


def main() -> None:
    """Make the videos, measure, and write table and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--by", choices=("windows", "gallery"), default="gallery")
    parser.add_argument("--toy", action="store_true", help="two videos of a minute")
    parser.add_argument("--every", type=int, default=1, help="search every n-th event alone")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("moments-work"))
    options = parser.parse_args()
    plan = TOY_PLAN if options.toy else PLAN
    options.work.mkdir(parents=True, exist_ok=True)
    bundle = options.work / "bundle"
    if not bundle.is_dir():
        export_bundle(options.checkpoint, bundle)
    folder = options.work / "long-videos"
    make_long_videos(folder, plan.sizes, num_workers=2)
    split = open_moments("folder", "test", folder, folder)
    split = replace(split, queries=split.queries[:: options.every])
    result = measure(Bundle.open(bundle), split, folder, plan, options.by, options.work)
    options.output.mkdir(parents=True, exist_ok=True)
    replace_text(options.output / "moments.json", json.dumps(result, indent=1) + "\n")
    replace_text(options.output / "moments.md", table(result))
    draw_moments(result, options.output / "moments.png")
    print(table(result))


def measure(
    bundle: Bundle, split: MomentSplit, folder: Path, plan: Plan, by: str, work: Path
) -> dict[str, Any]:
    """Measure the reference and every point of the plan."""
    with DeployedModel(bundle) as model:
        clips = open_dataset("folder", "test", folder / CLIPS, folder / CLIPS)
        reference = evaluate_matcher(model, clips).metrics.text_to_video
        points = []
        read = ReadVideos.of(model, split) if by == "windows" else None
        policies = [Segmentation("windows", *each) for each in plan.windows]
        if read is None:
            policies += [Segmentation("shots", *each) for each in plan.shots]
        varying = Segmentation("windows", *plan.nms_window)
        for segmentation in policies:
            varies = segmentation == varying
            levels = plan.nms if varies else (MAIN_NMS,)
            if read is not None:
                points += _by_windows(model, split, read, segmentation, levels)
            else:
                points += _by_gallery(bundle, split, segmentation, levels, work / "gallery")
            print(f"{segmentation.text}: R@1 {points[-1]['r1']:.1f} %", flush=True)
    return {
        "by": by,
        "videos": len(split.videos),
        "queries": len(split.queries),
        "hours": plan.sizes.videos * plan.sizes.duration_s / 3600,
        "nms_window": list(plan.nms_window),
        "clips": reference.num_queries,
        "clips_r1": reference.recall_at_1,
        "clips_r5": reference.recall_at_5,
        "points": points,
    }


def _by_windows(
    model: DeployedModel,
    split: MomentSplit,
    read: ReadVideos,
    segmentation: Segmentation,
    levels: tuple[float | None, ...],
) -> list[dict[str, Any]]:
    windows = Windows.of(model, split, read, segmentation)
    cost = {
        "index_s": read.seconds + windows.encoding_s,
        "segments": len(windows.video_ids),
        "bytes": windows.num_bytes,
    }
    return [_point(windows.suppressing(nms), split, segmentation, nms) | cost for nms in levels]


def _by_gallery(
    bundle: Bundle,
    split: MomentSplit,
    segmentation: Segmentation,
    levels: tuple[float | None, ...],
    gallery: Path,
) -> list[dict[str, Any]]:
    shutil.rmtree(gallery, ignore_errors=True)
    with Retriever(bundle, gallery, create=True) as retriever:
        began_s = time.perf_counter()
        index_moments(retriever, split, segmentation, progress=True)
        files = [path for path in gallery.rglob("*") if path.is_file()]
        cost = {
            "index_s": time.perf_counter() - began_s,
            "segments": len(retriever.gallery.snapshot()),
            "bytes": sum(path.stat().st_size for path in files),
        }
        return [
            _point(SearchRanker(retriever, split, {"nms": nms}), split, segmentation, nms) | cost
            for nms in levels
        ]


def _point(
    ranker: Ranker, split: MomentSplit, segmentation: Segmentation, nms: float | None
) -> dict[str, Any]:
    evaluation = evaluate_moments(ranker, split)
    error_s = evaluation.found_boundary_error_s
    return {
        "kind": segmentation.kind,
        "window_s": segmentation.window_s,
        "stride_s": segmentation.stride_s,
        "nms": nms,
        **{f"r{k}": evaluation.corpus.value(k, 0.5) for k in (1, 5, 100)},
        "within_r1": evaluation.within.value(1, 0.5),
        "video_r5": evaluation.videos.value(VIDEO_AMONG),
        "boundary_error_s": error_s if math.isfinite(error_s) else None,
    }


def table(result: dict[str, Any]) -> str:
    """Return a Markdown table with a row for each point."""
    source = "windows ranked by brute force" if result["by"] == "windows" else "a gallery"
    lines = [
        f"Text to moment over {result['videos']} videos, {result['queries']:,} events in "
        f"{result['hours']:.1f} h; recall in percent, a moment counts at IoU 0.5; {source}. "
        f"All {result['clips']:,} events, each a file of its own: R@1 {result['clips_r1']:.1f}, "
        f"R@5 {result['clips_r5']:.1f}; columns with a / divide by these. "
        "The boundary error is the median over the events found at IoU 0.5 in their video. "
        "Written by `python -m benchmarks.moments`.",
        "",
        "| window | stride | nms | R@1 | / clips' R@1 | R@5 | R@100 | in its video R@1 "
        "| video in 5 | / clips' R@5 | boundary error | indexing | MB/h |",
        "|" + "---|" * 13,
    ]
    for point in result["points"]:
        error_s = point["boundary_error_s"]
        cells = (
            f"{'shots, ' * (point['kind'] == 'shots')}{point['window_s']:g} s",
            f"{point['stride_s']:g} s",
            "none" if point["nms"] is None else f"{point['nms']:g}",
            f"{point['r1']:.1f}",
            f"{point['r1'] / max(result['clips_r1'], 1e-9):.2f}",
            f"{point['r5']:.1f}",
            f"{point['r100']:.1f}",
            f"{point['within_r1']:.1f}",
            f"{point['video_r5']:.1f}",
            f"{point['video_r5'] / max(result['clips_r5'], 1e-9):.2f}",
            "none found" if error_s is None else f"{error_s:.2f} s",
            f"{point['index_s']:.1f} s",
            f"{point['bytes'] / 1e6 / result['hours']:.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_moments(result: dict[str, Any], path: Path) -> None:
    """Draw recall over window and over suppression, and cost as PNG, light and dark."""
    write_pngs(lambda: _figure(result), path)


def _figure(result: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    recall, suppression, cost = figure.subplots(1, 3)
    plain = [point for point in result["points"] if point["kind"] == "windows"]
    main = [point for point in plain if point["nms"] == MAIN_NMS]
    for share in sorted({point["stride_s"] / point["window_s"] for point in main}, reverse=True):
        line = [point for point in main if point["stride_s"] / point["window_s"] == share]
        x = [point["window_s"] for point in line]
        label = f"stride {share:g} of window"
        recall.plot(x, [point["r1"] for point in line], "o-", label=label)
        cost.plot(
            [point["bytes"] / 1e6 / result["hours"] for point in line],
            [point["r1"] for point in line],
            "o",
            label=label,
        )
        for point in line:
            at = (point["bytes"] / 1e6 / result["hours"], point["r1"])
            cost.annotate(
                f"{point['window_s']:g}/{point['stride_s']:g} s",
                at,
                (4, 4),
                fontsize=8,
                textcoords="offset points",
            )
    shots = [point for point in result["points"] if point["kind"] == "shots"]
    if shots:
        x = [point["window_s"] for point in shots]
        recall.plot(x, [point["r1"] for point in shots], "*", label="in shots")
        x = [point["bytes"] / 1e6 / result["hours"] for point in shots]
        cost.plot(x, [point["r1"] for point in shots], "*", label="in shots")
    for axes in (recall, suppression):
        axes.axhline(result["clips_r1"], color="tab:grey", linestyle=":", label="clips alone, R@1")
    recall.set(xlabel="window, s", ylabel="R@1 at IoU 0.5, percent", title="window and stride")
    window_s, stride_s = result["nms_window"]
    line = [
        point for point in plain if [point["window_s"], point["stride_s"]] == [window_s, stride_s]
    ]
    x = ["none" if point["nms"] is None else f"{point['nms']:g}" for point in line]
    for name in ("r1", "r5", "r100", "video_r5"):
        label = "video in 5" if name == "video_r5" else f"R@{name[1:]}"
        suppression.plot(x, [point[name] for point in line], "o-", label=label)
    title = f"suppression, {window_s:g} s every {stride_s:g} s"
    suppression.set(xlabel="nms: most IoU with a better window", title=title)
    cost.set(xlabel="embeddings, MB an hour", ylabel="R@1, percent", title="storage")
    for axes in (recall, suppression, cost):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


if __name__ == "__main__":
    main()
