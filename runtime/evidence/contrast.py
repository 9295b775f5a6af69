"""Explanation of the order of two videos for a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from xclip_deploy.runtime.evidence.explanation import Explanation, plain_part
from xclip_deploy.runtime.evidence.words import TokenKind
from xclip_deploy.runtime.grains import Grain
from xclip_deploy.runtime.presentation import brief, time_text


@dataclass(frozen=True)
class WordContrast:
    """A word's contribution to the first video's score less that to the second's, in points."""

    text: str
    kind: TokenKind
    points: dict[str, float]
    """Name of each known grain that reads words -> points; 0 where the model lacks the grain."""

    @property
    def contribution(self) -> float:
        """Points, of all grains that the word has a part in."""
        return sum(self.points.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and numbers, for JSON."""
        return plain_part(self) | {"kind": self.kind.value}


@dataclass(frozen=True)
class FrameContrast:
    """The contribution of a frame of either video to the difference, in points.

    Frames of two videos have no counterparts. A frame of the second video counts with its
    contribution to its own score, negated.
    """

    video_id: str
    time_s: float | None
    points: dict[str, float]
    """Name of each known grain that reads frames -> points; 0 where the model lacks the grain."""

    @property
    def contribution(self) -> float:
        """Points, of all grains that the frame has a part in."""
        return sum(self.points.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and numbers, for JSON."""
        return plain_part(self)


@dataclass(frozen=True, eq=False)
class Contrast:
    """An explanation of the difference of two videos' scores. ``str()`` puts it into words.

    The differences of the grains add up to :attr:`difference`. The difference of a grain that
    reads words is the sum over :attr:`words`; of one that reads frames, over :attr:`frames`.
    """

    first: Explanation
    second: Explanation

    @property
    def explanations(self) -> tuple[Explanation, Explanation]:
        """Both explanations, the first video's first."""
        return self.first, self.second

    @property
    def query(self) -> str:
        """The text that both were scored for."""
        return self.first.query

    @property
    def difference(self) -> float:
        """Score of the first less that of the second."""
        return self.first.score - self.second.score

    @property
    def grains(self) -> dict[str, float]:
        """Grain name to its part of the difference, in points."""
        second = self.second.points
        return {name: points - second[name] for name, points in self.first.points.items()}

    @property
    def words(self) -> tuple[WordContrast, ...]:
        """Every word of the text, start, end and padding included."""
        return tuple(
            WordContrast(
                word.text,
                word.kind,
                {name: points - other.points[name] for name, points in word.points.items()},
            )
            for word, other in zip(self.first.words, self.second.words, strict=True)
        )

    @property
    def frames(self) -> tuple[FrameContrast, ...]:
        """Every frame of both videos, padding included."""
        return tuple(
            FrameContrast(
                each.video_id,
                frame.time_s,
                {name: sign * points for name, points in frame.points.items()},
            )
            for each, sign in ((self.first, 1.0), (self.second, -1.0))
            for frame in each.frames
        )

    def __repr__(self) -> str:
        first, second = self.first.video_id, self.second.video_id
        return brief(self, query=self.query, first=first, second=second, difference=self.difference)

    def __str__(self) -> str:
        upper, lower, sign = self.first, self.second, 1.0
        if self.difference < 0:
            upper, lower, sign = self.second, self.first, -1.0
        gap = abs(self.difference)
        names = _short_names(upper.video_id, lower.video_id)
        scores = f"({upper.score:.2f} against {lower.score:.2f})"
        if gap < 0.005:
            return f"{names[0]} and {names[1]} score the same {scores}"
        grain, share = max(self.grains.items(), key=lambda item: sign * item[1])
        line = (
            f"{names[0]} ranks above {names[1]} by {gap:.2f} {scores}, most of all by "
            f"{Grain(grain).spoken} ({sign * share:+.2f})"
        )
        # A reader can look for real words alone, though start and end can weigh more.
        words = [word for word in self.words if word.kind is TokenKind.WORD]
        word = max(words, key=lambda word: sign * word.contribution, default=None)
        if word is not None and sign * word.contribution > 0:
            line += f"; of the words by “{word.text}” ({sign * word.contribution:+.2f})"
        both = {word.positions for word in upper.missing_words}
        missing = [word.text for word in lower.missing_words if word.positions not in both]
        if missing:
            listed = ", ".join(f"“{text}”" for text in missing)
            line += f"; {names[1]} scores no lower without {listed}"
        return f"{line}; see {names[0]} at {time_text(upper.best_moment.best_frame_time_s, 1)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and numbers, for JSON."""
        return {
            "query": self.query,
            "summary": str(self),
            "difference": self.difference,
            "grains": self.grains,
            "words": [word.to_dict() for word in self.words],
            "frames": [frame.to_dict() for frame in self.frames],
            "first": self.first.to_dict(),
            "second": self.second.to_dict(),
        }


def _short_names(first: str, second: str) -> tuple[str, str]:
    """Return file names in place of paths if they differ."""
    names = PurePath(first).name, PurePath(second).name
    return names if all(names) and names[0] != names[1] else (first, second)
