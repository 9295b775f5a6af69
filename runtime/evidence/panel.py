"""One explanation in a picture: grains, frames, heat map, words and their effect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from xclip_deploy.runtime.arrays import Float64Array
from xclip_deploy.runtime.evidence.explanation import Explanation
from xclip_deploy.runtime.evidence.words import TokenKind
from xclip_deploy.runtime.grains import GRAINS, Grain
from xclip_deploy.runtime.lettering import middle_cut, wrapped
from xclip_deploy.runtime.presentation import time_text
from xclip_deploy.runtime.theme import Palette
from xclip_deploy.runtime.video import VideoFrames

_COLOURS = {grain.value: entry.colour for grain, entry in GRAINS.items()}
# Lengths are in inches. They set the size of the page and the shares of its rows and columns;
# matplotlib's constrained layout places axes, labels and titles.
_ROW = 0.27
_LABELS = 1.6
_BARS = 2.1
_GRAIN = 0.24
_FRAME_BARS = 1.0
_MAP_WIDTH = 11.0
_GAPS = 1.1
_NOTE = 0.18
_LEAST_FOR_NUMBERS = 0.42
_WORD = 18
"""Longest word of a label, in letters."""


class Panel:
    """One explanation and its place in a picture."""

    def __init__(
        self,
        explanation: Explanation,
        frames: VideoFrames | None,
        notes: Sequence[str],
        palette: Palette,
        name: str = "",
    ) -> None:
        """Lay out the panel. ``name``: heading for the video; by default its path or id."""
        self._name = name or explanation.path or explanation.video_id
        self.explanation = explanation
        self.frames = frames
        self.palette = palette
        valid = sum(frame.time_s is not None for frame in explanation.frames)
        similarity = explanation.word_frame_similarity
        self.parts = [dict(frame.points) for frame in explanation.frames[:valid]]
        self.labels = [time_text(frame.time_s or 0.0, 1) for frame in explanation.frames[:valid]]
        columns = [similarity[:, :valid]]
        if valid < len(explanation.frames):  # all together, as their times are none
            rest = explanation.frames[valid:]
            self.parts.append(
                {name: sum(each.points[name] for each in rest) for name in rest[0].points}
            )
            self.labels.append(f"padding ×{len(rest)}")
            columns.append(similarity[:, valid:].max(axis=1, keepdims=True))
        self.valid = valid
        self.similarity: Float64Array = np.concatenate(columns, axis=1)
        grains = [Grain(name) for name in explanation.points]
        self.has_words = any(GRAINS[grain].reads_words for grain in grains)
        self.has_frames = any(GRAINS[grain].reads_frames for grain in grains)
        count = len(self.labels)
        self.column = min(1.05, max(0.32, _MAP_WIDTH / count))
        self.map_width = max(self.column * count, 3.2)
        self.column = self.map_width / count
        # No taller than wide frames need be: a single frame would fill the page.
        self.thumbnail = min(self.column * 0.94, 1.4)
        self.width = _LABELS + self.map_width + _BARS * (1 + self.has_words) + 0.6
        self._notes = list(notes)

    def height_at(self, width: float) -> float:
        """Return the height on a page of this width, inches."""
        rows = sum(self._rows())
        head = 0.27 * len(self._query(width)) + 0.2
        return rows + head + _GAPS + 0.35 * self.has_frames + _NOTE * len(self._lines(width))

    def draw(self, space: Any, limits: tuple[float, float], width: float) -> list[Any]:  # noqa: ANN401
        """Draw into a subfigure; return its axes with bars, which another panel may share.

        ``limits``: similarities of the map's first and last colour.
        """
        space.suptitle(
            "\n".join(self._query(width)), x=0.01, ha="left", fontsize=13, fontweight="bold",
            parse_math=False,
        )  # fmt: skip
        space.supxlabel(
            "\n".join(self._lines(width)), x=0.01, ha="left", fontsize=8,
            color=self.palette.quiet, parse_math=False,
        )  # fmt: skip
        widths = [self.map_width, *([_BARS] if self.has_words else []), _BARS]
        heights = self._rows()
        grid = space.add_gridspec(
            len(heights), len(widths), width_ratios=widths, height_ratios=heights
        )
        frames = space.add_subplot(grid[1, 0])
        chart = space.add_subplot(grid[2, 0], sharex=frames)
        grains = space.add_subplot(grid[0, :])
        self._draw_grains(grains, width)
        self._draw_thumbnails(frames)
        self._draw_map(chart, limits)
        beside = [space.add_subplot(grid[2, n], sharey=chart) for n in range(1, len(widths))]
        for axes in beside:
            axes.tick_params(labelleft=False)  # the map beside them has the labels
        if self.has_words:
            self._draw_word_bars(beside[0])
        self._draw_without(beside[-1])
        if self.has_frames:
            by_frame = space.add_subplot(grid[3, 0], sharex=frames)
            self._draw_frame_bars(by_frame)
            return [grains, *beside, by_frame]
        return [grains, *beside]

    def _rows(self) -> list[float]:
        """Return the heights of the rows of axes, inches."""
        grains = _GRAIN * len(self.explanation.points) + 0.1
        rows = [grains, self.thumbnail + 0.1, _ROW * len(self.explanation.words)]
        return [*rows, _FRAME_BARS] if self.has_frames else rows

    def _query(self, width: float) -> list[str]:
        return wrapped(f"“{' '.join(self.explanation.query.split())}”", int(width * 8), 3)

    def _draw_grains(self, axes: Any, width: float) -> None:  # noqa: ANN401
        explanation = self.explanation
        points = explanation.points
        name = middle_cut(self._name, int((width - _LABELS) * 10) - 16)
        axes.set_title(
            f"{name}: score {explanation.score:.2f}", loc="left", fontsize=9.5, parse_math=False
        )
        grains = explanation.decomposition.grains
        labels = [f"{Grain(each).spoken} ({grains[each]:.3f})" for each in points]
        for row, (each, value) in enumerate(points.items()):
            axes.barh(row, value, 0.7, color=_COLOURS[each])
            _number(axes, value, row, value)
        axes.margins(x=0.12)
        axes.set_yticks(range(len(points)), labels, fontsize=9)
        axes.set_ylim(len(points) - 0.4, -0.6)
        _zero_line(axes, self.palette)

    def _draw_thumbnails(self, axes: Any) -> None:  # noqa: ANN401
        from matplotlib.offsetbox import AnnotationBbox, OffsetImage

        empty = np.full((2, 2, 3), np.array(_rgb(self.palette.empty)))
        side = self.thumbnail * 72  # points
        for number in range(len(self.labels)):
            is_seen = self.frames is not None and number < self.valid
            picture = self.frames.frames[number] if self.frames and is_seen else empty
            box = OffsetImage(picture, zoom=side / max(picture.shape[:2]), resample=True)
            # Of a fixed size, so that frames stay square whatever the layout makes of the axes.
            placed = AnnotationBbox(box, (number, 0.5), frameon=False, pad=0, annotation_clip=False)
            placed.set_in_layout(False)
            axes.add_artist(placed)
        inside = self._frames_of_moment()
        half = self.thumbnail / self.column / 2
        axes.plot(
            [inside[0] - half, inside[-1] + half], [1.03, 1.03], color=self.palette.accent,
            linewidth=4, clip_on=False, solid_capstyle="butt",
        )  # fmt: skip
        self._label_frames(axes)
        for number, tick in enumerate(axes.get_xticklabels()):
            if number in inside:
                tick.set(color=self.palette.accent, fontweight="bold")
        moment = self.explanation.best_moment
        axes.set_title(
            f"best moment {time_text(moment.start_s, 1)} to {time_text(moment.end_s, 1)}, "
            f"best frame {time_text(moment.best_frame_time_s, 1)}",
            loc="left", pad=11, fontsize=9, color=self.palette.accent,
        )  # fmt: skip
        axes.set_xlim(-0.5, len(self.labels) - 0.5)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        _no_frame(axes)

    def _label_frames(self, axes: Any) -> None:  # noqa: ANN401
        """Write the times under the frames. Axes that share them get the same labels."""
        times = [frame.time_s for frame in self.explanation.frames]
        best = times.index(self.explanation.best_frame_time_s)
        is_narrow = self.column < 0.75
        labels = [
            f"{label}\nbest frame" if number == best and not is_narrow else label
            for number, label in enumerate(self.labels)
        ]
        axes.set_xticks(range(len(labels)), labels, fontsize=8, rotation=90 if is_narrow else 0)

    def _frames_of_moment(self) -> list[int]:
        moment = self.explanation.best_moment
        times = [frame.time_s for frame in self.explanation.frames]
        return [
            number
            for number, time_s in enumerate(times)
            if time_s is not None and moment.start_s <= time_s <= moment.end_s
        ]

    def _draw_map(self, axes: Any, limits: tuple[float, float]) -> None:  # noqa: ANN401
        low, high = limits
        shades = self.palette.shade((self.similarity - low) / max(high - low, 1e-9))
        axes.imshow(shades, aspect="auto")
        rows, columns = self.similarity.shape
        if self.column >= _LEAST_FOR_NUMBERS:
            for row in range(rows):
                for column in range(columns):
                    axes.text(
                        column, row, _two_places(self.similarity[row, column]), ha="center",
                        va="center", fontsize=7, color=self.palette.ink_on(shades[row, column]),
                        in_layout=False,
                    )  # fmt: skip
        axes.set_xlim(-0.5, columns - 0.5)
        axes.tick_params(axis="x", bottom=False, labelbottom=False)
        labels = []
        for word in self.explanation.words:
            text = middle_cut(word.text, _WORD)
            if word.kind is not TokenKind.WORD:
                count = len(word.positions)
                text = f"[{text}]" if count == 1 else f"[{text} ×{count}]"
            labels.append(text)
        axes.set_yticks(range(rows), labels, fontsize=9.5, parse_math=False)
        missing = self.explanation.missing_words
        for word, tick in zip(self.explanation.words, axes.get_yticklabels(), strict=True):
            if word.kind is not TokenKind.WORD:
                tick.set(color=self.palette.quiet, fontsize=8.5, style="italic")
            elif word in missing:
                tick.set_color(self.palette.accent)
        axes.set_title("similarity of word and frame", loc="left", fontsize=8.5)
        _no_frame(axes)

    def _draw_word_bars(self, axes: Any) -> None:  # noqa: ANN401
        words = self.explanation.words
        for row, word in enumerate(words):
            _stack(axes, row, word.points, horizontal=True)
        ends = [_span(word.points) for word in words]
        for row, (word, (low, high)) in enumerate(zip(words, ends, strict=True)):
            value = word.contribution
            _number(axes, low if value < 0 else high, row, value)
        axes.margins(x=0.3)
        axes.set_title("points by word", loc="left", fontsize=8.5)
        _zero_line(axes, self.palette)

    def _draw_without(self, axes: Any) -> None:  # noqa: ANN401
        explanation = self.explanation
        missing, unfound = explanation.missing_words, explanation.unfound_words
        for row, word in enumerate(explanation.words):
            if word.score_without is None:
                continue
            change = word.score_without - explanation.score
            accent = self.palette.accent if word in missing else self.palette.quiet
            axes.barh(row, change, 0.6, color=accent)
            _number(axes, change, row, change)
            if word in unfound:  # left of zero, where such a word has no bar
                axes.annotate(
                    "nothing found", (0, row), xytext=(-4, 0), textcoords="offset points",
                    ha="right", va="center", fontsize=7.5, color=self.palette.accent,
                    in_layout=False,
                )  # fmt: skip
        axes.margins(x=0.35)
        low, high = axes.get_xlim()
        reach = max(-low, high)
        # Room on both sides of zero, also where every change has the same sign.
        axes.set_xlim(min(low, -0.6 * reach), max(high, 0.35 * reach))
        axes.set_title("change without the word", loc="left", fontsize=8.5)
        _zero_line(axes, self.palette)

    def _draw_frame_bars(self, axes: Any) -> None:  # noqa: ANN401
        for number, parts in enumerate(self.parts):
            _stack(axes, number, parts, horizontal=False)
        if self.column >= _LEAST_FOR_NUMBERS:
            for number, parts in enumerate(self.parts):
                low, high = _span(parts)
                total = sum(parts.values())
                place = (number, low if total < 0 else high)
                axes.annotate(
                    _two_places(total), place, xytext=(0, -2 if total < 0 else 2),
                    textcoords="offset points", ha="center", va="top" if total < 0 else "bottom",
                    fontsize=7.5, in_layout=False,
                )  # fmt: skip
        axes.margins(y=0.25)
        axes.set_yticks([])
        axes.tick_params(axis="x", length=0, labelsize=8)
        axes.axhline(0, color=self.palette.quiet, linewidth=0.8, clip_on=False)
        axes.set_ylabel("points\nby frame", rotation=0, ha="right", va="center", fontsize=8.5)
        self._label_frames(axes)
        for spine in axes.spines.values():
            spine.set_visible(False)

    def _lines(self, width: float) -> list[str]:
        explanation = self.explanation
        decomposition = explanation.decomposition
        grains = decomposition.grains
        lines = [
            f"best moment, by similarity of frame and sentence: {explanation.best_moment}.",
            "bars: points of the score, by grain; in brackets the grain as the scorer gives it. "
            f"The score is {decomposition.score_scale:.4g} times the mean of the grains."
            + _whole(grains),
            "map: the largest similarity of a word's tokens to a frame.",
        ]
        if not self.has_words:
            lines[2] += " This model's score compares no words: the map is no part of it."
        if explanation.missing_words:
            lines[2] += " Red: without the word the score would be no lower."
        if explanation.unfound_words:
            lines[2] += " Nothing found: the word adds no points either."
        lines += self._notes
        return [part for line in lines for part in wrapped(line, int(width * 15), 4)]


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
    parts: dict[str, float],
    *,
    horizontal: bool,
) -> None:
    """Draw one bar of several grains; negative parts extend the other way."""
    ends = [0.0, 0.0]  # end of the positive parts, end of the negative parts
    for name, value in parts.items():
        side = int(value < 0)
        if horizontal:
            axes.barh(place, value, 0.7, left=ends[side], color=_COLOURS[name])
        else:
            axes.bar(place, value, 0.6, bottom=ends[side], color=_COLOURS[name])
        ends[side] += value


def _span(parts: dict[str, float]) -> tuple[float, float]:
    """Return the ends of a stacked bar: the sum of its negative parts, and of the positive."""
    values = parts.values()
    return sum(min(value, 0.0) for value in values), sum(max(value, 0.0) for value in values)


def _number(axes: Any, end: float, row: float, value: float) -> None:  # noqa: ANN401
    """Write a value beside the end of its bar, away from zero."""
    is_below = value < 0
    axes.annotate(
        _two_places(value, "+"), (end, row), xytext=(-3 if is_below else 3, 0), in_layout=False,
        textcoords="offset points", ha="right" if is_below else "left", va="center", fontsize=7.5,
    )  # fmt: skip


def _zero_line(axes: Any, palette: Palette) -> None:  # noqa: ANN401
    """Mark zero, which bars extend from to both sides."""
    axes.axvline(0, color=palette.quiet, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _two_places(value: float, sign: str = "-") -> str:
    """Return a number with two decimals; what rounds to zero has no minus."""
    return f"{round(float(value), 2) + 0.0:{sign}.2f}"


def _no_frame(axes: Any) -> None:  # noqa: ANN401
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)
