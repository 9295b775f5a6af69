"""Latency of searches that group segments by video, against the same searches without groups.

    python -m benchmarks.grouping --output benchmarks/results

A gallery holds films of 900 segments, an hour of 8 s windows every 4 s, with synthetic features:
D = 512 and F = 12. The segments of a film resemble each other. A query is a noisy copy of one
segment. All variants search the same rows of the same open gallery in one process, in turns, so
that the load of the machine falls on all of them alike. The fastest of three runs counts.

``plain`` sees every segment as a video of its own, as searches did before there were segments. Its
candidates come from one film, and lie together on disk. Those of grouped searches come from many;
a column tells the time of reading them. Text encoding is not measured. The gallery is indexed and
warmed up. ``--toy`` measures a gallery of a thousand segments.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.galleries import (
    BATCH,
    DIM,
    FRAMES,
    INDEXED,
    Floats,
    World,
    make_bundle,
    read_files,
    read_queries,
    unit,
)
from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, Snapshot
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.search import Query, Searcher, SearchOptions
from xclip_deploy.runtime.theme import write_pngs
from xclip_deploy.runtime.video.segmentation import Segmentation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SEGMENTS_PER_FILM = 900
WINDOWS = Segmentation("windows", 8.0, 4.0)
QUERIES = 100
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
    bundle = options.work / "bundle"
    options.work.mkdir(parents=True, exist_ok=True)
    if not bundle.is_dir():
        make_bundle(bundle, options.work / "model.pt")
    path = options.work / f"films-{size}"
    films = Films(size, per_film)
    if not (options.work / f"built-{size}").is_file():
        build(path, bundle, films)
        (options.work / f"built-{size}").touch()
    result = measure(path, bundle, films)
    options.output.mkdir(parents=True, exist_ok=True)
    replace_text(options.output / "grouping.json", json.dumps(result, indent=1) + "\n")
    replace_text(options.output / "grouping.md", table(result))
    draw(result, options.output / "grouping.png")
    print(table(result))


class Films:
    """Source of synthetic segments, the same in every process."""

    def __init__(self, size: int, per_film: int) -> None:
        self.size, self.per_film = size, per_film
        self.world = World(size)
        rng = np.random.default_rng(23)
        count = -(-size // per_film)
        self.films = unit(rng.standard_normal((count, DIM), dtype=np.float32))

    def features(self, start: int, count: int) -> VideoFeatures:
        """Return the FP16 features of ``count`` segments from number ``start`` on."""
        rng = np.random.default_rng([29, start])
        films = self.films[np.arange(start, start + count) // self.per_film]
        own = unit(rng.standard_normal((count, DIM), dtype=np.float32))
        core = unit(0.6 * films + 0.8 * own)
        noise = self.world.noise
        picked = noise[rng.integers(0, len(noise), (count, FRAMES))]
        frames = unit(core[:, np.newaxis] + 0.6 * picked)  # [V, F, D]
        return VideoFeatures(
            unit(frames.mean(axis=1)).astype(np.float16),
            frames.astype(np.float16),
            np.full(count, FRAMES, np.int32),
        )

    def rows(self, start: int, count: int) -> list[GalleryVideo]:
        """Return the records of these segments."""
        window_s, stride_s = WINDOWS.window_s or 0.0, WINDOWS.stride_s or 0.0
        rows = []
        for n in range(start, start + count):
            film, segment = divmod(n, self.per_film)
            segments = min(self.per_film, self.size - film * self.per_film)
            start_s = segment * stride_s
            rows.append(
                GalleryVideo(
                    id=f"/films/{film:06d}.mkv",
                    path=f"/films/{film:06d}.mkv",
                    content_sha256=f"{film:064x}",
                    duration_s=segments * stride_s + window_s - stride_s,
                    segment=segment,
                    num_segments=segments,
                    start_s=start_s,
                    end_s=start_s + window_s,
                    segmentation=WINDOWS.text,
                    frame_times_s=tuple(start_s + window_s * f / FRAMES for f in range(FRAMES)),
                    metadata={"source": f"cam{film % 8}"},
                )
            )
        return rows

    def queries(self) -> list[Query]:
        """Return queries that are noisy copies of segments all over the gallery."""
        step = self.per_film * max(1, BATCH // self.per_film)
        places = np.random.default_rng(17).integers(0, self.size, QUERIES)
        targets: Floats = np.zeros((QUERIES, DIM), np.float32)
        for start in np.unique(places // step) * step:
            here = places // step == start // step
            features = self.features(int(start), min(step, self.size - int(start)))
            targets[here] = features.video_features[places[here] - start]
        return read_queries(*self.world.queries(targets))


class Watched:
    """A snapshot that sums the time of reading embeddings; without groups if ``is_plain``."""

    def __init__(self, snapshot: Snapshot, *, is_plain: bool) -> None:
        self._snapshot, self._is_plain = snapshot, is_plain
        self.num_videos = len(snapshot) if is_plain else snapshot.num_videos
        self.reading_s = 0.0

    def __len__(self) -> int:
        return len(self._snapshot)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all that a snapshot has
        return getattr(self._snapshot, name)

    def groups(self) -> Groups | None:
        """Return None where every row is a video."""
        return None if self._is_plain else self._snapshot.groups()

    def features(self, rows: Rows) -> VideoFeatures:
        """Read embeddings."""
        began_s = time.perf_counter()
        found = self._snapshot.features(rows)
        self.reading_s += time.perf_counter() - began_s
        return found


def build(path: Path, bundle: Path, films: Films) -> None:
    """Write and optimise the gallery; each commit holds whole films."""
    shutil.rmtree(path, ignore_errors=True)
    gallery = Gallery.open(path, Bundle.open(bundle).manifest, create=True)
    step = films.per_film * max(1, BATCH // films.per_film)
    for start in range(0, films.size, step):
        count = min(step, films.size - start)
        gallery.add(films.rows(start, count), films.features(start, count))
        print(f"{start + count} segments written", file=sys.stderr)
    gallery.optimize(lambda progress: print(progress.note, file=sys.stderr), keep_s=0)
    gallery.close()


def measure(path: Path, bundle: Path, films: Films) -> dict[str, Any]:
    """Search the gallery in turns; return milliseconds of each query by variant."""
    opened = Bundle.open(bundle)
    weights = opened.scorer_weights()
    searcher = Searcher(DeployedModel(opened), lambda: weights)
    read_files(path)
    gallery = Gallery.open(path, opened.manifest, limits=INDEXED)
    gallery.warm_up()
    snapshot = gallery.snapshot()
    began_s = time.perf_counter()
    groups = snapshot.groups()
    groups_s = time.perf_counter() - began_s
    assert groups is not None
    snapshots = {name: Watched(snapshot, is_plain=name == "plain") for name in VARIANTS}
    times_ms: dict[str, list[float]] = {name: [] for name in VARIANTS}
    reading_ms: dict[str, list[float]] = {name: [] for name in VARIANTS}
    videos: dict[str, list[int]] = {name: [] for name in VARIANTS}
    queries = films.queries()
    names = list(VARIANTS)
    for n, query in enumerate([queries[0], *queries]):
        turn = n % len(names)
        for name in names[turn:] + names[:turn]:
            runs = []
            for _ in range(RUNS):
                snapshots[name].reading_s = 0.0
                began_s = time.perf_counter()
                (found,) = searcher.search([query], snapshots[name], VARIANTS[name])
                runs.append((time.perf_counter() - began_s, snapshots[name].reading_s))
            if n:  # the first one warms up
                times_ms[name].append(min(runs)[0] * 1e3)
                reading_ms[name].append(min(runs)[1] * 1e3)
                videos[name].append(len({hit.id for hit in found}))
    gallery.close()
    medians = {name: float(np.median(times)) for name, times in times_ms.items()}
    return {
        "segments": films.size,
        "videos": len(groups),
        "groups_s": groups_s,
        "times_ms": times_ms,
        "median_ms": medians,
        "reading_ms": {name: float(np.median(times)) for name, times in reading_ms.items()},
        "ratio": {name: value / medians["plain"] for name, value in medians.items()},
        "videos_in_ten_hits": {name: float(np.mean(counts)) for name, counts in videos.items()},
    }


def table(result: dict[str, Any]) -> str:
    """Return a Markdown table with a row for each variant."""
    lines = [
        f"{result['segments']:,} segments of {result['videos']:,} films, synthetic, D = {DIM}, "
        f"F = {FRAMES}; two stages, 300 candidates, k = 10; in turns in one process, the fastest "
        f"of {RUNS} runs; milliseconds a query. Groups are read once, in "
        f"{result['groups_s']:.1f} s. Written by `python -m benchmarks.grouping`.",
        "",
        "| search | median | 99th percentile | median to plain | of which reading embeddings "
        "| different videos in 10 hits |",
        "|---|---|---|---|---|---|",
    ]
    for name, times in result["times_ms"].items():
        cells = [
            name,
            f"{result['median_ms'][name]:.1f}",
            f"{np.quantile(times, 0.99):.1f}",
            f"{result['ratio'][name]:.2f}",
            f"{result['reading_ms'][name]:.1f}",
            f"{result['videos_in_ten_hits'][name]:.1f}",
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
