"""Picture of an explanation: frames over a heat map of similarity to the words."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError, MissingExtraError
from xclip_deploy.runtime.evidence.contrast import Contrast
from xclip_deploy.runtime.evidence.explanation import Explanation
from xclip_deploy.runtime.evidence.words import TokenKind
from xclip_deploy.runtime.files import replaced_file
from xclip_deploy.runtime.grains import GRAINS, Grain
from xclip_deploy.runtime.presentation import time_text
from xclip_deploy.runtime.video import VideoFrames

_COLOURS = {grain.value: entry.colour for grain, entry in GRAINS.items()}
_MOMENT = "#d62728"
# Lengths are in inches. Axes are placed by hand, so that thumbnails are square and columns align.
_ROW = 0.27
_LABELS = 1.5
_BARS = 2.3
_WITHOUT = 1.3
_HEAD = 1.75
_FRAME_BARS = 0.9
_FOOT = 0.75
_MAP_WIDTH = 11.0
_DPI = 110


def draw_explanation(
    explanation: Explanation | Contrast,
    path: str | PathLike[str],
    frames: Sequence[VideoFrames | None] = (),
    notes: Sequence[str | None] = (),
) -> None:
    """Write a PNG of an explanation, or of a contrast's two, one below the other.

    ``frames``: each video's frames, as ``Retriever.read_video`` reads them; None, or no frames at
    all, gives grey boxes. ``notes``: a line to write below each.
    :meth:`Retriever.plot_explanation` provides both. Raises MissingExtraError without matplotlib,
    InvalidArgumentError if ``path`` cannot be written.
    """
    title = str(explanation) if isinstance(explanation, Contrast) else None
    parts = explanation.explanations if isinstance(explanation, Contrast) else (explanation,)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "Drawing an explanation") from error
    frames, notes = frames or [None] * len(parts), notes or [None] * len(parts)
    panels = [_Panel(*each) for each in zip(parts, frames, notes, strict=True)]
    width = max(panel.width for panel in panels)
    lines = textwrap.wrap(title, int(width * 11)) if title else []
    top = 0.25 * len(lines) + (0.2 if lines else 0.0)
    figure = Figure(figsize=(width, top + sum(panel.height for panel in panels)), dpi=_DPI)
    page = _Page(figure)
    for number, line in enumerate(lines):
        page.write(0.15, 0.12 + 0.25 * number, line, fontsize=11, fontweight="bold")
    # Both videos share one colour scale, so that they can be compared.
    values = np.concatenate([panel.similarity.reshape(-1) for panel in panels])
    limits = float(values.min()), float(values.max())
    most = max(panel.longest_bar for panel in panels)
    for panel in panels:
        panel.draw_on(page, top, limits, most)
        top += panel.height
    try:
        with replaced_file(Path(path)) as partial, warnings.catch_warnings():
            # Letters that the font lacks are drawn as boxes.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
            canvas.print_png(str(partial))
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be written: {error.strerror}") from error


class _Page:
    """A figure with coordinates in inches from its upper left corner."""

    def __init__(self, figure: Any) -> None:  # noqa: ANN401
        self.figure = figure
        self._width, self._height = figure.get_size_inches()

    def axes(self, left: float, top: float, width: float, height: float) -> Any:  # noqa: ANN401
        place = (
            left / self._width,
            1 - (top + height) / self._height,
            width / self._width,
            height / self._height,
        )
        return self.figure.add_axes(place)

    def write(self, left: float, top: float, text: str, **style: Any) -> None:  # noqa: ANN401
        # A query may hold a dollar sign, which is no formula.
        x, y = left / self._width, 1 - top / self._height
        self.figure.text(x, y, text, va="top", parse_math=False, **style)


class _Panel:
    """One explanation on the page."""

    def __init__(
        self, explanation: Explanation, frames: VideoFrames | None, note: str | None
    ) -> None:
        self.explanation = explanation
        self.frames = frames
        valid = sum(frame.time_s is not None for frame in explanation.frames)
        similarity = explanation.word_frame_similarity
        self.parts = [tuple(frame.points.values()) for frame in explanation.frames[:valid]]
        self.labels = [time_text(frame.time_s or 0.0, 1) for frame in explanation.frames[:valid]]
        self.padded = len(explanation.frames) - valid
        columns = [similarity[:, :valid]]
        if self.padded:  # all together, as their times are none
            rest = explanation.frames[valid:]
            self.parts.append(
                tuple(sum(each.points[name] for each in rest) for name in rest[0].points)
            )
            self.labels.append(f"padding ×{self.padded}")
            columns.append(similarity[:, valid:].max(axis=1, keepdims=True))
        self.valid = valid
        self.similarity: npt.NDArray[np.float64] = np.concatenate(columns, axis=1)
        self.column = min(1.05, max(0.32, _MAP_WIDTH / len(self.labels)))
        self.map_width = max(self.column * len(self.labels), 3.0)
        self.column = self.map_width / len(self.labels)
        # No taller than wide frames need be: a single frame would fill the page.
        self.thumbnail = min(self.column, 1.4)
        self.map_height = _ROW * len(explanation.words)
        self.width = _LABELS + self.map_width + _BARS + _WITHOUT + 0.5
        self.notes = self._notes(note)
        self.height = (
            _HEAD + self.thumbnail + self.map_height + _FRAME_BARS + _FOOT + 0.2 * len(self.notes)
        )

    @property
    def longest_bar(self) -> float:
        words = [tuple(word.points.values()) for word in self.explanation.words]
        return max((abs(value) for parts in (*words, *self.parts) for value in parts), default=0.0)

    def draw_on(self, page: _Page, top: float, limits: tuple[float, float], most: float) -> None:
        self._draw_head(page, top)
        top += _HEAD
        self._draw_thumbnails(page, top)
        top += self.thumbnail
        self._draw_map(page, top, limits)
        left = _LABELS + self.map_width + 0.12
        self._draw_word_bars(page.axes(left, top, _BARS, self.map_height), most)
        self._draw_without(page, left + _BARS + 0.12, top)
        top += self.map_height
        self._draw_frame_bars(page.axes(_LABELS, top + 0.08, self.map_width, _FRAME_BARS), most)
        top += _FRAME_BARS + 0.5
        for line in self.notes:
            page.write(0.15, top, line, fontsize=8, color="0.35")
            top += 0.2

    def _draw_head(self, page: _Page, top: float) -> None:
        explanation = self.explanation
        query = textwrap.shorten(explanation.query, int(self.width * 8), placeholder=" …")
        page.write(0.15, top + 0.08, f"“{query}”", fontsize=13, fontweight="bold")
        name = _shortened(explanation.path or explanation.video_id, int(self.width * 12))
        page.write(0.15, top + 0.38, name, fontsize=8, color="0.35")
        axes = page.axes(_LABELS, top + 0.62, self.width - _LABELS - 0.35, 0.3)
        points = explanation.points
        _stack(axes, 0, list(points.values()), [_COLOURS[name] for name in points], horizontal=True)
        low = sum(min(value, 0) for value in points.values())
        high = sum(max(value, 0) for value in points.values())
        axes.set_xlim(low, max(high, low + 1e-9))
        axes.set_axis_off()
        grains = explanation.decomposition.grains
        step = (self.width - _LABELS - 0.35) / len(points)
        for number, (name, value) in enumerate(points.items()):
            text = f"{Grain(name).spoken} {value:.2f}  ({grains[name]:.3f})"
            place = _LABELS + number * step
            page.write(place, top + 0.98, text, fontsize=9.5, color=_COLOURS[name])
        page.write(0.15, top + 0.68, f"score {explanation.score:.2f} =", fontsize=10.5)

    def _draw_thumbnails(self, page: _Page, top: float) -> None:
        axes = page.axes(_LABELS, top, self.map_width, self.thumbnail)
        half = self.thumbnail / self.column / 2 * 0.97  # of a column: images stay square
        for number in range(len(self.labels)):
            place = (number - half, number + half, 0.015, 0.985)
            if self.frames is not None and number < self.valid:
                axes.imshow(self.frames.frames[number], extent=place, aspect="auto")
            else:
                axes.imshow(np.full((1, 1, 3), 210, np.uint8), extent=place, aspect="auto")
        axes.set_xlim(-0.5, len(self.labels) - 0.5)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.xaxis.tick_top()
        rotation = 0 if self.column >= 0.6 else 60
        axes.set_xticks(range(len(self.labels)), self.labels, fontsize=8, rotation=rotation)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0, pad=7)
        inside = self._frames_of_moment()
        axes.plot(
            [inside[0] - 0.48, inside[-1] + 0.48], [1.035, 1.035], color=_MOMENT, linewidth=4,
            clip_on=False, solid_capstyle="butt",
        )  # fmt: skip
        for label, number in zip(axes.get_xticklabels(), range(len(self.labels)), strict=True):
            if number in inside:
                label.set(color=_MOMENT, fontweight="bold")
        page.write(0.15, top + 0.05, "frames, and the\nbest moment", fontsize=8, color=_MOMENT)

    def _frames_of_moment(self) -> list[int]:
        moment = self.explanation.best_moment
        times = [frame.time_s for frame in self.explanation.frames]
        return [
            number
            for number, time_s in enumerate(times)
            if time_s is not None and moment.start_s <= time_s <= moment.end_s
        ]

    def _draw_map(self, page: _Page, top: float, limits: tuple[float, float]) -> None:
        axes = page.axes(_LABELS, top, self.map_width, self.map_height)
        low, high = limits
        axes.imshow(self.similarity, cmap="Blues", vmin=low, vmax=high, aspect="auto")
        rows, columns = self.similarity.shape
        if self.column >= 0.42:
            middle = (low + high) / 2
            for row in range(rows):
                for column in range(columns):
                    value = self.similarity[row, column]
                    colour = "white" if value > middle else "0.2"
                    axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7,
                              color=colour)  # fmt: skip
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_xticks([])
        axes.set_yticks([])
        missing = self.explanation.missing_words
        for row, word in enumerate(self.explanation.words):
            style: dict[str, Any] = {"color": "black", "fontsize": 10}
            text = _shortened(word.text, 18)
            if word.kind is not TokenKind.WORD:
                count = len(word.positions)
                text = f"[{word.text}]" if count == 1 else f"[{word.text} ×{count}]"
                style = {"color": "0.5", "fontsize": 9, "style": "italic"}
            elif word in missing:
                style["color"] = _MOMENT
            axes.text(-0.5 - 0.08 / self.column, row, text, ha="right", va="center",
                      parse_math=False, **style)  # fmt: skip

    def _draw_word_bars(self, axes: Any, most: float) -> None:  # noqa: ANN401
        words = self.explanation.words
        for row, word in enumerate(words):
            parts = list(word.points.values())
            _stack(axes, row, parts, [_COLOURS[name] for name in word.points], horizontal=True)
            end = sum(max(part, 0) for part in parts)
            axes.text(end + 0.03 * most, row, f"{word.contribution:.2f}", va="center", fontsize=7.5)
        axes.set_ylim(len(words) - 0.5, -0.5)
        ends = [sum(min(part, 0) for part in word.points.values()) for word in words]
        tops = [sum(max(part, 0) for part in word.points.values()) for word in words]
        axes.set_xlim(min(*ends, 0) - 0.02, max(*tops, 1e-9) * 1.35)
        _bare(axes, "points of the score, by word")

    def _draw_without(self, page: _Page, left: float, top: float) -> None:
        page.write(left, top - 0.33, "leaving it out\nchanges the score", fontsize=8.5)
        for row, word in enumerate(self.explanation.words):
            if word.score_without is None:
                continue
            change = word.score_without - self.explanation.score
            found = word not in self.explanation.missing_words
            text = f"{change:+.2f}" + ("" if found else "  nothing found")
            place = top + _ROW * (row + 0.2)
            page.write(left, place, text, fontsize=8, color="0.2" if found else _MOMENT)

    def _draw_frame_bars(self, axes: Any, most: float) -> None:  # noqa: ANN401
        colours = [_COLOURS[name] for name in self.explanation.frames[0].points]
        for number, parts in enumerate(self.parts):
            _stack(axes, number, list(parts), colours, horizontal=False)
            end = sum(max(part, 0) for part in parts)
            axes.text(number, end + 0.03 * most, f"{sum(parts):.2f}", ha="center", fontsize=7.5)
        tops = [sum(max(part, 0) for part in parts) for parts in self.parts]
        ends = [sum(min(part, 0) for part in parts) for parts in self.parts]
        axes.set_xlim(-0.5, len(self.parts) - 0.5)
        axes.set_ylim(min(*ends, 0) - 0.02, max(*tops, 1e-9) * 1.3)
        axes.set_xticks([])
        axes.set_yticks([])
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_position("zero")
        axes.text(-0.5 - 0.08 / self.column, 0, "points of the\nscore, by frame", ha="right",
                  va="bottom", fontsize=8.5)  # fmt: skip

    def _notes(self, note: str | None) -> list[str]:
        explanation = self.explanation
        moment = explanation.best_moment
        decomposition = explanation.decomposition
        grains = decomposition.grains
        lines = [
            f"best moment, by similarity of frame and sentence: {moment}.",
            "bars: points of the score, in the colours of the grains above (in brackets as the "
            f"scorer gives them; the score is {decomposition.score_scale:.4g} times their "
            f"mean).{_whole(grains)}",
            "map: similarity of word and frame, the largest of a word's tokens.",
        ]
        if not any(GRAINS[Grain(name)].reads_words for name in grains):
            lines.append("this model's score compares no words: the map is no part of it")
        if explanation.missing_words:
            lines[2] += " Nothing found: without the word the score would be no lower."
        if note:
            lines.append(note)
        return [part for line in lines for part in textwrap.wrap(line, int(self.width * 16))]


def _whole(grains: Iterable[str]) -> str:
    """Name the grains that belong to no single word or frame."""
    entries = [(Grain(name), GRAINS[Grain(name)]) for name in grains]
    names = [
        grain.spoken for grain, entry in entries if not entry.reads_words and not entry.reads_frames
    ]
    if not names:
        return ""
    listed = " and ".join(names)
    verb = "belongs" if len(names) == 1 else "belong"
    return f" {listed[0].upper()}{listed[1:]} {verb} to no single word or frame."


def _stack(
    axes: Any,  # noqa: ANN401
    place: float,
    values: Sequence[float],
    colours: Sequence[str],
    *,
    horizontal: bool,
) -> None:
    """Draw one bar of several parts; negative parts extend the other way."""
    for (start, end), colour in zip(_spans(values), colours, strict=True):
        if horizontal:
            axes.barh(place, end - start, 0.7, left=start, color=colour)
        else:
            axes.bar(place, end - start, 0.6, bottom=start, color=colour)


def _spans(values: Sequence[float]) -> list[tuple[float, float]]:
    """Return the start and end of each part of a stacked bar."""
    ends = [0.0, 0.0]  # end of the positive parts, end of the negative parts
    spans = []
    for value in values:
        side = int(value < 0)
        spans.append((ends[side], ends[side] + value))
        ends[side] += value
    return spans


def _bare(axes: Any, title: str) -> None:  # noqa: ANN401
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_position("zero")
    axes.set_title(title, fontsize=8.5, pad=4, loc="left")


def _shortened(text: str, most: int) -> str:
    """Shorten a text from its start: the end distinguishes paths and long words."""
    return text if len(text) <= most else f"…{text[1 - most :]}"
