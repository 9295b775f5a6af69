"""Latency of searches that group segments by video, against the same searches without groups.

    python -m benchmarks.grouping --output benchmarks/results

The gallery is that of ``benchmarks.films``. It stays in ``--work``, and later runs find it there;
``benchmarks.performance --films`` searches it, too. All variants search the same rows of the same
open gallery in one process, in turns, so that the load of the machine falls on all of them alike.
The fastest of three runs counts; the first of them stands beside it.

``plain`` sees every segment as a video of its own, as searches did before there were segments. Its
candidates come from one film, and lie together on disk. Those of grouped searches come from many;
a column tells the time of reading them. Text encoding is not measured. The gallery is indexed and
warmed up. Recall is the share of the exact first ten hits that two stages find; the exact hits of
the first queries are kept beside the gallery. ``--toy`` measures a gallery of a thousand segments.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.films import (
    RECALL_QUERIES,
    SEGMENTS_PER_FILM,
    FilmGallery,
    Ungrouped,
    names_of,
)
from benchmarks.galleries import DIM, FRAMES, INDEXED, read_files, recall
from xclip_deploy import DeployedModel
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.gallery import Gallery, Snapshot
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import Query, Searcher, SearchOptions
from xclip_deploy.runtime.theme import write_pngs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = 3
"""Runs of each search. The fastest counts, so that first reads of a row from disk do not."""
VARIANTS = {
    "plain": SearchOptions(exact=False),
    "grouped": SearchOptions(exact=False, refine=False),
    "grouped, refined": SearchOptions(exact=False),
    "moments": SearchOptions(exact=False, group="moment", refine=False),
}


def main() -> None:
    """Build the gallery if it is missing, measure, then write table and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("grouping-work"))
    parser.add_argument("--segments", type=int, default=1_000_000)
    parser.add_argument("--toy", action="store_true", help="measure a small gallery")
    options = parser.parse_args()
    size, per_film = (1000, 50) if options.toy else (options.segments, SEGMENTS_PER_FILM)
    result = measure(FilmGallery.made(options.work, size, per_film))
    options.output.mkdir(parents=True, exist_ok=True)
    replace_text(options.output / "grouping.json", json.dumps(result, indent=1) + "\n")
    replace_text(options.output / "grouping.md", table(result))
    draw(result, options.output / "grouping.png")
    print(table(result))


class Watched:
    """A snapshot that sums the time of reading embeddings."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.num_videos = snapshot.num_videos
        self.reading_s = 0.0

    def __len__(self) -> int:
        return len(self._snapshot)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all that a snapshot has
        return getattr(self._snapshot, name)

    def features(self, rows: Rows) -> VideoFeatures:
        """Read embeddings."""
        began_s = time.perf_counter()
        found = self._snapshot.features(rows)
        self.reading_s += time.perf_counter() - began_s
        return found


def measure(films: FilmGallery) -> dict[str, Any]:
    """Search the gallery in turns; return milliseconds of each query by variant."""
    opened = films.bundle()
    weights = opened.scorer_weights()
    searcher = Searcher(DeployedModel(opened), lambda: weights)
    read_files(films.path)
    gallery = Gallery.open(films.path, opened.manifest, limits=INDEXED)
    gallery.warm_up()
    snapshot = gallery.snapshot()
    began_s = time.perf_counter()
    groups = snapshot.groups()
    groups_s = time.perf_counter() - began_s
    assert groups is not None
    snapshots = {
        name: Watched(Ungrouped(snapshot) if name == "plain" else snapshot) for name in VARIANTS
    }
    runs = in_turns(searcher, films, snapshots)
    recalls = recall_of(searcher, films, snapshots)
    gallery.close()
    # By variant and query: seconds, seconds of CPU, and seconds of reading embeddings.
    best = {name: found.min(axis=1) for name, found in runs.items()}
    medians = {name: np.median(found, axis=0) * 1e3 for name, found in best.items()}
    return {
        "segments": films.size,
        "videos": len(groups),
        "groups_s": groups_s,
        "times_ms": {name: (found[:, 0] * 1e3).tolist() for name, found in best.items()},
        "median_ms": {name: median[0] for name, median in medians.items()},
        "first_ms": {name: np.median(found[:, 0, 0]) * 1e3 for name, found in runs.items()},
        "cpu_ms": {name: median[1] for name, median in medians.items()},
        "reading_ms": {name: median[2] for name, median in medians.items()},
        "ratio": {name: median[0] / medians["plain"][0] for name, median in medians.items()},
        "cpu_ratio": {name: median[1] / medians["plain"][1] for name, median in medians.items()},
        "videos_in_ten_hits": {name: np.mean(found[:, 0, 3]) for name, found in runs.items()},
        "recall_at_10": recalls,
    }


def in_turns(
    searcher: Searcher, films: FilmGallery, snapshots: Mapping[str, Watched]
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Search for each query by each variant.

    Returns [queries, runs, 4] by variant: seconds, seconds of CPU, seconds of reading embeddings,
    and the number of different videos among the hits.
    """
    runs: dict[str, list[list[tuple[float, ...]]]] = {name: [] for name in VARIANTS}
    queries, names = films.queries(), list(VARIANTS)
    for n, query in enumerate([queries[0], *queries]):
        turn = n % len(names)
        for name in names[turn:] + names[:turn]:
            snapshot = snapshots[name]
            samples: list[tuple[float, ...]] = []
            for _ in range(RUNS):
                snapshot.reading_s = 0.0
                began_s, cpu_s = time.perf_counter(), time.process_time()
                (found,) = searcher.search([query], snapshot, VARIANTS[name])
                spent_s = time.perf_counter() - began_s, time.process_time() - cpu_s
                videos = len({hit.id for hit in found})
                samples.append((*spent_s, snapshot.reading_s, videos))
            if n:  # the first one warms up
                runs[name].append(samples)
    return {name: np.array(found) for name, found in runs.items()}


def recall_of(
    searcher: Searcher, films: FilmGallery, snapshots: Mapping[str, Watched]
) -> dict[str, float]:
    """Return the recall@10 with and without groups. Refined ranges change no hit."""
    names = ("plain", "grouped")

    def exactly(name: str) -> Callable[[list[Query]], list[SearchResults]]:
        options = replace(VARIANTS[name], exact=True)
        return lambda queries: searcher.search(queries, snapshots[name], options)

    exact = films.exact({name: exactly(name) for name in names})
    queries = films.queries()[:RECALL_QUERIES]
    found = {
        name: [names_of(hits) for hits in searcher.search(queries, snapshots[name], VARIANTS[name])]
        for name in names
    }
    return {name: recall(found[name], exact[name]) for name in names}


def table(result: dict[str, Any]) -> str:
    """Return a Markdown table with a row for each variant."""
    recalls = result["recall_at_10"]
    lines = [
        f"{result['segments']:,} segments of {result['videos']:,} films, synthetic, D = {DIM}, "
        f"F = {FRAMES}; two stages, 300 candidates, k = 10; in turns in one process, the fastest "
        f"of {RUNS} runs; milliseconds a query. Groups are read once, in "
        f"{result['groups_s']:.1f} s. Written by `python -m benchmarks.grouping`.",
        "",
        "| search | median | 99th percentile | median to plain | CPU to plain | first run, median "
        "| of which reading embeddings | different videos in 10 hits | recall@10 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, times in result["times_ms"].items():
        cells = [
            name,
            f"{result['median_ms'][name]:.1f}",
            f"{np.quantile(times, 0.99):.1f}",
            f"{result['ratio'][name]:.2f}",
            f"{result['cpu_ratio'][name]:.2f}",
            f"{result['first_ms'][name]:.1f}",
            f"{result['reading_ms'][name]:.1f}",
            f"{result['videos_in_ten_hits'][name]:.1f}",
            f"{recalls[name]:.3f}" if name in recalls else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the latencies of each variant, sorted as PNG, light and dark."""
    write_pngs(lambda: _figure(result), path)


def _figure(result: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, times in result["times_ms"].items():
        axes.plot(np.linspace(0, 100, len(times)), sorted(times), label=name)
    axes.set(xlabel="share of queries, %", ylabel="ms a query", ylim=(0, None))
    axes.set_title(f"{result['segments']:,} segments", fontsize=10)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
