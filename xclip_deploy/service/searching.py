"""Searches of the service: queries made from requests, run in batches.

Texts of one batch are encoded together, whatever their options. Queries with equal options are
then searched together. Results are those of :meth:`Retriever.search`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from threadpoolctl import threadpool_limits

from xclip_deploy.errors import ClusterError, GalleryError, InvalidArgumentError, ShardError
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import Query, QueryBank, SearchOptions
from xclip_deploy.runtime.tokenizer import clean_text
from xclip_deploy.service.batching import Batcher
from xclip_deploy.service.metrics import ServiceMetrics
from xclip_deploy.service.naming import check_filter, find_id, names_of
from xclip_deploy.service.records import VideoRecords
from xclip_deploy.service.results import results_to_json
from xclip_deploy.service.served import ServedGallery
from xclip_deploy.service.settings import ServiceSettings
from xclip_deploy.wire.search import SearchFields, SimilarityFields

_MAX_LANES = 4
_OPTIONS = tuple(each.name for each in fields(SearchOptions) if each.name != "query_bank")
_MAX_BANKS = 8
"""Query banks whose embeddings are kept."""


@dataclass(frozen=True, eq=False)
class AskedQuery:
    """One query with its options, as it waits for a run."""

    options: SearchOptions
    text: str | None = None
    video: VideoFeatures | None = None
    """One video."""
    video_weight: float = 0.0
    warnings: tuple[str, ...] = ()
    """Warnings about the query, for the response."""


class Searching:
    """The searches of a service."""

    def __init__(
        self, served: ServedGallery, settings: ServiceSettings, metrics: ServiceMetrics
    ) -> None:
        """Prepare to search. Nothing is loaded before :meth:`warm_up` or the first search."""
        self._served = served
        self._settings = settings
        self._metrics = metrics
        # A product of a few million numbers would wake the threads of BLAS, which then spin on
        # the cores that other searches need. On two cores, a query took twice as long.
        self._limits = threadpool_limits(1, user_api="blas")
        self._model = served.model
        self._banks: OrderedDict[tuple[str, ...], QueryBank] = OrderedDict()
        self._lock = threading.Lock()
        on_cpu = self._model.placement.device == "cpu"
        self._batcher: Batcher[AskedQuery, bytes] = Batcher(
            self._run,
            lanes=max(1, min(usable_cores(), _MAX_LANES)) if on_cpu else 2,
            max_batch=settings.max_batch,
            wait_s=settings.batch_wait_ms / 1e3,
            max_waiting=settings.max_waiting,
            on_change=metrics.waiting("search").set,
        )

    # -- queries from requests -------------------------------------------------------------

    def options_of(
        self, asked: SimilarityFields, records: VideoRecords, *, has_text: bool
    ) -> SearchOptions:
        """Return the options of a request. May read the gallery and encode a query bank.

        Raises InvalidArgumentError, and GalleryError for a ``within`` that is no video.
        """
        show_paths = self._settings.show_paths
        check_filter(asked.where, show_paths=show_paths)
        keywords = {name: getattr(asked, name) for name in _OPTIONS}
        if asked.within is not None:
            keywords["within"] = self._find_within(asked.within, records)
        bank = asked.query_bank if isinstance(asked, SearchFields) else None
        if bank is not None and not has_text:
            raise InvalidArgumentError(
                "query_bank calibrates the scores of texts; expected none without a text"
            )
        if bank is not None:
            keywords["query_bank"] = self._bank(tuple(bank))
        return SearchOptions(**keywords)

    def warnings_of(self, asked: SimilarityFields) -> tuple[str, ...]:
        """Return the warnings about the options of a request: texts of a bank that are cut."""
        bank = asked.query_bank if isinstance(asked, SearchFields) else None
        count = sum(cut > 0 for cut in self._model.count_cut(bank)) if bank else 0
        if not count:
            return ()
        texts = "text is" if count == 1 else "texts are"
        return (f"{count} {texts} of the query bank longer than the model reads",)

    @staticmethod
    def is_plain(asked: SimilarityFields) -> bool:
        """Tell whether :meth:`options_of` reads nothing, so that it may run in the event loop."""
        bank = asked.query_bank if isinstance(asked, SearchFields) else None
        return asked.within is None and bank is None

    def indexed_video(
        self, name: str, segment: int | None = None
    ) -> tuple[VideoFeatures, tuple[str, ...]]:
        """Return the embeddings of a video of the gallery, and warnings about them.

        A video in segments is searched by one ``segment``, or by the mean of all. Raises
        GalleryError, and InvalidArgumentError for a segment that it lacks.
        """
        records = self._served.records()
        video_id = find_id(records, name, show_paths=self._settings.show_paths)
        rows = records.segments([video_id])[video_id]
        if segment is not None:
            if segment >= len(rows):
                raise GalleryError(f"no segment {segment} of the video, which has {len(rows)}")
            rows = rows[segment : segment + 1]
        features = records.features(rows)
        if len(features) == 1:
            return features, ()
        said = f"the video is searched by the mean of its {len(features)} segments"
        return _mean_of(features), (said,)

    # -- searches --------------------------------------------------------------------------

    async def search(self, query: AskedQuery) -> bytes:
        """Search for one query and return its encoded results.

        Raises InvalidArgumentError, GalleryError, SessionError, and Refusal if too many wait.
        """
        _check_word(query.text)
        return await self._batcher.submit(query)

    async def search_all(self, queries: Sequence[AskedQuery]) -> list[bytes]:
        """Search for several queries, as :meth:`search` does; one error is the error of all."""
        for query in queries:
            _check_word(query.text)
        return await self._batcher.submit_all(queries)

    def warm_up(self) -> None:
        """Load what the first searches would wait for. Raises GalleryError, SessionError."""
        records = self._served.records()
        is_on_device = self._served.warm_up(records)
        if not len(records):
            return
        # The first run is slow, and the planner learns from all.
        runs = [(SearchOptions(1), count) for count in (1, 2, 1)]
        if is_on_device:
            runs += [(SearchOptions(1, exact=True), 1)] * 2
        for options, count in runs:
            for outcome in self._run([AskedQuery(options, "warm-up")] * count):
                if isinstance(outcome, BaseException):
                    raise outcome

    def close(self) -> None:
        """Wait for the runs that began."""
        self._batcher.close()
        self._limits.restore_original_limits()

    # -- the run of a batch ----------------------------------------------------------------

    def _run(self, queries: Sequence[AskedQuery]) -> list[bytes | BaseException]:
        self._metrics.batch("search").observe(len(queries))
        with self._metrics.time("search"):
            try:
                made = self._make(queries)
            except Exception as error:  # noqa: BLE001 - of one text, perhaps
                if len(queries) == 1:
                    return [error]
                return [outcome for query in queries for outcome in self._run([query])]
            together: dict[tuple[SearchOptions, bool], list[int]] = {}
            for n, query in enumerate(queries):
                together.setdefault((query.options, query.text is None), []).append(n)
            found: dict[int, bytes | BaseException] = {}
            for places in together.values():
                asked = [queries[n] for n in places]
                found.update(
                    zip(places, self._group(asked, [made[n] for n in places]), strict=True)
                )
            return [found[n] for n in range(len(queries))]

    def _group(
        self, asked: Sequence[AskedQuery], made: Sequence[Query]
    ) -> list[bytes | BaseException]:
        """Search for queries with equal options. One that fails leaves the others their results."""
        records = self._served.records()
        try:
            results = self._served.search(made, records, asked[0].options)
            self._metrics.count_failed_shards(results[0].failed_shards, len(results))
            return [
                results_to_json(
                    each,
                    show_paths=self._settings.show_paths,
                    warnings=query.warnings,
                    other_ids=self._other_ids(each, records),
                )
                for query, each in zip(asked, results, strict=True)
            ]
        except Exception as error:  # noqa: BLE001 - of one query, perhaps
            if isinstance(error, ShardError):
                self._metrics.count_failed_shards(error.shards, len(asked))
            # Options that are wrong are wrong for all, and a lost shard is lost for all.
            if len(asked) == 1 or isinstance(error, InvalidArgumentError | ClusterError):
                return [error] * len(asked)
            pairs = zip(asked, made, strict=True)
            return [outcome for query, one in pairs for outcome in self._group([query], [one])]

    def _make(self, queries: Sequence[AskedQuery]) -> list[Query]:
        """Encode the texts of a batch together."""
        texts = [query.text for query in queries if query.text is not None]
        encoded: list[TextFeatures] = []
        cuts: list[int] = []
        if texts:
            self._metrics.batch("encode_text").observe(len(texts))
            with self._metrics.time("encode_text"):
                features = self._model.encode_texts(texts)
                cuts = self._model.count_cut(texts)
            encoded = [features[n : n + 1] for n in range(len(texts))]
        both = iter(zip(encoded, cuts, strict=True))
        made = []
        for query in queries:
            text, cut = (None, 0) if query.text is None else next(both)
            made.append(Query(text, query.video, query.video_weight, cut))
        return made

    def _other_ids(self, results: SearchResults, records: VideoRecords) -> dict[str, str]:
        """Return the ids that clients see of near-identical videos."""
        ids = list(dict.fromkeys(each for hit in results for each in hit.near_identical))
        if not ids or self._settings.show_paths:
            return {}
        rows = records.find(ids)
        videos = records.videos(np.array([rows[each] for each in ids], np.int64))
        return {video.id: names_of(video, show_paths=False).id for video in videos}

    def _find_within(self, name: str, records: VideoRecords) -> str:
        try:
            return find_id(records, name, show_paths=self._settings.show_paths)
        except GalleryError:
            if "/" in name:
                raise
            return records.find_video(name)  # a file name

    def _bank(self, texts: tuple[str, ...]) -> QueryBank:
        """Return the query bank of some texts, the same object for the same texts."""
        for text in texts:
            _check_word(text)
        with self._lock:
            found = self._banks.pop(texts, None)
            if found is not None:
                self._banks[texts] = found
                return found
        bank = QueryBank(self._model.encode_texts(texts))
        with self._lock:
            self._banks[texts] = bank
            while len(self._banks) > _MAX_BANKS:
                self._banks.popitem(last=False)
        return bank


def _check_word(text: str | None) -> None:
    if text is not None and not clean_text(text):
        raise InvalidArgumentError(f"the text {text!r:.200} holds no word to search for")


def _mean_of(features: VideoFeatures) -> VideoFeatures:
    """Return one video for several segments [V]: the mean embedding, and frames of all.

    Frames tell the best frame of a hit alone. As many as the model takes are kept, evenly spaced.
    """
    mean = features.video_features.astype(np.float32).mean(axis=0)
    mean /= max(float(np.linalg.norm(mean)), 1e-12)
    most = features.frame_features.shape[1]
    is_valid = np.arange(most) < features.num_frames[:, np.newaxis]
    frames = features.frame_features[is_valid]  # [n, D]
    if len(frames) > most:
        frames = frames[np.linspace(0, len(frames) - 1, most).round().astype(int)]
    padded = np.zeros((1, most, frames.shape[1]), np.float32)
    padded[0, : len(frames)] = frames
    return VideoFeatures(mean[np.newaxis], padded, np.array([len(frames)], np.int32))
