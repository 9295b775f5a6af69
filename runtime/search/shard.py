"""A shard of a search: one gallery's snapshot, with the model that scores its videos.

A search asks each of its shards the same questions and merges the answers: ``merging.py``. The
usual search has one shard, in this process. Rows and numbers of videos in questions and answers are
the shard's own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from xclip_deploy.runtime.arrays import Float32Array, Float64Array, to_float32
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.resident.on_device import OnDevice
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.search.confidence import sample_rows, tail
from xclip_deploy.runtime.search.filling import Found
from xclip_deploy.runtime.search.gathering import Gathering, Keeping
from xclip_deploy.runtime.search.grouping import Numbers
from xclip_deploy.runtime.search.options import SearchOptions
from xclip_deploy.runtime.search.planner import Cost, Planner
from xclip_deploy.runtime.search.query_bank import QueryBank, bank_norm
from xclip_deploy.runtime.search.ranked import Query, Ranked, ReadFeatures, Spans, texts_of
from xclip_deploy.runtime.search.resident import DeviceSearch, num_passes, scan_size
from xclip_deploy.runtime.search.scope import Match, Scope, look_up
from xclip_deploy.runtime.search.showing import Shown, show
from xclip_deploy.runtime.search.video_grains import (
    of_videos,
    project_sentences,
    tells_more_than_first_stage,
)

_NEAREST_PER_CANDIDATE = 3
"""Videos that the first stage ranks by ``video_features`` for each candidate."""
_TEXTS_AT_ONCE = 32
"""Texts whose scores for a whole gallery are in memory at a time."""
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Survey:
    """Size of a shard, and what a search there costs."""

    num_rows: int
    num_videos: int
    is_grouped: bool
    """Whether long videos have several rows."""
    per_candidate: int
    """Rows that the first stage ranks for each candidate."""
    pair_s: float
    """Time of one score, seconds."""
    is_measured: bool
    """Whether past searches gave ``pair_s``; else it is a guess."""
    scan: Cost | None = None
    """Cost of a pass over the GPU's copy, which scores every row; None without one."""

    def cost(self, num_rows: int) -> Cost:
        """Return the cost of ``num_rows`` scores for one text, where they are cheapest."""
        on_cpu = Cost(self.pair_s * num_rows, self.is_measured)
        is_cheaper = self.scan is not None and self.scan.seconds <= on_cpu.seconds
        return self.scan if self.scan is not None and is_cheaper else on_cpu


class Shards(Protocol):
    """The shards of one search, wherever they are."""

    @property
    def numbers(self) -> Sequence[int]:
        """Numbers of the shards, from 0."""
        ...

    def limit(self, options: SearchOptions) -> None:
        """Search with other options from here on."""
        ...

    def ask(
        self, method: Callable[..., _Answer], arguments: Mapping[int, tuple[object, ...]]
    ) -> dict[int, _Answer]:
        """Call a method of :class:`ShardSearch` with the arguments of each shard, all at once."""
        ...


class Samples:
    """The sample of each snapshot's rows that confidences compare with, read once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: WeakKeyDictionary[Snapshot, tuple[Rows, VideoFeatures]] = WeakKeyDictionary()

    def of(self, snapshot: Snapshot, count: int) -> tuple[Rows, VideoFeatures]:
        """Return ``count`` sampled rows of a snapshot, and their features."""
        with self._lock:
            found = self._known.get(snapshot)
        if found is None or len(found[0]) != min(count, len(snapshot)):
            rows = sample_rows(snapshot, count)
            found = rows, snapshot.features(rows)
            with self._lock:
                self._known[snapshot] = found
        return found


@dataclass(frozen=True)
class Shard:
    """Everything that searches of one snapshot share."""

    model: DeployedModel
    weights: Callable[[], ScorerWeights]
    snapshot: Snapshot
    planner: Planner
    samples: Samples
    thumbnails: Path | None = None
    """Folder of the gallery's thumbnails, which hits show."""
    on_device: OnDevice | None = None
    """The snapshot on the GPU; None where it is not resident."""


class ShardSearch:
    """One search of one shard; ``queries`` all have a text, or none has."""

    def __init__(self, shard: Shard, queries: Sequence[Query], options: SearchOptions) -> None:
        """Prepare to answer. ``within`` of the options is an id; the query bank is not looked at.

        Nothing is read before it is asked for.
        """
        self._shard = shard
        self._snapshot = shard.snapshot
        self._queries = queries
        self._options = options
        self._read = [ReadFeatures() for _ in queries]

    @cached_property
    def _scope(self) -> Scope:
        return Scope.of(self._snapshot, self._options, self._shard.on_device)

    @cached_property
    def _groups(self) -> Groups | None:
        return self._snapshot.groups()

    # -- before a search -------------------------------------------------------------------

    def survey(self) -> Survey:
        """Return the shard's size and costs."""
        cost = self._shard.planner.cost(1)
        scan = scan_size(self._queries, self._shard.on_device)
        return Survey(
            len(self._snapshot),
            self._snapshot.num_videos,
            self._groups is not None,
            _NEAREST_PER_CANDIDATE if self._looks_twice() else 1,
            cost.seconds,
            cost.is_measured,
            None if scan is None else self._shard.planner.scan_cost(scan),
        )

    def find(self, names: Sequence[str], file_name: str | None) -> Match:
        """Look for a video by name; see :func:`look_up`."""
        return look_up(self._snapshot, names, file_name)

    def num_rows(self) -> int:
        """Return how many rows the scope holds, if no filter leaves any out."""
        return len(self._scope)

    def count(self) -> int:
        """Return how many rows the scope holds, after evaluating its filter."""
        return self._scope.count()

    # -- stages ----------------------------------------------------------------------------

    def nearest(
        self, numbers: Sequence[int], limit: int, without: Numbers | None, scored_from: int
    ) -> list[Found]:
        """Run the first stage for the queries ``numbers``.

        ``limit``: most rows. ``without``: numbers of videos to leave out. ``scored_from``: rows
        above which they are scored by the grains without frames, as fewer are all candidates.
        """
        queries = [self._queries[number] for number in numbers]
        vectors = np.concatenate([self._vector(query) for query in queries])
        left_out = None
        if without is not None:
            rows_of = (lambda n: np.array([n])) if self._groups is None else self._groups.rows_of
            parts = [rows_of(int(number)) for number in without]
            left_out = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
        found = []
        for query, near in zip(queries, self._scope.nearest(vectors, limit, left_out), strict=True):
            scores = np.zeros(len(near.rows))
            if query.text is not None and len(near.rows) > scored_from and self._looks_twice():
                scores = self._first_scores(query, near.rows)
            own = near.rows if self._groups is None else self._groups.of(near.rows)
            place = self._scope.first_stage
            found.append(Found(near.rows, near.similarities, scores, own, near.method, place))
        return found

    def score(self, number: int, rows: Rows) -> Ranked:
        """Compute the full scores of ``rows`` for one query, in their order, which ascends."""
        features = self._snapshot.features(rows)
        self._read[number].parts.append((rows, features))
        query = self._queries[number]
        if query.text is None:
            return self._placed(Ranked(rows, _cosines(query, features), {}))
        return self._placed(self._score([query], rows, features)[0])

    def exact(self, keeping: Keeping, is_on_device: bool) -> list[tuple[Ranked, int]]:
        """Score every row for every query; return the best of each and how many were scored.

        ``is_on_device``: whether to scan the GPU's copy. Raises ScanFailedError where that fails.
        """
        if is_on_device:
            return self._scan(keeping)
        results: list[tuple[Ranked, int]] = []
        for start in range(0, len(self._queries), _TEXTS_AT_ONCE):
            some = self._queries[start : start + _TEXTS_AT_ONCE]
            best, scored = Gathering(len(some), self._scope, keeping, self._groups), 0
            for rows, features, stays in self._scope.parts():
                scored += len(rows)
                best.add(self._score(some, rows, features, stays=stays))
            results += [(self._placed(found), scored) for found in best.results()]
        return results

    def _scan(self, keeping: Keeping) -> list[tuple[Ranked, int]]:
        on_device, planner = self._shard.on_device, self._shard.planner
        scan = scan_size(self._queries, on_device)
        assert on_device is not None
        assert scan is not None
        scale = self._shard.weights().score_scale
        search = DeviceSearch(on_device, self._scope, keeping, self._groups, scale)
        started_s = time.perf_counter()
        found = search.run(self._queries)
        seconds = time.perf_counter() - started_s
        planner.learn_scan(scan, num_passes(len(self._queries)), seconds)
        return [(self._placed(ranked), scored) for ranked, scored in found]

    # -- after the stages ------------------------------------------------------------------

    def features(self, number: int, rows: Rows) -> VideoFeatures:
        """Return the features of rows, of which the search for one query has read some."""
        return self._read[number].of(rows, self._snapshot)

    def background(self, number: int, count: int) -> Float32Array:
        """Return the scores of ``count`` sampled rows for one query."""
        query = self._queries[number]
        rows, features = self._shard.samples.of(self._snapshot, count)
        if query.text is None:
            return _cosines(query, features)
        return self._score([query], rows, features)[0].scores

    def calibrate(
        self, number: int, rows: Rows, bank: QueryBank, has_confidence: bool
    ) -> tuple[Float64Array, Float64Array | None]:
        """Score rows for a bank's texts; return what it takes from their scores, and its tails.

        The tails are None unless they are asked for.
        """
        features = self.features(number, rows)
        banked = self._shard.model.score(bank.features, features).logits
        return bank_norm(banked), tail(banked) if has_confidence else None

    def names(self, rows: Rows) -> list[tuple[str, int]]:
        """Return the id and segment of each row, by which ties are ordered."""
        return [(video.id, video.segment) for video in self._snapshot.videos(rows)]

    def show(self, number: int, rows: Rows, others: Rows, dropped: Rows, refines: bool) -> Shown:
        """Read what hits show: see :func:`showing.show`."""
        return show(
            self._queries[number],
            self._snapshot,
            self._groups,
            self._read[number],
            (rows, others, dropped),
            refines=refines,
            thumbnails=self._shard.thumbnails,
        )

    def _looks_twice(self) -> bool:
        # If more grains than video-sentence need no frames, they rank a larger first set.
        return tells_more_than_first_stage(self._shard.model.config)

    def _vector(self, query: Query) -> Float32Array:
        if query.text is not None:
            return fold(query, self._shard.weights())
        assert query.video is not None
        return np.asarray(query.video.video_features, np.float32)

    def _first_scores(self, query: Query, rows: Rows) -> Float64Array:
        """Return the part of a score that needs no frames: FP64 [n]."""
        assert query.text is not None
        vectors = self._snapshot.video_features(rows)
        scores = of_videos(query.text, vectors, self._shard.weights(), self._shard.model.config)
        if query.video is not None:
            weight = query.video_weight
            cosines = to_float32(vectors) @ query.video.video_features[0]
            scores = (1 - weight) * scores + weight * cosines
        return scores

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
        model = self._shard.model
        started_s = time.perf_counter()
        score = model.score_gallery if stays else model.score
        scores = score(texts, features)
        self._shard.planner.learn(len(texts) * len(rows), time.perf_counter() - started_s)
        found = []
        for n, query in enumerate(queries):
            logits = scores.logits[n]
            if query.video is not None:
                scale = self._shard.weights().score_scale
                cosines = features.video_features.astype(np.float32) @ query.video.video_features[0]
                weight = query.video_weight
                logits = ((1 - weight) * logits + weight * scale * cosines).astype(np.float32)
            grains = {name: values[n] for name, values in scores.grains.items()}
            found.append(Ranked(rows, logits, grains))
        return found

    def _placed(self, ranked: Ranked) -> Ranked:
        """Add the videos of the rows, where videos have several."""
        if self._groups is not None:
            ranked.spans = Spans.of(ranked.rows, self._groups)
        return ranked


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


def _cosines(query: Query, features: VideoFeatures) -> Float32Array:
    """Return the cosine of the query's video to each video [V]."""
    assert query.video is not None
    vectors = features.video_features.astype(np.float32)
    # Rounding to FP16 makes some unit vectors slightly longer.
    cosines: Float32Array = (vectors @ query.video.video_features[0]).clip(-1, 1)
    return cosines.astype(np.float32)
