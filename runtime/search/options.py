"""What a search can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.search.near_identical import NEAR_IDENTICAL

if TYPE_CHECKING:
    from xclip_deploy.runtime.search.query_bank import QueryBank

DEFAULT_CANDIDATES = 300


@dataclass(frozen=True)
class SearchOptions:
    """Of one search. Raises InvalidArgumentError for values that no search can take."""

    k: int = 10
    offset: int = 0
    """Hits to pass over, for paging."""
    where: str | None = None
    """SQL expression over metadata and ``duration_s``, ``id``, ``num_frames``."""
    min_score: float | None = None
    deduplicate: float | None = None
    """Cosine of frame embeddings, each with that at its place in the other video, from which on
    the lower of two hits is left out; True stands for NEAR_IDENTICAL, False for None."""
    exact: bool | None = None
    """True scores every video, False never does; None chooses by size and measured cost."""
    candidates: int = DEFAULT_CANDIDATES
    """Videos that the second stage scores; more where more hits are asked for."""
    query_bank: QueryBank | None = None

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("offset", 0), ("candidates", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidArgumentError(f"{name} is {value}: expected at least {least}")
        if isinstance(self.deduplicate, bool):
            object.__setattr__(self, "deduplicate", NEAR_IDENTICAL if self.deduplicate else None)
        if self.deduplicate is not None and not 0 < self.deduplicate <= 1:
            raise InvalidArgumentError(
                f"deduplicate is {self.deduplicate}: expected a cosine above 0, 1 at most"
            )

    @property
    def depth(self) -> int:
        """Hits that must be ranked to give the page that is asked for."""
        return self.offset + self.k

    @property
    def num_candidates(self) -> int:
        """Videos for the second stage."""
        return max(self.candidates, 4 * self.depth)
