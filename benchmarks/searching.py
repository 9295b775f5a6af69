"""Measure searches by text features: exact and in two stages, in memory and on disk, by size.

Encoding the text is not part of it; ``encoders`` measures that. Features are synthetic, as in
``benchmarks.galleries``, or of ``benchmarks.films``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np

from benchmarks.films import RECALL_QUERIES, FilmGallery, Ungrouped, names_of
from benchmarks.galleries import BATCH, World, build, read_files, read_queries, recall
from benchmarks.interleaving import LONG_RUN_S, interleave
from benchmarks.measured import FEWEST, Part, Series
from benchmarks.roofline import pair_flops
from benchmarks.scoring import text_features
from benchmarks.setting import Setting
from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, Snapshot
from xclip_deploy.runtime.search import Query, Searcher, SearchOptions

MEMORY, DISK = "search in memory", "search on disk"
EXACT, TWO_STAGE, SCORING = "exact", "two-stage", "scoring alone"
_QUERIES = 32
_LONG_ROUNDS, _SHORT_ROUNDS = 7, 25
_APART_S = 3.0
"""Length of an exact search from which it is timed by itself, and few times."""


def measure_search(setting: Setting) -> Part:
    """Measure searches of galleries in memory, and of galleries on disk after ``warm_up()``."""
    series: list[Series] = []
    facts: dict[str, float | str] = {}
    with DeployedModel(setting.bundle) as model:
        searcher = Searcher(model, setting.bundle.scorer_weights)
        for size in setting.sizes:
            gallery, features, queries = memory_gallery(setting, size)
            search = Search(searcher, gallery.snapshot(), queries, setting)
            texts = text_features(setting, 1)
            alone = {SCORING: partial(model.score, texts, features)}
            series += search.measure(MEMORY, size, pair_flops(setting.config), alone)
            facts[f"recall@10 of two stages, {size} videos in memory"] = search.recall()
            gallery.close()
        for size in setting.disk_sizes:
            path, queries_path = (
                setting.work / f"{name}-{size}" for name in ("gallery", "queries")
            )
            queries_path = queries_path.with_suffix(".npz")
            if not queries_path.is_file():
                build(setting.work, setting.bundle_path, size)
            with on_disk(path, setting.bundle, size, facts) as gallery:
                queries = disk_queries(queries_path)
                search = Search(searcher, gallery.snapshot(), queries, setting)
                series += search.measure(DISK, size, pair_flops(setting.config), {})
                facts[f"recall@10 of two stages, {size} videos on disk"] = search.recall()
    if setting.films is not None:
        series += measure_films(setting, FilmGallery.found(setting.films), facts)
    return Part("search", tuple(series), facts)


def measure_films(
    setting: Setting, films: FilmGallery, facts: dict[str, float | str]
) -> list[Series]:
    """Measure searches of a gallery of films with its own model, each segment as a video."""
    bundle = films.bundle()
    with (
        DeployedModel(bundle) as model,
        on_disk(films.path, bundle, films.size, facts) as gallery,
    ):
        searcher = Searcher(model, bundle.scorer_weights)
        snapshot, queries = Ungrouped(gallery.snapshot()), films.queries()
        search = Search(searcher, snapshot, queries, setting)
        series = search.measure(DISK, films.size, pair_flops(bundle.manifest.model), {})
        exact = films.exact(
            {"plain": lambda some: searcher.search(some, snapshot, SearchOptions(exact=True))}
        )
        found = search.find(queries[:RECALL_QUERIES], exact=False)
        facts[f"recall@10 of two stages, {films.size} videos on disk"] = recall(
            found, exact["plain"]
        )
    return series


@contextmanager
def on_disk(
    path: Path, bundle: Bundle, size: int, facts: dict[str, float | str]
) -> Iterator[Gallery]:
    """Open and warm up a gallery whose files the system's cache holds as far as it can."""
    began_s = time.perf_counter()
    read_files(path)
    held = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    facts[f"files read from disk or cache, bytes/s, {size} videos"] = held / (
        time.perf_counter() - began_s
    )
    facts[f"bytes of the files, {size} videos"] = held
    with closing(Gallery.open(path, bundle.manifest)) as gallery:
        began_s = time.perf_counter()
        gallery.warm_up()
        facts[f"warm_up(), s, {size} videos on disk"] = time.perf_counter() - began_s
        yield gallery


class Search:
    """Searches of one gallery, each for the next query."""

    def __init__(
        self, searcher: Searcher, snapshot: Snapshot, queries: list[Query], setting: Setting
    ) -> None:
        self._searcher, self._snapshot, self._queries = searcher, snapshot, queries
        self._setting = setting

    def find(self, queries: Sequence[Query], *, exact: bool) -> list[list[str]]:
        """Return the names of ten hits of each query."""
        options = SearchOptions(exact=exact)
        found = self._searcher.search(queries, self._snapshot, options)
        return [names_of(hits) for hits in found]

    def measure(
        self, task: str, size: int, flops: float, beside: Mapping[str, Callable[[], object]]
    ) -> list[Series]:
        """Time exact and two-stage searches, and ``beside`` in the same rounds."""
        contenders: dict[str, Callable[[], object]] = {
            EXACT: self._next(exact=True),
            TWO_STAGE: self._next(exact=False),
            **beside,
        }
        began_s = time.perf_counter()
        contenders[EXACT]()
        spent_s = time.perf_counter() - began_s
        if spent_s > _APART_S:  # a round of both would leave few samples of the fast one
            alone = {EXACT: contenders.pop(EXACT)}
            timed = interleave(alone, self._setting.turns(FEWEST), warm=False)
            timed |= interleave(contenders, self._setting.turns(_SHORT_ROUNDS))
        else:
            is_long = spent_s > LONG_RUN_S
            rounds = self._setting.turns(_LONG_ROUNDS if is_long else _SHORT_ROUNDS)
            timed = interleave(contenders, rounds)
        return [
            Series(
                task,
                size,
                name,
                samples,
                work=1,
                item="queries",
                flops=None if name == TWO_STAGE else size * flops,
            )
            for name, samples in timed.items()
        ]

    def recall(self) -> float:
        """Return the share of the exact first ten that two stages find."""
        few = self._queries[: 8 if len(self._snapshot) <= 100_000 else 4]
        return recall(self.find(few, exact=False), self.find(few, exact=True))

    def _next(self, *, exact: bool) -> Callable[[], object]:
        queries: Iterator[Query] = cycle(self._queries)
        return lambda: self.find([next(queries)], exact=exact)


def memory_gallery(setting: Setting, size: int) -> tuple[Gallery, VideoFeatures, list[Query]]:
    """Return a gallery in memory, its features, and queries that resemble its videos."""
    config = setting.config
    frames = config.max_frames
    world = World(size, config.embed_dim, frames)
    features = VideoFeatures(
        np.empty((size, config.embed_dim), np.float16),
        np.empty((size, frames, config.embed_dim), np.float16),
        np.full(size, frames, np.int32),
    )
    for start in range(0, size, BATCH):  # in FP32, all at once would take gigabytes
        count = min(BATCH, size - start)
        part = world.videos(start, count)
        features.video_features[start : start + count] = part.video_features
        features.frame_features[start : start + count] = part.frame_features
    times_s = tuple(np.arange(frames, dtype=float).tolist())
    gallery = Gallery(setting.bundle.manifest)
    gallery.add(
        [GalleryVideo(id=f"{number:06d}", frame_times_s=times_s) for number in range(size)],
        features,
    )
    places = np.random.default_rng(setting.seed).integers(0, size, _QUERIES)
    near = features.video_features[places].astype(np.float32)
    return gallery, features, read_queries(*world.queries(near, config.max_words))


def disk_queries(path: Path) -> list[Query]:
    """Return the queries that were made with a gallery on disk."""
    with np.load(path) as arrays:
        return read_queries(arrays["sentences"], arrays["words"])
