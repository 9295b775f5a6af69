"""Compare two runs of ``benchmarks.performance`` and flag what became slower beyond noise.

    python -m benchmarks.compare before.json after.json

A series regressed where two findings agree. The interval of the ratio of medians, from a bootstrap
of both runs' samples, lies above 1. The middle halves of both runs do not overlap. The confidence
of all intervals together is 95 %. Both limits come from the samples' own scatter.

The samples of one run do not show how runs differ by the machine's load. ``--relative`` compares
ratios to PyTorch in the same round instead, for the tasks where PyTorch took part. On another
machine only these compare.

Exit status: 0 without a regression, 1 with one, 2 where the files do not compare.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from benchmarks.measured import FEWEST, Key, Run, Series, quartiles
from benchmarks.setting import TORCH_FP32

DRAWS = 10_000
CONFIDENCE = 0.95
Verdict = Literal["slower", "faster", "no difference", "too few samples"]


@dataclass(frozen=True)
class Comparison:
    """One series of both runs."""

    key: Key
    is_yardstick: bool
    ratio: float
    """Median after by median before; above 1 is worse."""
    low: float
    """Lower end of the ratio's interval."""
    high: float
    verdict: Verdict

    @property
    def is_regression(self) -> bool:
        """True if the product became worse."""
        return self.verdict == "slower" and not self.is_yardstick


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--relative", action="store_true", help="compare ratios to PyTorch")
    options = parser.parse_args(arguments)
    try:
        before, after = Run.read(options.before), Run.read(options.after)
        check_alike(before, after, relative=options.relative)
        found = compare(before, after, relative=options.relative)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(found, before, after))
    return int(any(each.is_regression for each in found))


def check_alike(before: Run, after: Run, *, relative: bool) -> None:
    """Raise ValueError where the runs measured different things, or on different machines."""
    for name in ("model", "videos", "is_toy"):
        have, want = after.settings[name], before.settings[name]
        if have != want:
            raise ValueError(f"the runs differ in {name}: {want!r} before, {have!r} after")
    if not relative and before.surroundings.place != after.surroundings.place:
        raise ValueError(
            f"the runs are of different machines: {before.surroundings.place[:2]} before, "
            f"{after.surroundings.place[:2]} after; compare ratios, by --relative"
        )


def compare(before: Run, after: Run, *, relative: bool = False) -> list[Comparison]:
    """Compare every series that both runs have. Raises ValueError where they share none."""
    earlier, later = (_samples(run, relative=relative) for run in (before, after))
    kinds = {series.key: series.is_yardstick for series in after.series}
    shared = [key for key in later if key in earlier]
    if not shared:
        raise ValueError("the runs have no series in common; expected equal parts and sizes")
    confidence = 1 - (1 - CONFIDENCE) / len(shared)  # Bonferroni's correction
    return [_compare_one(key, kinds[key], earlier[key], later[key], confidence) for key in shared]


def _samples(run: Run, *, relative: bool) -> dict[Key, tuple[float, ...]]:
    """Return the samples of every series; ratios to PyTorch's of the same round if ``relative``."""
    if not relative:
        return {series.key: series.samples for series in run.series}
    references = {
        (series.task, series.size): series
        for series in run.series
        if series.contender == TORCH_FP32
    }
    return {
        series.key: _ratios(series, references[series.task, series.size])
        for series in run.series
        if series.contender != TORCH_FP32 and (series.task, series.size) in references
    }


def _ratios(series: Series, reference: Series) -> tuple[float, ...]:
    pairs = zip(series.samples, reference.samples, strict=True)
    return tuple(mine / other for mine, other in pairs)


def _compare_one(
    key: Key,
    is_yardstick: bool,
    before: tuple[float, ...],
    after: tuple[float, ...],
    confidence: float,
) -> Comparison:
    rng = np.random.default_rng(0)
    ratios = _medians(after, rng) / _medians(before, rng)
    edge = (1 - confidence) / 2
    # Ends that were drawn: between two samples, interpolation would invent one.
    low = float(np.quantile(ratios, edge, method="lower"))
    high = float(np.quantile(ratios, 1 - edge, method="higher"))
    old, new = quartiles(before), quartiles(after)
    verdict: Verdict = "no difference"
    if min(len(before), len(after)) < FEWEST:
        verdict = "too few samples"
    elif low > 1 and new.low > old.high:
        verdict = "slower"
    elif high < 1 and new.high < old.low:
        verdict = "faster"
    return Comparison(key, is_yardstick, new.median / old.median, low, high, verdict)


def _medians(samples: tuple[float, ...], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the medians of draws from the samples, with replacement."""
    values = np.array(samples)
    draws = values[rng.integers(0, len(values), (DRAWS, len(values)))]
    medians: npt.NDArray[np.float64] = np.median(draws, axis=1)
    return medians


def table(found: Iterable[Comparison], before: Run, after: Run) -> str:
    """Return a Markdown table, and what to think of it in a line or two."""
    found = list(found)
    lines = [
        "| task | size | contender | after / before | interval | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        task, size, contender = each.key
        name = f"{contender} (yardstick)" if each.is_yardstick else contender
        interval = f"{each.low:.3f}–{each.high:.3f}"
        lines.append(
            f"| {task} | {size:,g} | {name} | {each.ratio:.3f} | {interval} | {each.verdict} |"
        )
    regressions = [each for each in found if each.is_regression]
    moved = [each for each in found if each.is_yardstick and each.verdict in ("slower", "faster")]
    unshared = len({s.key for s in before.series} ^ {s.key for s in after.series})
    lines.append("")
    lines.append(f"{len(regressions)} of {len(found)} series became slower beyond noise.")
    if unshared:
        lines.append(f"{unshared} series are in one of the runs alone and were not compared.")
    if moved:
        lines.append(
            f"{len(moved)} yardsticks changed too, which this code does not touch: the machine "
            "was loaded differently. Compare ratios, by --relative."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
