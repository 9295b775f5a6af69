"""Table and picture of ``benchmarks/galleries.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xclip_deploy.runtime.theme import write_pngs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Result = dict[str, Any]
METHODS = {
    "exact": "exact",
    "flat": "two-stage, flat",
    "unwarmed": "two-stage, index, without warm_up()",
    "indexed": "two-stage, index",
}


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table with a row for each size."""
    lines = [
        "Galleries of synthetic features, D = 512, F = 12; "
        f"{results[0]['candidates']} candidates in two stages; text encoding excluded; "
        "milliseconds a query, median / 99th percentile; memory of the process before and after "
        "warm_up(). "
        "Written by `python -m benchmarks.galleries`.",
        "",
        "| videos | written in | optimised in | kB a video | open | exact | two-stage, flat "
        "| recall@10 | two-stage, index | after warm_up() | recall@10 | memory | warm_up() |",
        "|---" * 13 + "|",
    ]
    for result in results:
        cells = [
            f"{result['videos']:,}",
            f"{result['write_s']:.0f} s",
            f"{result['optimize_s']:.0f} s",
            f"{result['bytes_per_video'] / 1e3:.1f}",
            f"{result['open_s'] * 1e3:.0f} ms",
            quantiles(result["exact_ms"]),
            quantiles(result["flat_ms"]),
            f"{result['flat_recall_at_10']:.3f}",
            quantiles(result["unwarmed_ms"]),
            quantiles(result["indexed_ms"]),
            f"{result['indexed_recall_at_10']:.3f}",
            f"{result['unwarmed_resident_bytes'] / 1e9:.2f} / "
            f"{result['indexed_resident_bytes'] / 1e9:.2f} GB",
            f"{result['warm_up_s']:.1f} s",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Recall@10 of the two-stage search with index, by candidates:", ""]
    candidates = [point["candidates"] for point in results[0]["curve"]]
    lines.append("| videos | " + " | ".join(map(str, candidates)) + " |")
    lines.append("|---" * (len(candidates) + 1) + "|")
    for result in results:
        points = [f"{point['recall_at_10']:.3f}" for point in result["curve"]]
        lines.append(f"| {result['videos']:,} | " + " | ".join(points) + " |")
    return "\n".join(lines) + "\n"


def quantiles(times_ms: Sequence[float]) -> str:
    """Return median and 99th percentile as text."""
    middle, high = np.percentile(times_ms, [50, 99])
    return f"{middle:.1f} / {high:.1f}"


def draw_galleries(results: Sequence[Result], path: Path) -> None:
    """Draw latency and memory by size, and recall by candidates as PNG, light and dark."""
    write_pngs(lambda: _figure(results), path)


def _figure(results: Sequence[Result]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(13, 4), layout="constrained")
    latency, memory, recall = figure.subplots(1, 3)
    sizes = [result["videos"] for result in results]
    for name, label in METHODS.items():
        middles = [np.median(result[f"{name}_ms"]) for result in results]
        highs = [np.percentile(result[f"{name}_ms"], 99) for result in results]
        (line,) = latency.plot(sizes, middles, "o-", label=label)
        latency.fill_between(sizes, middles, highs, color=line.get_color(), alpha=0.15)
        gigabytes = [result[f"{name}_resident_bytes"] / 1e9 for result in results]
        memory.plot(sizes, gigabytes, "o-", label=label)
    latency.set(xscale="log", yscale="log", xlabel="videos", ylabel="ms a query")
    latency.set_title("Latency: median, shaded to the 99th percentile")
    memory.set(xscale="log", xlabel="videos", ylabel="GB", ylim=0)
    memory.set_title("Most memory of the process until then")
    for result in results:
        points = result["curve"]
        x = [point["candidates"] for point in points]
        y = [point["recall_at_10"] for point in points]
        recall.plot(x, y, "o-", label=f"{result['videos']:,} videos")
    recall.set(xscale="log", xlabel="candidates scored in the second stage")
    recall.set_xticks([point["candidates"] for point in results[0]["curve"]])
    recall.xaxis.set_major_formatter(ScalarFormatter())
    recall.minorticks_off()
    recall.tick_params(axis="x", rotation=45)
    recall.set_title("Recall@10 of two stages with index")
    for axes in (latency, memory, recall):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right" if axes is recall else "upper left")
    latency.set_ylim(top=latency.get_ylim()[1] * 10)  # room for the legend
    memory.set_ylim(top=memory.get_ylim()[1] * 1.4)
    return figure
