"""The two stages of a search."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arrays import Float32Array, to_float32
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.gallery.flat import best_first
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.gallery.store import Nearest
from xclip_deploy.runtime.resident.on_device import OnDevice
from xclip_deploy.runtime.resident.residence import Residence
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.search.confidence import confidences, sample_rows, why_unknown
from xclip_deploy.runtime.search.filling import Stages, num_candidates, rows_each
from xclip_deploy.runtime.search.gathering import Gathering
from xclip_deploy.runtime.search.grouping import best_with_few_each
from xclip_deploy.runtime.search.options import SearchOptions
from xclip_deploy.runtime.search.pages import Page, describe
from xclip_deploy.runtime.search.planner import Plan, Planner
from xclip_deploy.runtime.search.query_bank import corrected
from xclip_deploy.runtime.search.ranked import Query, Ranked, texts_of
from xclip_deploy.runtime.search.resident import DeviceSearch, num_passes, scan_size
from xclip_deploy.runtime.search.scope import Scope
from xclip_deploy.runtime.search.video_grains import (
    of_videos,
    project_sentences,
    tells_more_than_first_stage,
)

_NEAREST_PER_CANDIDATE = 3
"""Videos that the first stage ranks by ``video_features`` for each candidate."""
_TEXTS_AT_ONCE = 32
"""Texts whose scores for a whole gallery are in memory at a time."""


class Searcher:
    """A search of snapshots with a model. It is safe to use from several threads."""

    def __init__(
        self,
        model: DeployedModel,
        weights: Callable[[], ScorerWeights],
        thumbnails: Path | None = None,
        planner: Planner | None = None,
        residence: Residence | None = None,
    ) -> None:
        """Prepare to search.

        ``weights`` loads the scorer's matrices when needed. ``thumbnails``: folder of the
        gallery's thumbnails, which hits show. ``planner``: None for one with the usual budget.
        ``residence``: the galleries on a GPU, if any.
        """
        self._residence = residence
        self._thumbnails = thumbnails
        self._model = model
        self._weights = weights
        self._planner = planner or Planner()
        self._lock = threading.Lock()
        self._samples: WeakKeyDictionary[Snapshot, tuple[Rows, VideoFeatures]] = WeakKeyDictionary()

    def search(
        self, queries: Sequence[Query], snapshot: Snapshot, options: SearchOptions
    ) -> list[SearchResults]:
        """Return the hits of each query; all queries have a text, or none has."""
        if not len(snapshot) or not queries:
            plan = self._planner.plan(0, options)
            return [
                SearchResults(
                    (),
                    plan.method,
                    0,
                    0,
                    "the gallery is empty",
                    query.truncated_tokens,
                    warnings=query.warnings,
                )
                for query in queries
            ]
        if self._residence is None:
            return self._search(queries, snapshot, options, None, "")
        return self._residence.run(
            snapshot, lambda found, why: self._search(queries, snapshot, options, found, why)
        )

    def _search(
        self,
        queries: Sequence[Query],
        snapshot: Snapshot,
        options: SearchOptions,
        on_device: OnDevice | None,
        why_not: str,
    ) -> list[SearchResults]:
        """Search on a GPU or, where ``on_device`` is None, on the CPU for a reason, if any."""
        scope, groups = Scope.of(snapshot, options, on_device), snapshot.groups()
        if queries[0].text is None:
            return [self._by_video(query, scope, options, groups, why_not) for query in queries]
        scan = scan_size(queries, on_device)
        plan = self._planner.plan(len(scope), options, f"{_unit(groups)}s", scan)
        started_s = time.perf_counter()
        if on_device is not None and scan is not None and plan.is_on_device:
            scale = self._weights().score_scale
            ranked = DeviceSearch(on_device, scope, options, groups, scale).run(queries)
            seconds = time.perf_counter() - started_s
            self._planner.learn_scan(scan, num_passes(len(queries)), seconds)
        elif plan.method == "exact":
            ranked = self._exact(queries, scope, options, groups)
        else:
            ranked = self._two_stage(queries, scope, options, groups)
            self._planner.learn_two_stage(len(queries), time.perf_counter() - started_s)
            plan = plan.because(scope.first_stage)
        plan = plan.because(why_not)
        return [
            self._finish(query, found, scored, scope, options, groups, plan)
            for query, (found, scored) in zip(queries, ranked, strict=True)
        ]

    # -- the stages ------------------------------------------------------------------------

    def _two_stage(
        self, queries: Sequence[Query], scope: Scope, options: SearchOptions, groups: Groups | None
    ) -> list[tuple[Ranked, int]]:
        folded = np.concatenate([fold(query, self._weights()) for query in queries])
        count = num_candidates(options, groups)
        steps = [
            self._steps(query, folded[n : n + 1], scope, options, groups)
            for n, query in enumerate(queries)
        ]
        nearest = scope.nearest(folded, count * steps[0].per_candidate)
        found = []
        for each, first in zip(steps, nearest, strict=True):
            ranked = _run(each, count, first, groups, options)
            found.append((ranked.sorted(), len(ranked)))
        return found

    def _steps(
        self,
        query: Query,
        vector: Float32Array,
        scope: Scope,
        options: SearchOptions,
        groups: Groups | None,
    ) -> Stages:
        """Return the stages of a search by text; ``vector``: the folded query."""
        # If more grains than video-sentence need no frames, they rank a larger first set.
        looks_twice = tells_more_than_first_stage(self._model.config)

        def candidates(rows: Rows, count: int) -> Rows:
            # Ascending rows: of equal scores the video added first wins, as in an exact search.
            rows = np.sort(rows)
            if len(rows) <= count:
                return rows
            return self._candidates(query, rows, scope.snapshot, count, options, groups)

        def score(rows: Rows) -> Ranked:
            features = scope.snapshot.features(rows)
            (part,) = self._score([query], rows, features)
            part.read.parts.append((rows, features))
            return part

        return Stages(
            lambda limit, without: scope.nearest(vector, limit, without)[0],
            candidates,
            score,
            _NEAREST_PER_CANDIDATE if looks_twice else 1,
        )

    def _candidates(
        self,
        query: Query,
        rows: Rows,
        snapshot: Snapshot,
        count: int,
        options: SearchOptions,
        groups: Groups | None,
    ) -> Rows:
        """Choose the ``count`` best of ``rows`` by the grains without frames, ascending."""
        assert query.text is not None
        vectors = snapshot.video_features(rows)
        scores = of_videos(query.text, vectors, self._weights(), self._model.config)
        if query.video is not None:
            weight = query.video_weight
            cosines = to_float32(vectors) @ query.video.video_features[0]
            scores = (1 - weight) * scores + weight * cosines
        if groups is None or options.group == "moment":
            return rows[np.sort(best_first(scores, count))]
        few = rows_each(options)
        return rows[np.sort(best_with_few_each(scores, groups.of(rows), count, few))]

    def _exact(
        self, queries: Sequence[Query], scope: Scope, options: SearchOptions, groups: Groups | None
    ) -> list[tuple[Ranked, int]]:
        results: list[tuple[Ranked, int]] = []
        for start in range(0, len(queries), _TEXTS_AT_ONCE):
            some = queries[start : start + _TEXTS_AT_ONCE]
            best, scored = Gathering(len(some), scope, options, groups), 0
            for rows, features, stays in scope.parts():
                scored += len(rows)
                best.add(self._score(some, rows, features, stays=stays))
            results += [(found, scored) for found in best.results()]
        return results

    def _by_video(
        self,
        query: Query,
        scope: Scope,
        options: SearchOptions,
        groups: Groups | None,
        why_not: str,
    ) -> SearchResults:
        assert query.video is not None
        vector, snapshot = query.video.video_features, scope.snapshot

        def score(rows: Rows) -> Ranked:
            features = snapshot.features(rows)
            ranked = Ranked(rows, _cosines(query, features), {})
            ranked.read.parts.append((rows, features))
            return ranked

        steps = Stages(
            lambda limit, without: scope.nearest(vector, limit, without)[0],
            lambda rows, _count: np.sort(rows),
            score,
            1,
        )
        wanted = len(scope) if options.exact else num_candidates(options, groups)
        first = steps.nearest(wanted, None)
        ranked = _run(steps, wanted, first, groups, options).sorted()
        if first.method == "flat":
            plan = Plan("exact", f"one inner product with every {_unit(groups)}")
            plan = plan.because(scope.first_stage).because(why_not)
            return self._finish(query, ranked, len(scope), scope, options, groups, plan)
        reason = f"the {len(ranked)} nearest by the gallery's index, then their cosines"
        plan = Plan("two-stage", reason).because(why_not)
        return self._finish(query, ranked, len(ranked), scope, options, groups, plan)

    def _score(
        self,
        queries: Sequence[Query],
        rows: Rows,
        features: VideoFeatures,
        *,
        stays: bool = False,
    ) -> list[Ranked]:
        """Compute full scores of queries with a text, in the order of ``rows``."""
        texts = texts_of(queries)
        started_s = time.perf_counter()
        score = self._model.score_gallery if stays else self._model.score
        scores = score(texts, features)
        self._planner.learn(len(texts) * len(rows), time.perf_counter() - started_s)
        found = []
        for n, query in enumerate(queries):
            logits = scores.logits[n]
            if query.video is not None:
                scale = self._weights().score_scale
                cosines = features.video_features.astype(np.float32) @ query.video.video_features[0]
                weight = query.video_weight
                logits = ((1 - weight) * logits + weight * scale * cosines).astype(np.float32)
            grains = {name: values[n] for name, values in scores.grains.items()}
            found.append(Ranked(rows, logits, grains))
        return found

    # -- from ranked videos to hits --------------------------------------------------------

    def _finish(
        self,
        query: Query,
        ranked: Ranked,
        scored: int,
        scope: Scope,
        options: SearchOptions,
        groups: Groups | None,
        plan: Plan,
    ) -> SearchResults:
        snapshot, note = scope.snapshot, ""
        if not len(ranked) and scope.is_part:
            note = f"{scope.name} holds nothing to search"
        if options.query_bank is not None and len(ranked):
            features = ranked.features(snapshot)
            banked = self._model.score(options.query_bank.features, features).logits
            if options.has_confidence:
                note = self._add_confidences(query, ranked, scope, options, banked)
            ranked.scores = corrected(ranked.scores, banked)
            ranked = ranked.sorted()
        elif options.has_confidence and len(ranked):
            note = self._add_confidences(query, ranked, scope, options, None)
        if options.min_score is not None:
            ranked = ranked.take(np.flatnonzero(ranked.scores >= options.min_score))
        least = options.min_confidence
        if least is not None and ranked.confidences is not None and len(ranked):
            is_sure = ranked.confidences >= least
            if not is_sure.any():
                best = ranked.confidences.max()
                note = f"nothing is found with a confidence of {least:g}; the best has {best:.2g}"
            ranked = ranked.take(np.flatnonzero(is_sure))
        page = Page.of(ranked, groups, options, snapshot)
        return SearchResults(
            describe(query, page, snapshot, groups, options.offset, self._thumbnails),
            plan.method,
            scored,
            snapshot.num_videos,
            plan.reason,
            query.truncated_tokens,
            None if groups is None else len(snapshot),
            note,
            query.warnings,
        )

    def _add_confidences(
        self,
        query: Query,
        ranked: Ranked,
        scope: Scope,
        options: SearchOptions,
        banked: Float32Array | None,
    ) -> str:
        """Add the confidence of each row; return the reason if it cannot be told.

        ``banked``: scores [B, n] of a query bank for the rows. Raises InvalidArgumentError if a
        least confidence was asked for and none can be told.
        """
        if banked is None:
            rows, features = self._sample(scope.snapshot)
            background = None
            count = len(rows)
        else:
            background, count = banked, len(banked)
        unknown = why_unknown(count, has_bank=banked is not None)
        if unknown is not None:
            if options.min_confidence is not None:
                raise InvalidArgumentError(
                    f"min_confidence is {options.min_confidence:g}: {unknown}"
                )
            return unknown
        if background is None:
            if query.text is None:
                background = _cosines(query, features)
            else:
                background = self._score([query], rows, features)[0].scores
        ranked.confidences = confidences(ranked.scores, background, scope.count())
        return ""

    def _sample(self, snapshot: Snapshot) -> tuple[Rows, VideoFeatures]:
        """Return the sample of a snapshot's rows, read once."""
        with self._lock:
            found = self._samples.get(snapshot)
        if found is None:
            rows = sample_rows(snapshot)
            found = rows, snapshot.features(rows)
            with self._lock:
                self._samples[snapshot] = found
        return found


def fold(query: Query, weights: ScorerWeights) -> Float32Array:
    """Return the vector [1, D] that the first stage multiplies with ``video_features``.

    Video-sentence is (sentence G) · video; with sentence G computed once, it is one inner product.
    """
    assert query.text is not None
    vector = project_sentences(query.text.sentence_features, weights)
    if query.video is not None:
        weight = query.video_weight
        vector = (1 - weight) * vector + weight * query.video.video_features
    return np.asarray(vector, np.float32)


def _run(
    steps: Stages, count: int, first: Nearest, groups: Groups | None, options: SearchOptions
) -> Ranked:
    if groups is None or options.group == "moment":
        return steps.run(count, first)
    # Deduplication drops hits.
    num_videos = options.depth * (1 if options.near_identical is None else 4)
    return steps.fill(count, first, groups, num_videos)


def _cosines(query: Query, features: VideoFeatures) -> Float32Array:
    """Return the cosine of the query's video to each video [V]."""
    assert query.video is not None
    vectors = features.video_features.astype(np.float32)
    # Rounding to FP16 makes some unit vectors slightly longer.
    cosines: Float32Array = (vectors @ query.video.video_features[0]).clip(-1, 1)
    return cosines.astype(np.float32)


def _unit(groups: Groups | None) -> str:
    return "video" if groups is None else "segment"
