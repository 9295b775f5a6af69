"""Moments as they are read: queries with their times, and the videos that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.captions import collapse
from xclip_deploy.runtime.datasets.split import SplitVideo

Span: TypeAlias = tuple[float, float]
"""Start and end of a moment in its video, seconds."""

MAX_TIME_S = 1e6
"""Latest time in annotations: eleven days."""
MAX_SPANS = 1000
"""Most spans of one query."""


@dataclass(frozen=True)
class MomentQuery:
    """One sentence, and where its video shows what it says."""

    id: int | str
    """Id in the annotations. Evaluators match predictions by it."""
    text: str
    """The sentence; whitespace is collapsed."""
    video_id: str
    """Id of the right video."""
    spans: tuple[Span, ...]
    """Times of the moment, one span for each annotator; at least one."""


@dataclass(frozen=True)
class AnnotatedMoments:
    """Moments of one split, before their files are looked for."""

    queries: tuple[MomentQuery, ...]
    prefixes: tuple[str, ...] = ()
    """Prefixes that a file's name may have before the id of its video."""


@dataclass(frozen=True, eq=False)
class MomentSplit:
    """Videos and the moments in them that sentences describe."""

    name: str
    """Dataset and split, such as ``didemo/test``."""
    dataset: str
    """Name of the dataset. It decides which metrics are reported."""
    videos: tuple[SplitVideo, ...]
    """Videos without repetition, in the order of the annotations."""
    queries: tuple[MomentQuery, ...]
    """Queries in the order of the annotations. Their videos are all in ``videos``."""
    missing: tuple[str, ...] = ()
    """Ids of annotated videos without a file. They and their queries are left out."""


class MomentCollector:
    """Queries gathered while a file is read, each checked."""

    def __init__(self, path: Path) -> None:
        self._path = path  # for messages
        self._queries: dict[int | str, MomentQuery] = {}

    def add(
        self, query_id: object, text: str, video_id: str, spans: Sequence[Span], place: str
    ) -> None:
        """Note a query.

        Args:
            query_id: Id, a whole number or a text.
            text: The sentence as written.
            video_id: Name that the dataset gives the video.
            spans: Times as checked by :func:`span_of`.
            place: Place in the file. Messages name it.

        Raises:
            AnnotationError: The id is of another kind or occurs twice, the sentence is empty or
                no Unicode, the video has no name, or there is no span.
        """
        if isinstance(query_id, bool) or not isinstance(query_id, (int, str)):
            raise AnnotationError(f"{place}: the id is {query_id!r:.60}; expected a number or text")
        if query_id in self._queries:
            raise AnnotationError(f"{place}: id {query_id!r:.60} occurs twice; expected it once")
        sentence = collapse(text)
        if not sentence:
            raise AnnotationError(f"{place}: the sentence is empty; expected text")
        if any("\ud800" <= character <= "\udfff" for character in sentence + video_id):
            raise AnnotationError(f"{place}: holds half a character; expected Unicode text")
        if not video_id:
            raise AnnotationError(f"{place}: the video's name is empty; expected one")
        if not 1 <= len(spans) <= MAX_SPANS:
            raise AnnotationError(f"{place}: {len(spans)} times; expected 1 to {MAX_SPANS}")
        self._queries[query_id] = MomentQuery(query_id, sentence, video_id, tuple(spans))

    def queries(self) -> tuple[MomentQuery, ...]:
        """Return the queries in the order in which they came. Raises AnnotationError for none."""
        if not self._queries:
            raise AnnotationError(f"{self._path}: holds no moment; expected at least one")
        return tuple(self._queries.values())


def number_of(value: object, place: str, least_s: float = 0.0) -> float:
    """Return a time in seconds, ``least_s`` to ``MAX_TIME_S``. Raises AnnotationError."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not least_s <= value <= MAX_TIME_S:  # type: ignore[operator]
        raise AnnotationError(
            f"{place}: the time is {value!r:.60}; expected seconds, {least_s:.0f} to "
            f"{MAX_TIME_S:.0f}"
        )
    return float(value)  # type: ignore[arg-type]


def span_of(start: object, end: object, place: str) -> Span:
    """Return start and end of a moment. Raises AnnotationError for an end not after the start."""
    span = number_of(start, place), number_of(end, place)
    if span[0] >= span[1]:
        raise AnnotationError(
            f"{place}: from {span[0]:g} to {span[1]:g} s; expected an end after the start"
        )
    return span
