"""Markdown of a run of ``benchmarks.performance``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from benchmarks.measured import Part, Quartiles, Run, Series, speedup
from benchmarks.roofline import bandwidth, peak_flops
from benchmarks.setting import TORCH_FP32
from benchmarks.targets import Goal, goals

QUIET = 0.05
"""Most of the cores that other processes may use in a run that counts as quiet."""


def report(run: Run) -> str:
    """Return the whole page."""
    lines = ["# Performance", "", *_circumstances(run), "", *_goals(run)]
    for part in run.parts:
        lines += ["", *_part(part)]
    return "\n".join(lines) + "\n"


def _circumstances(run: Run) -> Iterator[str]:
    where, settings = run.surroundings, run.settings
    machine = where.machine
    yield (
        "Written by `python -m benchmarks.performance`. Contenders of one task took turns in one "
        "process. Times are medians, with first and third quartile."
    )
    if settings["is_toy"]:
        yield ""
        yield "**Sizes are toys: the numbers say nothing about speed.**"
    busy = [part.name for part in run.parts if (part.others or 0.0) > QUIET]
    if busy:
        yield ""
        yield (
            f"**Other processes used more than {QUIET:.0%} of the cores during {', '.join(busy)}: "
            "times are too long, and ratios and shares may be wrong.**"
        )
    yield ""
    rows = {
        "made": f"{where.created_utc}, commit {where.commit or 'unknown'}",
        "processor": f"{machine['cpu']}, {machine['cores']} cores",
        "instructions": ", ".join(where.flags),
        "caches": ", ".join(f"{name} {size}" for name, size in where.caches.items()),
        "memory": f"{machine['memory_bytes'] / 1e9:.1f} GB",
        "system": machine["system"],
        "load before": " / ".join(map(str, where.load_before)) + " (1, 5 and 15 minutes)",
        "versions": ", ".join(f"{name} {version}" for name, version in where.versions.items()),
        "model": settings["model"],
        "videos": settings["videos"],
        "seed": str(settings["seed"]),
    }
    yield from _table(("", ""), rows.items())
    peaks = {name.upper(): peak_flops(run, name) for name in ("fp32", "bf16")}
    said = [f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items() if peak]
    copied = bandwidth(run)
    if copied:
        said.append(f"memory {copied / 1e9:.1f} GB/s, reading and writing together")
    if said:
        yield ""
        yield f"Peaks of this run: {'; '.join(said)}."


def _goals(run: Run) -> Iterator[str]:
    yield "## Goals"
    yield ""
    yield (
        "A ratio is the median of the ratios of equal rounds. A verdict is within scatter where "
        "the asked number lies between the quartiles."
    )
    yield ""
    header = ("goal", "asked", "found", "verdict")
    yield from _table(header, (_goal(goal) for goal in goals(run)))


def _goal(goal: Goal) -> tuple[str, ...]:
    sign = "≤" if goal.at_most else "≥"
    unit = f" {goal.unit}" if goal.unit else ""
    found = goal.why_not if goal.found is None else scatter(goal.found, 1, unit)
    return goal.name, f"{sign} {goal.asked:g}{unit}", found, goal.verdict


def _part(part: Part) -> Iterator[str]:
    yield f"## {part.name.capitalize()}"
    yield ""
    others = "an unknown share" if part.others is None else f"{part.others:.0%}"
    yield (
        f"Took {part.seconds:.0f} s. Other processes used {others} of the cores meanwhile; the "
        f"load average was {part.load_before:g} before."
    )
    for task, group in groupby(part.series, key=lambda series: series.task):
        yield ""
        yield from _task(task, list(group))
    if part.facts:
        yield ""
        rows = [(name, _fact(value)) for name, value in part.facts.items()]
        yield from _table(("finding", ""), rows)


def _task(task: str, group: Sequence[Series]) -> Iterator[str]:
    references = {each.size: each for each in group if each.contender == TORCH_FP32}
    is_memory = group[0].unit == "bytes"
    items = group[0].item
    has_flops = any(each.flops for each in group)
    header = [task, "size", "MB" if is_memory else "ms", "rounds"]
    if items:
        header.append(f"{items}/s")
    if has_flops:
        header.append("GFLOP/s")
    if references:
        header.append("to PyTorch FP32")
    rows = []
    for each in group:
        middle = each.quartiles
        scale = 1e-6 if is_memory else 1e3
        row = [each.contender, f"{each.size:,g}", scatter(middle, scale), str(len(each.samples))]
        if items:
            row.append(number(each.rate))
        if has_flops:
            row.append(number(each.flops / middle.median / 1e9) if each.flops else "")
        if references:
            reference = references.get(each.size)
            row.append(scatter(speedup(reference, each)) if reference else "")
        rows.append(tuple(row))
    yield from _table(tuple(header), rows)


def scatter(found: Quartiles, scale: float = 1.0, unit: str = "") -> str:
    """Return median and quartiles as text: ``3.41 (3.38–3.47)``."""
    low, median, high = (number(value * scale) for value in found)
    return f"{median}{unit}" if low == high else f"{median}{unit} ({low}–{high})"


def number(value: float) -> str:
    """Return a number with three digits, or all before the point; five near 1."""
    if 0.99 < value < 1:
        return f"{value:.5f}"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def _fact(value: float | str) -> str:
    return value if isinstance(value, str) else number(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
