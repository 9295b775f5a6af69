"""Picture of search results: a grid of thumbnails with rank, times, score and name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.files import replaced_file
from xclip_deploy.runtime.lettering import lettering_for
from xclip_deploy.runtime.presentation import time_text
from xclip_deploy.runtime.theme import Palette, Theme, drawing_in, require_matplotlib

# Lengths are in inches.
_WIDTH = 2.6
_PICTURE = _WIDTH * 9 / 16
_TEXT = 0.48
_GAP = 0.18
_MARGIN = 0.2
_HEAD = 0.5
_NOTE = 0.25
_DPI = 110
_TITLE, _SUBTITLE = 10.0, 8.5  # points
MAX_CELLS = 400
"""Most results of one picture."""


@dataclass(frozen=True)
class GridCell:
    """One result of the picture."""

    rgb: NDArray[np.uint8] | None
    """Thumbnail ``[height, width, 3]``; None gives a grey box with :attr:`reason`."""
    title: str
    """First line, such as rank, times and score."""
    subtitle: str = ""
    """Second line, such as the name of the video. It is shortened in the middle."""
    reason: str = "no picture"
    """Why there is no thumbnail."""

    @classmethod
    def of(
        cls,
        rgb: NDArray[np.uint8] | None,
        rank: int,
        score: float,
        name: str,
        start_s: float | None = None,
        end_s: float | None = None,
        reason: str = "no picture",
    ) -> GridCell:
        """Make the cell of a result. ``start_s`` and ``end_s``: None for a whole video."""
        times = ""
        if start_s is not None and end_s is not None:
            times = f" {time_text(start_s, 1)} – {time_text(end_s, 1)} ·"
        return cls(rgb, f"{rank}.{times} {score:.2f}", name, reason)


def plot_results(
    cells: Sequence[GridCell],
    path: str | PathLike[str],
    *,
    title: str = "",
    columns: int | None = None,
    theme: Theme = "light",
) -> None:
    """Write a PNG of results, the best first, in rows.

    Args:
        cells: Results, 400 at most.
        path: File to write.
        title: Line above all, such as the query.
        columns: Number of columns; by default up to five.
        theme: A light or a dark page.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InvalidArgumentError: there is no result or there are too many, or ``path`` cannot be
            written.
    """
    if not 1 <= len(cells) <= MAX_CELLS:
        raise InvalidArgumentError(f"found {len(cells)} results to draw; expected 1 to {MAX_CELLS}")
    if columns is not None and columns < 1:
        raise InvalidArgumentError(f"columns is {columns}; expected at least 1")
    require_matplotlib("Drawing results")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(columns or (5 if len(cells) > 4 else len(cells)), len(cells))
    down = math.ceil(len(cells) / across)
    head = _HEAD if title else 0.0
    wide = max(across, 3) if title else across  # a title needs room
    width = 2 * _MARGIN + wide * _WIDTH + (wide - 1) * _GAP
    height = 2 * _MARGIN + head + down * (_PICTURE + _TEXT) + (down - 1) * _GAP
    texts = [title, *(text for cell in cells for text in (cell.title, cell.subtitle))]
    lettering = lettering_for(texts)
    height += _NOTE * len(lettering.notes)
    with drawing_in(theme, lettering.families) as palette, warnings.catch_warnings():
        # Letters that no installed font has are boxes, of which a note tells.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure = Figure(figsize=(width, height), dpi=_DPI)
        canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
        page = _Page(figure, canvas, width, height, palette)
        if title:
            page.write(_MARGIN, _MARGIN + 0.2, title, width - 2 * _MARGIN, 12.5, weight="bold")
        for number, cell in enumerate(cells):
            row, column = divmod(number, across)
            left = _MARGIN + column * (_WIDTH + _GAP)
            top = _MARGIN + head + row * (_PICTURE + _TEXT + _GAP)
            page.draw(cell, left, top)
        for number, note in enumerate(reversed(lettering.notes)):
            bottom = height - _MARGIN - number * _NOTE
            page.write(_MARGIN, bottom, note, width - 2 * _MARGIN, _SUBTITLE, color=palette.quiet)
        try:
            with replaced_file(Path(path)) as partial:
                canvas.print_png(str(partial))
        except OSError as error:
            raise InvalidArgumentError(f"{path} cannot be written: {error.strerror}") from error


class _Page:
    """A figure with coordinates in inches from its upper left corner."""

    def __init__(
        self,
        figure: Any,  # noqa: ANN401
        canvas: Any,  # noqa: ANN401
        width: float,
        height: float,
        palette: Palette,
    ) -> None:
        self._figure, self._renderer = figure, canvas.get_renderer()
        self._width, self._height = width, height
        self._palette = palette

    def draw(self, cell: GridCell, left: float, top: float) -> None:
        """Draw a cell whose upper left corner is given."""
        place = (
            left / self._width,
            1 - (top + _PICTURE) / self._height,
            _WIDTH / self._width,
            _PICTURE / self._height,
        )
        from matplotlib.patches import Rectangle

        axes = self._figure.add_axes(place)
        axes.set_axis_off()
        box = Rectangle((0, 0), 16, 9, color=self._palette.empty, linewidth=0, zorder=-1)
        axes.add_patch(box)
        if cell.rgb is not None:
            # Pictures of other proportions stand in the middle of the box.
            height, width = cell.rgb.shape[:2]
            scale = min(16 / width, 9 / height)
            x, y = width * scale / 2, height * scale / 2
            extent = (8 - x, 8 + x, 4.5 - y, 4.5 + y)
            axes.imshow(cell.rgb, extent=extent, aspect="auto", interpolation="antialiased")
        axes.set_xlim(0, 16)
        axes.set_ylim(0, 9)
        if cell.rgb is None:
            reason = self._fitted(cell.reason, _WIDTH * 0.9, _SUBTITLE)
            middle = (left + _WIDTH / 2) / self._width, 1 - (top + _PICTURE / 2) / self._height
            self._figure.text(
                *middle, reason, ha="center", va="center", fontsize=_SUBTITLE, parse_math=False
            )  # fmt: skip
        self.write(left, top + _PICTURE + 0.19, cell.title, _WIDTH, _TITLE, weight="bold")
        ink = self._palette.quiet
        self.write(left, top + _PICTURE + 0.38, cell.subtitle, _WIDTH, _SUBTITLE, color=ink)

    def write(
        self,
        left: float,
        top: float,
        text: str,
        width: float,
        size: float,
        **style: Any,  # noqa: ANN401
    ) -> None:
        """Write one line on a baseline, shortened in the middle to a width."""
        line = self._fitted(text, width, size, **style)
        x, y = left / self._width, 1 - top / self._height
        # A name may hold a dollar sign, which is no formula.
        self._figure.text(x, y, line, va="baseline", fontsize=size, parse_math=False, **style)

    def _fitted(self, text: str, width: float, size: float, **style: Any) -> str:  # noqa: ANN401
        """Return a line that is no wider than ``width``, an ellipsis in its middle."""
        from xclip_deploy.runtime.presentation import printable

        line = printable(" ".join(text.split()))
        fits, too_long = 1, len(line)
        if self._measured(line[:1000], size, **style) <= width and too_long <= 1000:
            return line
        while fits + 1 < too_long:
            count = (fits + too_long) // 2
            if self._measured(_shortened(line, count), size, **style) <= width:
                fits = count
            else:
                too_long = count
        return _shortened(line, fits)

    def _measured(self, line: str, size: float, **style: Any) -> float:  # noqa: ANN401
        """Return the width of a line, inches."""
        drawn = self._figure.text(0, 0, line, fontsize=size, parse_math=False, **style)
        try:
            return float(drawn.get_window_extent(self._renderer).width) / _DPI
        finally:
            drawn.remove()


def _shortened(line: str, count: int) -> str:
    """Keep ``count`` characters of a line, an ellipsis in the middle among them."""
    if len(line) <= count:
        return line
    end = (count - 1) // 2
    return f"{line[: count - 1 - end]}…{line[len(line) - end :]}"
