"""Search of a gallery: coarse by one inner product, fine by the whole scorer."""

from __future__ import annotations

from xclip_deploy.runtime.search.options import (
    DEFAULT_CANDIDATES,
    SearchKeywords,
    SearchOptions,
    SimilarityKeywords,
    spells_out,
)
from xclip_deploy.runtime.search.query_bank import QueryBank
from xclip_deploy.runtime.search.ranked import Query
from xclip_deploy.runtime.search.searcher import Searcher

__all__ = [
    "DEFAULT_CANDIDATES",
    "Query",
    "QueryBank",
    "SearchKeywords",
    "SearchOptions",
    "Searcher",
    "SimilarityKeywords",
    "spells_out",
]
