"""Judge search results by the captions of the videos, in words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

SHOWN = 3
"""Results that are shown of each query."""
_MOST_DIFFERENCES = 3
_MOST_CHARACTERS = 90
"""Differences of a result that are told one by one: how many, and how long together."""


@dataclass(frozen=True)
class Result:
    """A video that a search ranked, and what the video really shows."""

    rank: int
    """Position among all videos, from 1."""
    file: Path
    caption: str
    score: float
    confidence: float | None
    """Confidence of the search, see :class:`SearchResult`."""


@dataclass(frozen=True)
class Evidence:
    """Explanation of the first result's score."""

    summary: str
    pictures: dict[str, Path]
    """Theme -> PNG; empty without matplotlib."""


@dataclass(frozen=True)
class Answer:
    """Results of a search for one query."""

    query: str
    results: tuple[Result, ...]
    """The best results, best first; at least one."""
    right: Result | None
    """The result whose caption is the query; None if no video of the gallery shows it."""
    num_videos: int
    median_score: float
    """Median of the query's scores over all videos."""
    evidence: Evidence

    @property
    def is_right(self) -> bool:
        """True if the first result shows what the query asks for."""
        return not differences(self.query, self.results[0].caption)

    @property
    def verdict(self) -> str:
        """Words that say whether the first result is right, and else what is wrong with it."""
        if self.is_right:
            return "the first result shows exactly this"
        shown = self.results[0].caption
        found = differences(self.query, shown)
        # Many differences are read faster as the other caption.
        is_close = len(found) <= _MOST_DIFFERENCES and len("".join(found)) <= _MOST_CHARACTERS
        what = f"has {' and '.join(found)}" if is_close else f"shows something else, “{shown}”"
        wrong = f"the first result {what}"
        if self.right is None:
            return f"{wrong}; no video of the gallery shows this exactly"
        return f"{wrong}; the right video is at rank {self.right.rank} of {self.num_videos}"


def differences(asked: str, shown: str) -> tuple[str, ...]:
    """Say in which words a video's caption differs from a query; nothing if it does not.

    Case and punctuation are no difference.
    """
    before, after = _words(asked), _words(shown)
    if before == after:
        return ()
    if sorted(before) == sorted(after):
        return ("the same words in another order",)
    return tuple(
        _difference(" ".join(before[a:b]), " ".join(after[c:d]))
        for tag, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        if tag != "equal"
    )


def differing_parts(asked: str, shown: str) -> list[tuple[str, bool]]:
    """Split a caption into runs of text, each with whether the query has other words there.

    The runs joined are the caption.
    """
    spans = [found.span() for found in _WORD.finditer(shown)]
    matcher = SequenceMatcher(None, _words(asked), _words(shown), autojunk=False)
    parts: list[tuple[str, bool]] = []
    end = 0
    for tag, _, _, first, last in matcher.get_opcodes():
        if tag == "equal" or first == last:
            continue
        start, stop = spans[first][0], spans[last - 1][1]
        parts += [(shown[end:start], False), (shown[start:stop], True)]
        end = stop
    return [(text, differs) for text, differs in [*parts, (shown[end:], False)] if text]


_WORD = re.compile(r"[\w'-]+")


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _difference(asked: str, shown: str) -> str:
    if not shown:
        return f"no “{asked}”"
    return f"“{shown}” instead of “{asked}”" if asked else f"also “{shown}”"
