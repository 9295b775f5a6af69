"""Recall of two-stage search, against scoring every video, by the number of candidates.

    python -m benchmarks.candidates --checkpoint run/last.pt --videos run/videos

The benchmark indexes the held-out videos and thousands of videos generated from another seed. It
searches for the held-out captions with each number of candidates, and writes table and picture.
``--toy`` adds a few generated videos only.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xclip_deploy import Retriever, export_bundle
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.search import DEFAULT_CANDIDATES
from xclip_deploy.runtime.theme import write_pngs
from xclip_deploy.training.datasets.generated import SplitSizes, make_videos

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CANDIDATES = (50, 100, 200, 300, 400, 500, 600, 800, 1600)
DISTRACTOR_SEED = 1_000_003
TOY_DISTRACTORS = 4


def main() -> None:
    """Export, index and search, then write table and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True, help="with captions.csv")
    parser.add_argument("--distractors", type=int, default=3000, help="videos to generate")
    parser.add_argument("--toy", action="store_true", help="generate a few videos only")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("candidates-work"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bundle = options.work / "bundle"
    if not bundle.is_dir():
        export_bundle(options.checkpoint, bundle)
    others = options.work / "distractors"
    distractors = TOY_DISTRACTORS if options.toy else options.distractors
    sizes = SplitSizes(train=distractors, val=2, test=2)
    make_videos(others, sizes, seed=DISTRACTOR_SEED, num_workers=2)
    with (options.videos / "captions.csv").open(encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file) if row["split"] == "test"]
    with Retriever(bundle, options.work / "gallery", create=True) as retriever:
        retriever.add([options.videos / "test", others], progress=True)
        result = measure(retriever, captions)
    options.output.mkdir(parents=True, exist_ok=True)
    replace_text(options.output / "candidates.json", json.dumps(result, indent=1) + "\n")
    replace_text(options.output / "candidates.md", table(result))
    draw_candidates(result, options.output / "candidates.png")
    print(table(result))


def measure(retriever: Retriever, captions: list[str]) -> dict[str, Any]:
    """Measure the agreement with exact search for each number of candidates."""
    exact = [[hit.id for hit in hits] for hits in retriever.search_batch(captions, exact=True)]
    points = []
    for candidates in CANDIDATES:
        began_s = time.perf_counter()
        found = [
            [hit.id for hit in hits]
            for hits in retriever.search_batch(captions, exact=False, candidates=candidates)
        ]
        seconds = time.perf_counter() - began_s
        pairs = list(zip(found, exact, strict=True))
        points.append(
            {
                "candidates": candidates,
                "recall_at_10": float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs])),
                "same_first": float(np.mean([a[0] == b[0] for a, b in pairs])),
                "ms_per_query": seconds / len(captions) * 1e3,
            }
        )
    return {"videos": len(retriever), "queries": len(captions), "points": points}


def table(result: dict[str, Any]) -> str:
    """Return a Markdown table with a row for each number of candidates."""
    lines = [
        f"Two-stage against exact search, {result['queries']} captions among {result['videos']:,} "
        f"videos; the default is {DEFAULT_CANDIDATES} candidates. "
        "Written by `python -m benchmarks.candidates`.",
        "",
        "| candidates | recall@10 | same first hit |",
        "|---|---|---|",
    ]
    lines += [
        f"| {point['candidates']} | {point['recall_at_10']:.4f} | {point['same_first']:.1%} |"
        for point in result["points"]
    ]
    return "\n".join(lines) + "\n"


def draw_candidates(result: dict[str, Any], path: Path) -> None:
    """Draw recall against the number of candidates as PNG, light and dark."""
    write_pngs(lambda: _figure(result), path)


def _figure(result: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    x = [point["candidates"] for point in result["points"]]
    for name, label in (("recall_at_10", "recall@10"), ("same_first", "same first hit")):
        axes.plot(x, [point[name] for point in result["points"]], "o-", label=label)
    axes.axvline(DEFAULT_CANDIDATES, color="tab:grey", linestyle=":", label="default")
    axes.axhline(0.99, color="tab:grey", linewidth=0.5)
    axes.set(xscale="log", xlabel="candidates scored in the second stage")
    axes.set_xticks(x)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.tick_params(axis="x", rotation=45)
    axes.set_title(f"Two stages against exact, {result['videos']:,} videos")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
