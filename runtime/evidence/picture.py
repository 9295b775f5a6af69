"""Picture of an explanation: frames over a heat map of similarity to the words."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import as_choice
from xclip_deploy.runtime.evidence.contrast import Contrast
from xclip_deploy.runtime.evidence.explanation import Explanation
from xclip_deploy.runtime.evidence.panel import Panel
from xclip_deploy.runtime.files import replaced_file
from xclip_deploy.runtime.lettering import lettering_for, wrapped
from xclip_deploy.runtime.theme import PALETTES, Theme, drawing_in, require_matplotlib
from xclip_deploy.runtime.video import VideoFrames

_DPI = 110


def draw_explanation(
    explanation: Explanation | Contrast,
    path: str | PathLike[str],
    frames: Sequence[VideoFrames | None] = (),
    notes: Sequence[str | None] = (),
    *,
    theme: Theme = "light",
) -> None:
    """Write a PNG of an explanation, or of a contrast's two, one below the other.

    ``frames``: each video's frames, as ``Retriever.read_video`` reads them; None, or no frames at
    all, gives grey boxes. ``notes``: a line to write below each. ``theme``: a light or dark page.
    :meth:`Retriever.plot_explanation` provides frames and notes. Letters that no installed font
    has are boxes, and a note names them. Raises MissingExtraError without matplotlib,
    InvalidArgumentError if ``path`` cannot be written.
    """
    palette = PALETTES[as_choice("theme", theme, Theme)]
    require_matplotlib("Drawing an explanation")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    title = str(explanation) if isinstance(explanation, Contrast) else ""
    parts = explanation.explanations if isinstance(explanation, Contrast) else (explanation,)
    frames, notes = frames or [None] * len(parts), notes or [None] * len(parts)
    texts = [title, *(text for part in parts for text in _texts(part)), *filter(None, notes)]
    lettering = lettering_for(texts)
    panels = [
        Panel(part, seen, [*([note] if note else []), *lettering.notes], palette, name)
        for part, seen, note, name in zip(parts, frames, notes, _names(parts), strict=True)
    ]
    width = max(panel.width for panel in panels)
    lines = wrapped(title, int(width * 10.5), 4) if title else []
    heights = [panel.height_at(width) for panel in panels]
    with drawing_in(theme, lettering.families), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a note says it
        figure = Figure(
            figsize=(width, sum(heights) + 0.25 * len(lines)), dpi=_DPI, layout="constrained"
        )
        if lines:
            figure.suptitle(
                "\n".join(lines), x=0.01, ha="left", fontsize=11, fontweight="bold",
                parse_math=False,
            )  # fmt: skip
        spaces = figure.subfigures(len(panels), 1, squeeze=False, height_ratios=heights)
        # Both videos share one colour scale and one scale of bars, so that they can be compared.
        values = np.concatenate([panel.similarity.reshape(-1) for panel in panels])
        limits = float(values.min()), float(values.max())
        bars = [
            panel.draw(space, limits, width)
            for panel, space in zip(panels, spaces[:, 0], strict=True)
        ]
        for same in zip(*bars, strict=True):
            _share_scale(same, panels[0].has_frames and same[0] is bars[0][-1])
        try:
            with replaced_file(Path(path)) as partial:
                canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
                canvas.print_png(str(partial))
        except OSError as error:
            raise InvalidArgumentError(f"{path} cannot be written: {error.strerror}") from error


def _share_scale(charts: Sequence[Any], is_upright: bool) -> None:
    """Give charts of two videos one scale. ``is_upright``: whether bars rise, or lie."""
    ends = [chart.get_ylim() if is_upright else chart.get_xlim() for chart in charts]
    limits = min(low for low, _ in ends), max(high for _, high in ends)
    for chart in charts:
        (chart.set_ylim if is_upright else chart.set_xlim)(limits)


def _names(parts: Sequence[Explanation]) -> list[str]:
    """Return file names; whole paths or ids where two videos have the same one."""
    whole = [part.path or part.video_id for part in parts]
    short = [PurePath(name).name or name for name in whole]
    return short if len(set(short)) == len(short) else whole


def _texts(explanation: Explanation) -> list[str]:
    """List the texts of a picture that may be in any script."""
    words = [word.text for word in explanation.words]
    return [explanation.query, explanation.path or explanation.video_id, *words]
