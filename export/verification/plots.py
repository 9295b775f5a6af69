"""Draw the figures of a verification report. The first use imports matplotlib."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.export.verification.certificate import RunComparison
from xclip_deploy.export.verification.differences import ERROR_EDGES, Differences
from xclip_deploy.export.verification.measuring import MeasuredRuns
from xclip_deploy.export.verification.rankings import DEPTH, RankComparison
from xclip_deploy.runtime.theme import PALETTES, Theme, drawing_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = "#888888"
"""Colour of lines beside the data, which shows on light and dark pages."""
MOST_POINTS = 20_000
_STYLE: Any = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def colour(run: int) -> str:
    """Return the colour of the n-th run, the same in every figure of a theme."""
    return f"C{run}"


def error_distributions(measurement: MeasuredRuns, comparisons: Sequence[RunComparison]) -> Figure:
    """Draw a histogram of absolute errors for every output, with all runs."""
    from matplotlib.ticker import NullLocator

    keys = list(dict.fromkeys(key for run in measurement.measured for key in run.differences))
    columns = 3
    rows = max(1, -(-len(keys) // columns))
    figure, grid = _figure(rows, columns, 10, 2.0 * rows + 0.5)
    for axes, key in zip(grid, keys, strict=False):
        limits = []
        for run, measured in enumerate(measurement.measured):
            if key not in measured.differences:
                continue  # the run broke off before
            (record,) = (r for r in comparisons[run].tensors if (r.graph, r.tensor) == key)
            _histogram(axes, measured.differences[key], colour(run))
            axes.axvline(record.allowed_error, color=colour(run), linestyle="--", linewidth=1)
            limits.append(_error_limits(measured.differences[key], record.allowed_error))
        axes.set_xscale("log")
        axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
        axes.set_ylim(bottom=0)
        _title(axes, f"{key[0].value} · {key[1]}")
        axes.set_yticks([])
        axes.xaxis.set_minor_locator(NullLocator())
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(keys) - columns) : len(keys)]:
        axes.set_xlabel("absolute error")
    _legend(figure, comparisons)
    return figure


def score_scatter(measurement: MeasuredRuns, comparisons: Sequence[RunComparison]) -> Figure | None:
    """Draw every run's logits and their errors over the reference's; None without logits."""
    shown = [
        (number, measured.logits.reshape(-1))
        for number, measured in enumerate(measurement.measured)
        if measured.logits is not None
    ]
    if not shown:
        return None
    figure, grid = _figure(len(shown), 2, 10, 2.9 * len(shown))
    expected = measurement.reference_logits.reshape(-1)
    chosen = _sample(expected.size)
    before = expected[chosen].astype(np.float64)
    limits = (float(before.min()), float(before.max()))
    for row, (number, logits) in enumerate(shown):
        left, right = grid[2 * row], grid[2 * row + 1]
        after = logits[chosen].astype(np.float64)
        left.plot(limits, limits, color=_GREY, linewidth=0.8, zorder=0)
        _dots(left, before, after, colour(number))
        _title(left, comparisons[number].run.name)
        left.set_ylabel("score, logits")
        tolerance = comparisons[number].tolerance
        typical = tolerance.score * measurement.score_scale
        allowed = tolerance.outlier_factor * typical
        floor = typical * 1e-5
        errors = np.maximum(np.abs(after - before), floor)
        _dots(right, before, errors, colour(number))
        right.axhline(allowed, color=_GREY, linestyle="--", linewidth=1)
        right.axhline(typical, color=_GREY, linestyle=":", linewidth=1)
        right.set_yscale("log")
        right.set_ylim(floor / 2, 3 * max(allowed, float(np.nanmax(errors))))
        right.set_ylabel("absolute error, logits")
        _title(right, f"error; allowed: {allowed:.2g} for one (dashed), RMS {typical:.2g} (dotted)")
        left.set_xlabel("score of the reference, logits")
        right.set_xlabel("score of the reference, logits")
    return figure


def rank_moves(
    comparisons: Sequence[RunComparison], ranks: Sequence[RankComparison | None]
) -> Figure | None:
    """Draw the ranks in each run of the reference's first ten; None without finite scores."""
    shown = [
        (comparison, rank)
        for comparison, rank in zip(comparisons, ranks, strict=True)
        if rank is not None
    ]
    if not shown:
        return None
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure, grid = _figure(rows, columns, 5 * columns, 3.9 * rows)
    for axes, (comparison, rank) in zip(grid, shown, strict=False):
        _heat_map(axes, rank.moves)
        _title(axes, f"{comparison.run.name}: % of the texts")
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    return figure


def as_picture(draw: Callable[[], Figure | None], description: str) -> str | None:
    """Draw a figure for light pages and for dark ones; return a ``picture`` element of both.

    ``draw``: makes the figure with matplotlib's settings as they are. Returns None if it does.
    """
    found = {theme: _as_svg(draw, theme) for theme in PALETTES}
    light, dark = found["light"], found["dark"]
    if light is None or dark is None:
        return None
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{description}" src="{light}"></picture>'
    )


def _as_svg(draw: Callable[[], Figure | None], theme: Theme) -> str | None:
    """Return a figure as an SVG in a data URL."""
    import matplotlib as mpl

    # A fixed salt gives the same figure the same bytes every time.
    with drawing_in(theme), mpl.rc_context({**_STYLE, "svg.hashsalt": "xclip-deploy"}):
        figure = draw()
        if figure is None:
            return None
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnail(frame: npt.NDArray[np.uint8]) -> str:
    """Return an ``img`` element that holds a small picture, uint8 RGB [s, s, 3]."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG")
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="frame" alt="" src="data:image/png;base64,{content}">'


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure without pyplot's global state, and return it with its axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, list(grid.reshape(-1))


def _dots(
    axes: Axes, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], dot_colour: str
) -> None:
    size = 20 if x.size < 500 else 7
    # Rasterise the dots: thousands of shapes make a page slow.
    axes.scatter(x, y, s=size, alpha=0.5, linewidths=0, color=dot_colour, rasterized=True)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=_STYLE["font.size"])


def _histogram(axes: Axes, differences: Differences, line_colour: str) -> None:
    total = differences.histogram.sum()
    if total:
        axes.stairs(differences.histogram / total, ERROR_EDGES, color=line_colour, linewidth=1.2)
        axes.stairs(
            differences.histogram / total, ERROR_EDGES, color=line_colour, fill=True, alpha=0.15
        )


def _error_limits(differences: Differences, allowed: float) -> tuple[float, float]:
    """Return the limits of an axis that holds nearly all errors and the allowed one."""
    low, high = allowed / 10, allowed
    filled = differences.histogram
    if filled.any():
        share = np.cumsum(filled) / filled.sum()
        low = min(low, float(ERROR_EDGES[np.searchsorted(share, 0.005)]))
        high = max(high, float(ERROR_EDGES[np.flatnonzero(filled)[-1] + 1]))
    return low, high * 2


def _heat_map(axes: Axes, moves: npt.NDArray[np.int64]) -> None:
    depth = len(moves)
    shares = 100 * moves / max(1, moves[0].sum())
    ranks = [str(rank) for rank in range(1, depth + 1)]
    columns = [*ranks, "later"]
    if depth < DEPTH:  # the rows are all videos, so none is further down
        shares, columns = shares[:, :depth], ranks
    import matplotlib as mpl
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    is_dark = to_hex(mpl.rcParams["axes.facecolor"]) == PALETTES["dark"].page
    palette = PALETTES["dark" if is_dark else "light"]
    shades = LinearSegmentedColormap.from_list("shares", [palette.page, palette.high])
    axes.imshow(shares, cmap=shades, vmin=0, vmax=100, aspect="auto")
    for row in range(depth):
        for column in range(len(columns)):
            share = shares[row, column]
            if share:
                text = "<1" if share < 1 else ">99" if 99 < share < 100 else f"{share:.0f}"
                ink = "white" if (share > 50) != is_dark else "black"
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=7)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(depth), ranks)
    axes.set_xlabel("rank here")
    axes.set_ylabel("rank in the reference")
    axes.tick_params(length=0)


def _legend(figure: Figure, comparisons: Sequence[RunComparison]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour(run), label=comparison.run.name)
        for run, comparison in enumerate(comparisons)
    ]
    handles.append(Line2D([], [], color=_GREY, linestyle="--", label="allowed"))
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=4,
        fontsize=_STYLE["legend.fontsize"],
        frameon=False,
    )


def _sample(total: int) -> npt.NDArray[np.int64]:
    """Choose at most ``MOST_POINTS`` points, the same on every call."""
    if total <= MOST_POINTS:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).choice(total, MOST_POINTS, replace=False))
