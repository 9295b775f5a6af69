"""Options of a search: one record, and the keywords that make it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, TypedDict, TypeVar

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import (
    as_choice,
    as_number,
    as_share,
    as_text,
    as_truth,
    as_whole_number,
)
from xclip_deploy.runtime.presentation import parse_time
from xclip_deploy.runtime.search.near_identical import NEAR_IDENTICAL
from xclip_deploy.runtime.search.query_bank import QueryBank

Grouping = Literal["video", "moment"]
DEFAULT_CANDIDATES = 300
MAX_PER_VIDEO = 1000
_MOST = 1 << 31
_MAX_TIME_S = 1e9
_Function = TypeVar("_Function", bound=Callable[..., Any])


class SimilarityKeywords(TypedDict, total=False):
    """Keywords of searches by a video or an image; see :class:`SearchOptions`."""

    where: str | None
    offset: int
    min_score: float | None
    deduplicate: bool | float
    exact: bool | None
    candidates: int
    group: Grouping
    per_video: int
    nms: float | None
    within: str | None
    from_s: float | str | None
    to_s: float | str | None
    refine: bool
    confidence: bool
    min_confidence: float | None


class SearchKeywords(SimilarityKeywords, total=False):
    """Keywords of searches by text; see :class:`SearchOptions`."""

    query_bank: QueryBank | None


@dataclass(frozen=True)
class SearchOptions:
    """The options of one search. Raises InvalidArgumentError for invalid values."""

    k: int = 10
    """Most hits."""
    where: str | None = None
    """SQL expression over metadata and ``duration_s``, ``id``, ``num_frames``:
    ``duration_s < 30 and source = 'cam1'``."""
    offset: int = 0
    """Hits to skip, for paging."""
    min_score: float | None = None
    """Least score of a hit; None keeps every hit."""
    deduplicate: bool | float = False
    """Cosine from which the lower of two hits is left out and named in the better one. It compares
    the frame embeddings at equal places of both videos. True means 0.995. Of long videos, the best
    moments are compared, with ``group="video"`` too: what was found is shown once. A video with the
    same scene is left out even if it differs elsewhere; ``near_identical`` names it."""
    exact: bool | None = None
    """True scores every video by the whole scorer; False uses two stages; None chooses by size
    and measured cost."""
    candidates: int = DEFAULT_CANDIDATES
    """Videos that the second stage scores; at least four times ``offset + k``. Where long videos
    have several segments, so many segments, at least four times ``k``. More are scored if they
    hold too few videos."""
    query_bank: QueryBank | None = None
    """Texts to calibrate scores with; see :class:`QueryBank`."""
    group: Grouping = "video"
    """``video`` ranks videos by their best moment; ``moment`` ranks moments, several of one video
    too."""
    per_video: int = 3
    """Most moments of one video in a hit of ``group="video"``, the best one included. They come
    from the segments that were scored."""
    nms: float | None = 0.5
    """Temporal IoU above which the lower of two moments of one video is suppressed. None or 1
    suppresses none. With ``group="moment"``, suppressed moments follow all others, so that paging
    reaches them."""
    within: str | None = None
    """Id or path of the one video to search, or its file name if no other video has that name."""
    from_s: float | str | None = None
    """Search only moments that end after this time of their video: seconds, or a text such as
    ``1:02:03.5``. A video that is one segment counts from 0 to its duration."""
    to_s: float | str | None = None
    """Search only moments that begin before this time, likewise."""
    refine: bool = True
    """Whether hits of a gallery with segments get a refined ``range``. It reads the neighbouring
    segments of each hit: about 5 ms for ten hits in a gallery too large for memory."""
    confidence: bool = False
    """Whether hits get a calibrated confidence; :mod:`xclip_deploy.runtime.search.confidence` says
    what it means. It costs up to 1,024 more scores."""
    min_confidence: float | None = None
    """Least confidence of a hit, from 0 to 1; None keeps every hit."""

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("offset", 0), ("candidates", 1)):
            value = as_whole_number(name, getattr(self, name), least, _MOST)
            object.__setattr__(self, name, value)
        if self.where is not None:
            as_text("where", self.where)
        if self.min_score is not None:
            object.__setattr__(self, "min_score", as_number("min_score", self.min_score))
        if not isinstance(self.deduplicate, bool):
            as_number("deduplicate", self.deduplicate)
            if not 0 < self.deduplicate <= 1:
                raise InvalidArgumentError(
                    f"deduplicate is {self.deduplicate}: expected a cosine above 0, 1 at most"
                )
        if self.exact is not None:
            as_truth("exact", self.exact)
        if self.query_bank is not None and not isinstance(self.query_bank, QueryBank):
            raise InvalidArgumentError(
                f"query_bank is a {type(self.query_bank).__name__}; expected what "
                "retriever.query_bank(texts) gives"
            )
        self._check_moments()

    def _check_moments(self) -> None:
        as_choice("group", self.group, Grouping)
        per_video = as_whole_number("per_video", self.per_video, 1, MAX_PER_VIDEO)
        object.__setattr__(self, "per_video", per_video)
        if self.nms is not None:
            nms = as_number("nms", self.nms)
            if not 0 < nms <= 1:
                raise InvalidArgumentError(
                    f"nms is {nms:g}: expected a temporal IoU above 0, 1 at most, or None"
                )
            object.__setattr__(self, "nms", nms)
        if self.within is not None and not as_text("within", self.within):
            raise InvalidArgumentError("within is ''; expected the id of a video, or None")
        for name in ("from_s", "to_s"):
            value = getattr(self, name)
            if value is not None:
                seconds = parse_time(name, value) if isinstance(value, str) else value
                object.__setattr__(self, name, as_number(name, seconds, 0, _MAX_TIME_S))
        start_s, end_s = self.span_s
        if end_s is not None and end_s <= start_s:
            raise InvalidArgumentError(
                f"to_s is {end_s:g} s and from_s {start_s:g} s; expected an end after the start"
            )
        as_truth("refine", self.refine)
        as_truth("confidence", self.confidence)
        if self.min_confidence is not None:
            least = as_share("min_confidence", self.min_confidence)
            object.__setattr__(self, "min_confidence", least)

    @classmethod
    def of(cls, k: int, keywords: SearchKeywords | SimilarityKeywords) -> SearchOptions:
        """Make options from ``k`` and keywords. Raises InvalidArgumentError for an unknown one."""
        known = [each.name for each in fields(cls)]
        for name in keywords:
            if name not in known:
                close = get_close_matches(name, known, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"expected {', '.join(known)}"
                raise InvalidArgumentError(f"a search has no option {name!r}; {hint}")
        return cls(k, **keywords)

    @property
    def near_identical(self) -> float | None:
        """Cosine from which hits are left out; None keeps every hit."""
        if isinstance(self.deduplicate, bool):
            return NEAR_IDENTICAL if self.deduplicate else None
        return self.deduplicate

    @property
    def span_s(self) -> tuple[float, float | None]:
        """The searched part of each video, seconds; None for its end."""
        start_s, end_s = self.from_s or 0.0, self.to_s
        assert not isinstance(start_s, str)
        assert not isinstance(end_s, str)
        return start_s, end_s

    @property
    def overlap(self) -> float | None:
        """Temporal IoU above which a moment is suppressed; None suppresses none."""
        return None if self.nms == 1 else self.nms

    @property
    def has_confidence(self) -> bool:
        """Whether hits get a confidence."""
        return self.confidence or self.min_confidence is not None

    @property
    def depth(self) -> int:
        """Hits that must be ranked to fill the page."""
        return self.offset + self.k

    @property
    def num_candidates(self) -> int:
        """Videos for the second stage."""
        return max(self.candidates, 4 * self.depth)


def spells_out(keywords: type) -> Callable[[_Function], _Function]:
    """Give a function with ``**options`` a signature that names each option.

    ``keywords``: the TypedDict of its options. ``help()`` and inspection then show the names,
    types and defaults that type checkers see.
    """
    known = {each.name: each for each in fields(SearchOptions)}
    named = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=known[name].default,
            annotation=known[name].type,
        )
        for name in known
        if name in keywords.__annotations__
    ]

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        given = [
            each
            for each in signature.parameters.values()
            if each.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        function.__signature__ = signature.replace(parameters=[*given, *named])  # type: ignore[attr-defined]
        return function

    return decorate
