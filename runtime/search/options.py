"""Options of a search: one record, and the keywords that make it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, TypedDict, TypeVar

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import as_number, as_text, as_truth, as_whole_number
from xclip_deploy.runtime.search.near_identical import NEAR_IDENTICAL
from xclip_deploy.runtime.search.query_bank import QueryBank

DEFAULT_CANDIDATES = 300
_MOST = 1 << 31
_Function = TypeVar("_Function", bound=Callable[..., Any])


class SimilarityKeywords(TypedDict, total=False):
    """Keywords of searches by a video or an image; see :class:`SearchOptions`."""

    where: str | None
    offset: int
    min_score: float | None
    deduplicate: bool | float
    exact: bool | None
    candidates: int


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
    the frame embeddings at equal places of both videos. True means 0.995."""
    exact: bool | None = None
    """True scores every video by the whole scorer; False uses two stages; None chooses by size
    and measured cost."""
    candidates: int = DEFAULT_CANDIDATES
    """Videos that the second stage scores; at least four times ``offset + k``."""
    query_bank: QueryBank | None = None
    """Texts to calibrate scores with; see :class:`QueryBank`."""

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
