"""Finding videos in a gallery: coarse by one inner product, fine by the whole scorer."""

from __future__ import annotations

from xclip_deploy.runtime.search.options import (
    CANDIDATES_IN_MEMORY,
    CANDIDATES_ON_DISK,
    SearchOptions,
)
from xclip_deploy.runtime.search.query_bank import QueryBank
from xclip_deploy.runtime.search.searcher import Query, Searcher

__all__ = [
    "CANDIDATES_IN_MEMORY",
    "CANDIDATES_ON_DISK",
    "Query",
    "QueryBank",
    "SearchOptions",
    "Searcher",
]
