"""Evaluate anything that ranks moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from xclip_deploy.errors import DatasetError, InvalidArgumentError
from xclip_deploy.runtime.arguments import as_callback, as_instance, as_whole_number
from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.datasets.moments import MomentSplit
from xclip_deploy.runtime.evaluation.moments.didemo import (
    DidemoMetrics,
    candidates_by_chunk,
    chunks_of,
    didemo_chance,
    didemo_metrics,
)
from xclip_deploy.runtime.evaluation.moments.metrics import (
    ACTIVITYNET_AT,
    ACTIVITYNET_THRESHOLDS,
    AT,
    THRESHOLDS,
    boundary_error_s,
    corpus_recall,
    in_right_video,
    mean_iou,
    recall_within,
    video_recall,
)
from xclip_deploy.runtime.evaluation.moments.predictions import Ranking
from xclip_deploy.runtime.evaluation.moments.results import MomentEvaluation
from xclip_deploy.runtime.progress import Progress, ProgressFunction, ignore_progress

MAX_PREDICTIONS = 100_000
"""Most predictions for a query."""
_BATCH = 64
"""Queries ranked at once."""


class Ranker(Protocol):
    """Search that ranks moments by text."""

    def rank(self, texts: Sequence[str], k: int) -> Sequence[Ranking]:
        """Return at most ``k`` moments of all videos for each text, best first."""
        ...

    def rank_within(
        self, texts: Sequence[str], video_ids: Sequence[str], k: int
    ) -> Sequence[Ranking]:
        """Return at most ``k`` moments for each text, all in the video given with it."""
        ...


def evaluate_moments(
    ranker: Ranker, split: MomentSplit, *, k: int = 100, progress: ProgressFunction | None = None
) -> MomentEvaluation:
    """Rank moments for every query of a split, among all videos and within the right one.

    Recall within the video has ActivityNet's thresholds and numbers for that dataset, and TVR's
    otherwise. Numbers above ``k`` are left out.

    Args:
        ranker: Search over the videos of the split. Its video ids are those of the split.
        split: Queries with the times of their moments.
        k: Most predictions for a query.
        progress: Function called after every few queries, twice for each.

    Raises:
        DatasetError: The split has no query.
        InvalidArgumentError: ``k`` is out of range, or a ranking is none: too long, with
            impossible times, or with other videos than the one asked for.
    """
    as_instance("split", split, MomentSplit, "a MomentSplit, as open_moments gives")
    as_whole_number("k", k, 1, MAX_PREDICTIONS)
    as_callback("progress", progress)
    queries = split.queries
    if not queries:
        raise DatasetError(f"{split.name}: holds no query; expected at least one")
    report = progress or ignore_progress
    corpus: list[Ranking] = []
    within: list[Ranking] = []
    for part in slices(len(queries), _BATCH):
        texts = [query.text for query in queries[part]]
        corpus += _checked(ranker.rank(texts, k), len(texts), k)
        videos = [query.video_id for query in queries[part]]
        within += _checked(ranker.rank_within(texts, videos, k), len(texts), k)
        report(Progress("captions", part.stop, len(queries)))
    for query, ranking in zip(queries, within, strict=True):
        if len(in_right_video(query, ranking)) != len(ranking):
            raise InvalidArgumentError(
                f"a ranking within {query.video_id!r:.60} names other videos; expected none"
            )
    at = [number for number in AT if number <= k]
    is_activitynet = split.dataset == "activitynet"
    return MomentEvaluation(
        split=split.name,
        num_videos=len(split.videos),
        k=k,
        corpus=corpus_recall(queries, corpus, at=at),
        videos=video_recall(queries, corpus, at=at),
        within=recall_within(
            queries,
            within,
            thresholds=ACTIVITYNET_THRESHOLDS if is_activitynet else THRESHOLDS,
            at=[n for n in ACTIVITYNET_AT if n <= k] if is_activitynet else at,
        ),
        mean_iou=mean_iou(queries, within),
        boundary_error_s=boundary_error_s(queries, within),
        found_boundary_error_s=boundary_error_s(queries, within, least_iou=THRESHOLDS[0]),
        **_didemo(split, within),
        missing=split.missing,
        queries=queries,
        corpus_rankings=tuple(corpus),
        within_rankings=tuple(within),
    )


def _didemo(split: MomentSplit, within: Sequence[Ranking]) -> dict[str, DidemoMetrics | None]:
    if split.dataset != "didemo":
        return {"didemo": None, "didemo_chance": None}
    times = [[chunks_of(span) for span in query.spans] for query in split.queries]
    rankings = [candidates_by_chunk(ranking) for ranking in within]
    return {"didemo": didemo_metrics(rankings, times), "didemo_chance": didemo_chance(times)}


def _checked(rankings: Sequence[Ranking], count: int, k: int) -> Sequence[Ranking]:
    longest = max(map(len, rankings), default=0)
    if len(rankings) != count or longest > k:
        raise InvalidArgumentError(
            f"{len(rankings)} rankings of up to {longest} moments for {count} queries; expected "
            f"one each, of {k} moments at most"
        )
    return rankings
