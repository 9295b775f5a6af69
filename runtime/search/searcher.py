"""The two stages of a search."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import Float32Array, first_best, to_float32
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import GalleryVideo, Snapshot
from xclip_deploy.runtime.gallery.flat import best_first
from xclip_deploy.runtime.gallery.store import Rows
from xclip_deploy.runtime.results import GrainScores, SearchMethod, SearchResult, SearchResults
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.search.near_identical import distinct
from xclip_deploy.runtime.search.options import SearchOptions
from xclip_deploy.runtime.search.planner import Planner
from xclip_deploy.runtime.search.video_grains import (
    of_videos,
    project_sentences,
    tells_more_than_first_stage,
)

_SCAN_VIDEOS = 2048
"""Videos that an exact search reads and scores at a time if they do not fit into memory."""
_NEAREST_PER_CANDIDATE = 3
"""Videos that the first stage ranks by ``video_features`` for each candidate."""
_TEXTS_AT_ONCE = 32
"""Texts whose scores for a whole gallery are in memory at a time."""


@dataclass(frozen=True)
class Query:
    """A text, a video, or both."""

    text: TextFeatures | None
    """One text."""
    video: VideoFeatures | None = None
    """One video."""
    video_weight: float = 0.0
    """Share of the video in the score, from 0 to 1."""
    truncated_tokens: int = 0
    """Number of the text's last tokens that the model does not read."""


@dataclass
class _Ranked:
    """Scored videos of one query, best first."""

    rows: Rows
    scores: Float32Array
    grains: dict[str, Float32Array]
    read: tuple[Rows, VideoFeatures] | None = None
    """Features that were read for scoring, rows ascending, for reuse."""

    def take(self, order: npt.NDArray[np.integer[Any]]) -> _Ranked:
        grains = {name: values[order] for name, values in self.grains.items()}
        return _Ranked(self.rows[order], self.scores[order], grains, self.read)

    def join(self, other: _Ranked) -> _Ranked:
        grains = {n: np.concatenate([v, other.grains[n]]) for n, v in self.grains.items()}
        return _Ranked(
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.scores, other.scores]),
            grains,
        )

    def features(self, snapshot: Snapshot) -> VideoFeatures:
        """Return the features of the videos, in this order."""
        if self.read is None:
            return snapshot.features(self.rows)
        rows, features = self.read
        return features[np.searchsorted(rows, self.rows)]


class Searcher:
    """A search of snapshots with a model. It is safe to use from several threads."""

    def __init__(self, model: DeployedModel, weights: Callable[[], ScorerWeights]) -> None:
        """Prepare to search; ``weights`` loads the scorer's matrices when needed."""
        self._model = model
        self._weights = weights
        self._planner = Planner()

    def search(
        self, queries: Sequence[Query], snapshot: Snapshot, options: SearchOptions
    ) -> list[SearchResults]:
        """Return the hits of each query; all queries have a text, or none has."""
        total = len(snapshot)
        if not total or not queries:
            plan = self._planner.plan(0, options)
            return [
                SearchResults((), plan.method, 0, 0, "the gallery is empty", query.truncated_tokens)
                for query in queries
            ]
        if queries[0].text is None:
            return [self._by_video(query, snapshot, options) for query in queries]
        plan = self._planner.plan(total, options)
        if plan.method == "exact":
            ranked = self._exact(queries, snapshot, options)
        else:
            ranked = self._two_stage(queries, snapshot, options, self._weights())
        return [
            self._finish(query, found, scored, snapshot, options, plan.method, plan.reason)
            for query, (found, scored) in zip(queries, ranked, strict=True)
        ]

    # -- the stages ------------------------------------------------------------------------

    def _two_stage(
        self,
        queries: Sequence[Query],
        snapshot: Snapshot,
        options: SearchOptions,
        weights: ScorerWeights,
    ) -> list[tuple[_Ranked, int]]:
        folded = np.concatenate([fold(query, weights) for query in queries])
        # If more grains than video-sentence need no frames, they rank a larger first set.
        looks_twice = tells_more_than_first_stage(self._model.config)
        wanted = options.num_candidates * (_NEAREST_PER_CANDIDATE if looks_twice else 1)
        nearest = snapshot.nearest(folded, wanted, options.where)
        ranked = []
        for query, found in zip(queries, nearest, strict=True):
            # Ascending rows: of equal scores the video added first wins, as in an exact search.
            rows = np.sort(found.rows)
            if len(rows) > options.num_candidates:
                rows = self._candidates(query, rows, snapshot, options.num_candidates, weights)
            features = snapshot.features(rows)
            (part,) = self._score([query], rows, features)
            part.read = rows, features
            ranked.append((part.take(np.argsort(-part.scores, kind="stable")), len(rows)))
        return ranked

    def _candidates(
        self, query: Query, rows: Rows, snapshot: Snapshot, count: int, weights: ScorerWeights
    ) -> Rows:
        """Choose the ``count`` best of ``rows`` by the grains without frames, ascending."""
        assert query.text is not None
        vectors = snapshot.video_features(rows)
        scores = of_videos(query.text, vectors, weights, self._model.config)
        if query.video is not None:
            weight = query.video_weight
            cosines = to_float32(vectors) @ query.video.video_features[0]
            scores = (1 - weight) * scores + weight * cosines
        return rows[np.sort(best_first(scores, count))]

    def _exact(
        self, queries: Sequence[Query], snapshot: Snapshot, options: SearchOptions
    ) -> list[tuple[_Ranked, int]]:
        # Deduplication and calibration can drop or reorder hits: keep more than asked for.
        drops = options.near_identical is not None or options.query_bank is not None
        keep = max(options.num_candidates, 1) if drops else options.depth
        results: list[tuple[_Ranked, int]] = []
        for start in range(0, len(queries), _TEXTS_AT_ONCE):
            some = queries[start : start + _TEXTS_AT_ONCE]
            best: list[_Ranked] | None = None
            scored = 0
            for rows, features, stays in _parts(snapshot, options.where):
                scored += len(rows)
                parts = self._score(some, rows, features, stays=stays)
                tops = [part.take(best_first(part.scores, keep)) for part in parts]
                best = tops if best is None else [_best_of(*p, keep) for p in zip(best, tops)]  # noqa: B905
            if best is None:
                best = [_Ranked(np.empty(0, np.int64), np.empty(0, np.float32), {})] * len(some)
            results += [(found, scored) for found in best]
        return results

    def _by_video(self, query: Query, snapshot: Snapshot, options: SearchOptions) -> SearchResults:
        assert query.video is not None
        wanted = len(snapshot) if options.exact else options.num_candidates
        (found,) = snapshot.nearest(query.video.video_features, wanted, options.where)
        rows = np.sort(found.rows)
        features = snapshot.features(rows)
        vectors = features.video_features.astype(np.float32)
        # Rounding to FP16 makes some unit vectors slightly longer.
        cosines = (vectors @ query.video.video_features[0]).clip(-1, 1).astype(np.float32)
        order = np.argsort(-cosines, kind="stable")
        ranked = _Ranked(rows, cosines, {}, (rows, features)).take(order)
        is_flat = found.method == "flat"
        method: SearchMethod = "exact" if is_flat else "two-stage"
        reason = (
            "one inner product with every video"
            if is_flat
            else f"the {len(rows)} nearest by the gallery's index, then their cosines"
        )
        scored = len(snapshot) if is_flat else len(rows)
        return self._finish(query, ranked, scored, snapshot, options, method, reason)

    def _score(
        self,
        queries: Sequence[Query],
        rows: Rows,
        features: VideoFeatures,
        *,
        stays: bool = False,
    ) -> list[_Ranked]:
        """Compute full scores of queries with a text, in the order of ``rows``."""
        texts = _texts(queries)
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
            found.append(_Ranked(rows, logits, grains))
        return found

    # -- from ranked videos to hits --------------------------------------------------------

    def _finish(
        self,
        query: Query,
        ranked: _Ranked,
        scored: int,
        snapshot: Snapshot,
        options: SearchOptions,
        method: SearchMethod,
        reason: str,
    ) -> SearchResults:
        if options.query_bank is not None and len(ranked.rows):
            features = ranked.features(snapshot)
            ranked.scores = options.query_bank.calibrate(
                ranked.scores, features, lambda t, v: self._model.score(t, v).logits
            )
            ranked = ranked.take(np.lexsort((ranked.rows, -ranked.scores)))
        if options.min_score is not None:
            ranked = ranked.take(np.flatnonzero(ranked.scores >= options.min_score))
        dropped: dict[int, list[int]] = {}
        if options.near_identical is not None and len(ranked.rows):
            features = ranked.features(snapshot)
            kept, dropped = distinct(features, options.near_identical, options.depth)
            dropped = {
                int(ranked.rows[n]): [int(ranked.rows[m]) for m in others]
                for n, others in dropped.items()
            }
            ranked = ranked.take(np.array(kept, np.int64))
        page = ranked.take(np.arange(len(ranked.rows))[options.offset : options.depth])
        hits = self._hits(query, page, snapshot, options.offset, dropped) if len(page.rows) else ()
        cut = query.truncated_tokens
        return SearchResults(hits, method, scored, len(snapshot), reason, cut)

    def _hits(
        self,
        query: Query,
        page: _Ranked,
        snapshot: Snapshot,
        offset: int,
        dropped: dict[int, list[int]],
    ) -> tuple[SearchResult, ...]:
        features = page.features(snapshot)
        videos = snapshot.videos(page.rows)
        others = sorted({row for rows in dropped.values() for row in rows})
        known = snapshot.videos(np.array(others, np.int64)) if others else []
        names = dict(zip(others, known, strict=True))
        hits = []
        for n, (row, video) in enumerate(zip(page.rows, videos, strict=True)):
            grains = {name: float(values[n]) for name, values in page.grains.items()}
            hits.append(
                SearchResult(
                    rank=offset + n + 1,
                    id=video.id,
                    path=video.path,
                    score=float(page.scores[n]),
                    grains=GrainScores(grains) if grains else None,
                    best_frame_time_s=_best_frame(query, features.frame_features[n], video),
                    duration_s=video.duration_s,
                    metadata=dict(video.metadata),
                    paths=tuple(file.path for file in video.files),
                    near_identical=tuple(names[other].id for other in dropped.get(int(row), ())),
                )
            )
        return tuple(hits)


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


def _parts(snapshot: Snapshot, where: str | None) -> Iterator[tuple[Rows, VideoFeatures, bool]]:
    """Yield every video's rows and features, and whether later searches get the same object."""
    held = snapshot.held()
    if held is not None and where is None:
        yield *held, True
        return
    if held is not None and where is not None:
        rows = snapshot.matching(where)
        for start in range(0, len(rows), _SCAN_VIDEOS):
            part = rows[start : start + _SCAN_VIDEOS]
            yield part, snapshot.features(part), False
        return
    for part, features in snapshot.scan(_SCAN_VIDEOS, where):
        yield part, features, False


def _best_of(first: _Ranked, second: _Ranked, keep: int) -> _Ranked:
    both = first.join(second)
    return both.take(best_first(both.scores, keep))


def _texts(queries: Sequence[Query]) -> TextFeatures:
    texts = [query.text for query in queries if query.text is not None]
    assert len(texts) == len(queries)
    return TextFeatures(
        np.concatenate([text.sentence_features for text in texts]),
        np.concatenate([text.word_features for text in texts]),
        np.concatenate([text.num_words for text in texts]),
    )


def _best_frame(query: Query, frames: npt.NDArray[Any], video: GalleryVideo) -> float:
    """Return the time of the most similar valid frame, seconds. ``frames``: [F, D]."""
    valid = frames[: len(video.frame_times_s)].astype(np.float32)
    if query.text is not None:
        similarity = valid @ query.text.sentence_features[0]
    else:
        assert query.video is not None
        others = query.video.frame_features[0, : query.video.num_frames[0]]
        similarity = (valid @ others.T).max(axis=1)
    return video.frame_times_s[first_best(similarity)]
