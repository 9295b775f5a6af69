"""Draw a benchmark as a PNG file."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xclip_deploy.runtime.benchmark.results import ITEMS, Benchmark, Measurement, readable
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.presentation import cut, printable
from xclip_deploy.runtime.theme import PALETTES, Palette, Theme, require_matplotlib, write_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE_LABELS = {
    Graph.VIDEO_ENCODER: "videos in a run",
    Graph.TEXT_ENCODER: "texts in a run",
    Graph.SCORER: "videos scored for one text",
}


def draw_benchmark(benchmark: Benchmark, path: Path, theme: Theme = "light") -> None:
    """Draw latency, throughput and memory into a PNG file, for a light or a dark page.

    Raises MissingExtraError without matplotlib, and InvalidArgumentError where the file cannot be
    written.
    """
    require_matplotlib("Drawing a benchmark")
    write_png(lambda: _figure(benchmark, PALETTES[theme]), path, theme)


def _figure(benchmark: Benchmark, palette: Palette) -> Figure:
    from matplotlib.figure import Figure

    graphs = [
        graph for graph in Graph if any(found.graph is graph for found in benchmark.measurements)
    ]
    figure = Figure(figsize=(13, 1.6 + 3.2 * len(graphs)), layout="constrained")
    rows = figure.subplots(len(graphs), 3, squeeze=False)
    for graph, axes in zip(graphs, rows, strict=True):
        found = [each for each in benchmark.measurements if each.graph is graph]
        _draw_latency(benchmark, found, axes[0], palette)
        _draw_bars(benchmark, found, axes[1], "items_per_s")
        _draw_bars(benchmark, found, axes[2], "peak_mb")
        axes[0].set(title=f"{graph.value}: latency", ylabel="ms a run")
        axes[1].set(title=f"{graph.value}: throughput", ylabel=f"{ITEMS[graph]} a second")
        axes[2].set(title=f"{graph.value}: peak memory", ylabel="MB")
        for each in axes:
            each.set_xlabel(_SIZE_LABELS[graph])
            each.grid(axis="y", alpha=0.3)
            each.set_axisbelow(True)
    handles, labels = rows[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    # Names of folders are no formulas, whatever dollar signs they have.
    figure.suptitle(_title(benchmark), fontsize=10, parse_math=False)
    return figure


def _draw_latency(
    benchmark: Benchmark,
    found: list[Measurement],
    axes: Any,  # noqa: ANN401
    palette: Palette,
) -> None:
    """Draw p50 as a dot, a thick line up to p90 and a thin one up to p99."""
    axes.set_yscale("log")  # replaces the locators
    ticker = importlib.import_module("matplotlib.ticker")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: readable(value))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    for position, each, color in _placed(benchmark, found, axes):
        p50, p90, p99 = (each.percentile_s(percent) * 1e3 for percent in (50, 90, 99))
        axes.plot([position, position], [p50, p99], color=color, linewidth=1)
        axes.plot([position, position], [p50, p90], color=color, linewidth=4, alpha=0.5)
        axes.plot([position], [p50], color=color, marker="o", markersize=7)
        place = {"textcoords": "offset points", "va": "center", "fontsize": 8}
        axes.annotate(readable(p50), (position, p50), (7, 0), **place)
    axes.annotate(
        "dot p50, thick to p90, thin to p99", (0.02, 0.98), xycoords="axes fraction", va="top",
        fontsize=7, color=palette.quiet,
    )  # fmt: skip


def _draw_bars(benchmark: Benchmark, found: list[Measurement], axes: Any, what: str) -> None:  # noqa: ANN401
    width = 0.8 / len(benchmark.sessions)
    named = set()
    for position, each, color in _placed(benchmark, found, axes):
        height = each.items_per_s if what == "items_per_s" else (each.peak_memory_bytes or 0) / 1e6
        label = None if each.session in named else each.session
        named.add(each.session)
        bars = axes.bar([position], [height], width * 0.9, color=color, label=label)
        axes.bar_label(bars, fmt=readable, fontsize=8)
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter("{x:,g}")


def _placed(
    benchmark: Benchmark,
    found: list[Measurement],
    axes: Any,  # noqa: ANN401
) -> list[tuple[float, Measurement, str]]:
    """Give each measurement a place on the x axis, beside those of its size, and a colour."""
    sizes = sorted({each.size for each in found})
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    numbers = {session.name: number for number, session in enumerate(benchmark.sessions)}
    width = 0.8 / len(numbers)
    return [
        (
            sizes.index(each.size) + (numbers[each.session] - (len(numbers) - 1) / 2) * width,
            each,
            f"C{numbers[each.session] % 10}",
        )
        for each in found
        if each.error is None
    ]


def _title(benchmark: Benchmark) -> str:
    machine = benchmark.machine
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 2**30:.0f} GiB"
    gpus = "".join(f", {name}" for name in machine.gpus)
    load = f"load {machine.load_average:g} before"
    versions = ", ".join(f"{name} {version}" for name, version in benchmark.versions.items())
    return "\n".join(
        (
            cut(printable(f"{benchmark.bundle}: {benchmark.model}"), 300),
            f"{machine.cpu}, {machine.cores} cores{memory}{gpus} ({load}), {machine.system}",
            f"{versions}; {benchmark.created_utc}",
        )
    )
