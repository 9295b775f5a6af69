"""Numbers of rows and videos that hold the number of their shard, and the join of their records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.gallery.flat import best_first
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.gallery.store import NearestMethod
from xclip_deploy.runtime.search.filling import Found
from xclip_deploy.runtime.search.grouping import Numbers
from xclip_deploy.runtime.search.ranked import Ranked

SHIFT = 53
"""Bits of a row within its shard. LanceDB's row ids have 32 bits below the number of a file."""
MAX_SHARDS = 1 << (63 - SHIFT)


def local(rows: Rows) -> Rows:
    """Return rows as their shard counts them."""
    own: Rows = np.bitwise_and(rows, (1 << SHIFT) - 1)
    return own


def own_rows(rows: Rows, shard: int) -> Rows:
    """Return the rows of one shard, in their order."""
    own: Rows = rows[rows >> SHIFT == shard]
    return own


def of_shard(numbers: Numbers | None, shard: int) -> Numbers | None:
    """Return the numbers of one shard as it counts them."""
    return None if numbers is None else local(own_rows(numbers, shard))


def numbered(numbers: npt.NDArray[np.int64], shard: int) -> npt.NDArray[np.int64]:
    """Add the number of the shard. Raises GalleryError for a number that has no room for it."""
    if len(numbers) and int(numbers.max()) >> SHIFT:
        raise GalleryError(
            f"shard {shard} has row {int(numbers.max())}, expected less than 2^{SHIFT}; "
            "run: xclip-deploy gallery optimize"
        )
    return numbers + (shard << SHIFT) if shard else numbers


def numbered_found(answers: Iterable[Found], shard: int) -> list[Found]:
    """Add the number of the shard to what its first stage found."""
    return [
        replace(each, rows=numbered(each.rows, shard), numbers=numbered(each.numbers, shard))
        for each in answers
    ]


def nearest_of(parts: Sequence[Found], limit: int) -> Found:
    """Return the ``limit`` nearest of all shards."""
    if len(parts) == 1:
        return parts[0]
    method: NearestMethod = "index" if any(part.method == "index" for part in parts) else "flat"
    joined = Found(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.similarities for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.numbers for part in parts]),
        method,
    )
    return joined.take(best_first(joined.similarities, limit))


def numbered_ranked(ranked: Ranked, shard: int) -> Ranked:
    """Add the number of the shard to scored rows."""
    spans = ranked.spans
    if spans is not None:
        spans = replace(spans, numbers=numbered(spans.numbers, shard))
    return replace(ranked, rows=numbered(ranked.rows, shard), spans=spans)
