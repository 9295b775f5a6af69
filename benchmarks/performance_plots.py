"""Plots of a run of ``benchmarks.performance``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.encoders import ONE_TEXT, VIDEO
from benchmarks.indexing import INDEXING, STAGES
from benchmarks.measured import Run, Series
from benchmarks.roofline import bandwidth, peak_flops
from benchmarks.scoring import PAIRS
from benchmarks.searching import DISK, MEMORY
from xclip_deploy.runtime.theme import write_pngs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STAGE_NAMES = {
    "encoding_s": "encoding, wall",
    "own_cpu_s": "indexing process, CPU",
    "decoders_cpu_s": "decoders, CPU",
}
_MARKS = {VIDEO: "o", ONE_TEXT: "s", PAIRS: "^"}


def draw(run: Run, path: Path) -> None:
    """Draw throughput, latency, stages and roofline as PNG, light and dark.

    A part that was not measured stays empty.
    """
    write_pngs(lambda: _figure(run), path)


def _figure(run: Run) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 10), layout="constrained")
    throughput, latency, stages, roofline = figure.subplots(2, 2).flat
    _throughput(throughput, run)
    _latency(latency, run)
    _stages(stages, run)
    _roofline(roofline, run)
    for axes in (throughput, latency, stages, roofline):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
            axes.legend(fontsize=7, **(beside if axes is roofline else {}))
    return figure


def _throughput(axes: Axes, run: Run) -> None:
    axes.set_title("Video encoder: throughput against batch")
    axes.set(xlabel="videos in a run", ylabel="videos/s")
    for name, group in _by_contender(run.find(VIDEO)):
        _line(axes, name, group, lambda series, seconds: series.work / seconds)
    axes.set_ylim(bottom=0)


def _latency(axes: Axes, run: Run) -> None:
    axes.set_title("Search: latency against size of the gallery")
    axes.set(xlabel="videos", ylabel="ms a query", xscale="log", yscale="log")
    for task in (MEMORY, DISK):
        for name, group in _by_contender(run.find(task)):
            _line(axes, f"{name}, {task[7:]}", group, lambda _, seconds: seconds * 1e3)


def _stages(axes: Axes, run: Run) -> None:
    axes.set_title("Indexing: time by stage (stages overlap)")
    axes.set(xlabel="s")
    part = run.part("indexing")
    found = [] if part is None else [each for each in part.series if each.task == INDEXING]
    names = ["all, wall", *_STAGE_NAMES.values()]
    for place, name in enumerate(names):
        values = []
        for series in found:
            assert part is not None
            stage = part.facts.get(f"{series.contender}, {('', *STAGES)[place]}")
            values.append(series.quartiles.median if place == 0 else float(stage or 0.0))
        places = np.arange(len(found)) + 0.2 * (place - 1.5)
        axes.barh(places, values, height=0.18, label=name)
    axes.set_yticks(range(len(found)), [series.contender for series in found])
    axes.invert_yaxis()


def _roofline(axes: Axes, run: Run) -> None:
    axes.set_title("Roofline; peaks measured in this run")
    axes.set(xlabel="FLOP a byte of least traffic", ylabel="GFLOP/s", xscale="log", yscale="log")
    intensities = np.logspace(0, 4, 100)
    copied = bandwidth(run)
    for name in ("fp32", "bf16"):
        peak = peak_flops(run, name)
        if peak is None or copied is None:
            continue
        roof = np.minimum(peak, intensities * copied)
        axes.plot(intensities, roof / 1e9, label=f"{name.upper()}: {peak / 1e9:.0f} GFLOP/s")
    colours: dict[str, str] = {}
    for task, mark in _MARKS.items():
        for name, group in _by_contender(run.find(task)):
            points = [
                (series.flops / series.traffic_bytes, series.flops / series.quartiles.median / 1e9)
                for series in group
                if series.flops and series.traffic_bytes
            ]
            if not points:
                continue
            colour = colours.setdefault(name, f"C{len(colours) + 2}")
            fill = "none" if group[0].is_yardstick else colour
            # The line joins sizes of runs, of which the smallest is at the left.
            x, y = zip(*points, strict=True)
            axes.plot(x, y, f"{mark}-", color=colour, mfc=fill, linewidth=0.6, markersize=5)
    for name, colour in colours.items():
        axes.plot([], [], "-", color=colour, linewidth=3, label=name)
    for task, mark in _MARKS.items():
        axes.plot([], [], mark, color="tab:grey", mfc="none", markersize=5, label=task)


def _by_contender(series: list[Series]) -> list[tuple[str, list[Series]]]:
    names = dict.fromkeys(each.contender for each in series)
    return [(name, [each for each in series if each.contender == name]) for name in names]


def _line(
    axes: Axes, name: str, group: list[Series], value: Callable[[Series, float], float]
) -> None:
    """Draw the medians of a contender by size, shaded between the quartiles."""
    sizes = [series.size for series in group]
    low, middle, high = zip(
        *([value(series, seconds) for seconds in series.quartiles] for series in group),
        strict=True,
    )
    style = "o--" if group[0].is_yardstick else "o-"
    (line,) = axes.plot(sizes, middle, style, label=name, markersize=3)
    axes.fill_between(sizes, low, high, color=line.get_color(), alpha=0.15)
