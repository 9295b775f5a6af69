"""DiDeMo's metrics by its published rules, and what chance reaches.

A video has six chunks of five seconds, so that a moment is one of 21 candidates: a first and a
last chunk. All 21 are ranked, also where a video is too short for the last chunk. For each query

* its rank is the mean over annotators of the rank of the moment that each marked, taken over the
  three annotators with the lowest ranks; "Rank@k" is the share of queries with a mean of at most k;
* its IoU is that of the first candidate, averaged over the three annotators with the highest IoU.
  It counts chunks, the last one included: chunks 1 to 2 and chunk 2 have 1 of 2 in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations, combinations_with_replacement, permutations
from math import perm
from typing import TypeAlias

import numpy as np

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.datasets.moments import Span
from xclip_deploy.runtime.datasets.moments.didemo import CHUNK_S, NUM_CHUNKS
from xclip_deploy.runtime.evaluation.moments.predictions import Ranking

Chunks: TypeAlias = tuple[int, int]
"""First and last chunk of a moment, counted from 0."""

CANDIDATES: tuple[Chunks, ...] = tuple(combinations_with_replacement(range(NUM_CHUNKS), 2))
"""The 21 moments of a video."""
_BEST = 3
"""Annotators that count."""


@dataclass(frozen=True)
class DidemoMetrics:
    """Metrics of moments on DiDeMo, in percent."""

    rank_at_1: float
    rank_at_5: float
    mean_iou: float
    num_queries: int

    def to_dict(self) -> dict[str, float]:
        """Convert to plain numbers for JSON."""
        return asdict(self)


def chunk_iou(a: Chunks, b: Chunks) -> float:
    """Return intersection over union of two moments, in whole chunks."""
    shared = min(a[1], b[1]) + 1 - max(a[0], b[0])
    return max(0, shared) / (max(a[1], b[1]) + 1 - min(a[0], b[0]))


def didemo_metrics(
    rankings: Sequence[Sequence[Chunks]], times: Sequence[Sequence[Chunks]]
) -> DidemoMetrics:
    """Compute Rank@1, Rank@5 and mIoU.

    Args:
        rankings: For each query all of ``CANDIDATES``, best first.
        times: For each query the moments that annotators marked, at least one.

    Raises:
        InvalidArgumentError: The lengths differ or are 0, or a ranking is no permutation.
    """
    if not times or len(rankings) != len(times):
        raise InvalidArgumentError(
            f"{len(rankings)} rankings for {len(times)} queries; expected one each, at least one"
        )
    ranks, ious = [], []
    for ranking, marked in zip(rankings, times, strict=True):
        if sorted(ranking) != sorted(CANDIDATES):
            raise InvalidArgumentError(
                f"a ranking of {len(ranking)} moments; expected each of the {len(CANDIDATES)} "
                "candidates once"
            )
        _check_marked(marked)
        place = {candidate: rank for rank, candidate in enumerate(ranking, 1)}
        ranks.append(np.mean(np.sort([place[moment] for moment in marked])[:_BEST]))
        ious.append(_best_iou(ranking[0], marked))
    return DidemoMetrics(
        rank_at_1=100 * float(np.mean(np.array(ranks) <= 1)),
        rank_at_5=100 * float(np.mean(np.array(ranks) <= 5)),
        mean_iou=100 * float(np.mean(ious)),
        num_queries=len(times),
    )


def didemo_chance(times: Sequence[Sequence[Chunks]]) -> DidemoMetrics:
    """Compute the expected metrics of random rankings, exactly.

    They follow from the annotations alone: 3.75, 22.50 and 22.64 on the published test set.

    Args:
        times: For each query the moments that annotators marked, at least one.

    Raises:
        InvalidArgumentError: There is no query, or one that nobody marked.
    """
    if not times:
        raise InvalidArgumentError("there is no query; expected at least one")
    at_1 = at_5 = iou = 0.0
    for marked in times:
        _check_marked(marked)
        votes = tuple(sorted(Counter(marked).values()))
        at_1 += _chance_of_rank(votes, 1)
        at_5 += _chance_of_rank(votes, 5)
        iou += sum(_best_iou(candidate, marked) for candidate in CANDIDATES) / len(CANDIDATES)
    total = len(times)
    return DidemoMetrics(100 * at_1 / total, 100 * at_5 / total, 100 * iou / total, total)


def candidates_by_chunk(ranking: Ranking) -> list[Chunks]:
    """Rank the 21 candidates by predictions of other lengths within one video.

    A chunk scores as the best prediction that covers at least half of it, a candidate as the
    mean of its chunks. Candidates with a chunk that no prediction covers come last. Ties go to
    the shorter candidate, then to the earlier.
    """
    chunks = np.full(NUM_CHUNKS, -np.inf)
    for found in ranking:
        for number in range(NUM_CHUNKS):
            start_s, end_s = number * CHUNK_S, (number + 1) * CHUNK_S
            covered_s = min(found.end_s, end_s) - max(found.start_s, start_s)
            if covered_s >= CHUNK_S / 2:
                chunks[number] = max(chunks[number], found.score)

    def key(candidate: Chunks) -> tuple[float, int, int]:
        first, last = candidate
        return -float(np.mean(chunks[first : last + 1])), last - first, first

    return sorted(CANDIDATES, key=key)


def chunks_of(span: Span) -> Chunks:
    """Return the chunks of a moment in seconds that begins and ends with chunks."""
    return round(span[0] / CHUNK_S), round(span[1] / CHUNK_S) - 1


@cache
def _chance_of_rank(votes: tuple[int, ...], most: int) -> float:
    """Return the probability of a mean rank of at most ``most`` in a random ranking.

    ``votes``: for each different moment the number of annotators that marked it. The ranks that
    count are those of the first few of them, ``order``, at ``places``; the others come later.
    """
    num_moments, num_candidates = len(votes), len(CANDIDATES)
    counted = min(_BEST, sum(votes))
    chance = 0.0
    for order in permutations(range(num_moments), min(_BEST, num_moments)):
        taken, needed = [], counted
        for moment in order:
            taken.append(min(votes[moment], needed))
            needed -= taken[-1]
        for places in combinations(range(1, num_candidates + 1), len(order)):
            rank_sum = sum(n * place for n, place in zip(taken, places, strict=True))
            if rank_sum <= most * counted:
                later = perm(num_candidates - places[-1], num_moments - len(order))
                chance += later / perm(num_candidates, num_moments)
    return chance


def _best_iou(candidate: Chunks, marked: Sequence[Chunks]) -> float:
    ious = sorted((chunk_iou(candidate, moment) for moment in marked), reverse=True)
    return float(np.mean(ious[:_BEST]))


def _check_marked(marked: Sequence[Chunks]) -> None:
    wrong = [moment for moment in marked if moment not in CANDIDATES]
    if not marked or wrong:
        raise InvalidArgumentError(
            f"marked moments are {wrong[:3] or list(marked)}; expected at least one, each a first "
            f"and a last chunk of 0 to {NUM_CHUNKS - 1}"
        )
