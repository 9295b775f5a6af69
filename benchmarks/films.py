"""A gallery of long films in segments, which searches with and without groups are measured on.

A film has 900 segments, an hour of 8 s windows every 4 s, with synthetic features: D = 512 and
F = 12. The segments of a film resemble each other. A query is a noisy copy of one segment. The
gallery is built once in a folder, with its bundle, its queries and their exact results.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.galleries import (
    BATCH,
    DIM,
    FRAMES,
    Floats,
    World,
    make_bundle,
    read_queries,
    unit,
)
from xclip_deploy import Bundle
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, Snapshot
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import Query
from xclip_deploy.runtime.video.segmentation import Segmentation

SEGMENTS_PER_FILM = 900
WINDOWS = Segmentation("windows", 8.0, 4.0)
QUERIES = 100
RECALL_QUERIES = 16
"""Queries whose exact results are kept. At a million segments they take minutes to compute."""


@dataclass(frozen=True)
class FilmGallery:
    """The folder of a gallery of films."""

    work: Path
    size: int
    """Number of segments."""

    @classmethod
    def found(cls, work: Path) -> FilmGallery:
        """Return the largest gallery that was built in a folder, with its queries."""
        sizes = [int(file.name.removeprefix("built-")) for file in work.glob("built-*")]
        sizes = [size for size in sizes if cls(work, size)._queries.is_file()]
        if not sizes:
            raise SystemExit(
                f"{work} holds no gallery of films; run: "
                f"python -m benchmarks.grouping --work {work}"
            )
        return cls(work, max(sizes))

    @classmethod
    def made(cls, work: Path, size: int, per_film: int = SEGMENTS_PER_FILM) -> FilmGallery:
        """Build what is missing in a folder."""
        made = cls(work, size)
        work.mkdir(parents=True, exist_ok=True)
        if not made.bundle_path.is_dir():
            make_bundle(made.bundle_path, work / "model.pt")
        films, built = Films(size, per_film), work / f"built-{size}"
        if not built.is_file():
            made._queries.unlink(missing_ok=True)
            made._truth.unlink(missing_ok=True)
            build(made.path, made.bundle_path, films)
            built.touch()
        if not made._queries.is_file():
            sentences, words = films.queries()
            with made._queries.open("wb") as file:
                np.savez(file, sentences=sentences, words=words)
        return made

    @property
    def path(self) -> Path:
        """Folder of the gallery itself."""
        return self.work / f"films-{self.size}"

    @property
    def bundle_path(self) -> Path:
        """Bundle of its model, whose scorer has the published size."""
        return self.work / "bundle"

    @property
    def _queries(self) -> Path:
        return self.work / f"films-queries-{self.size}.npz"

    @property
    def _truth(self) -> Path:
        return self.work / f"films-exact-{self.size}.json"

    def bundle(self) -> Bundle:
        """Open the bundle."""
        return Bundle.open(self.bundle_path)

    def queries(self) -> list[Query]:
        """Read the queries."""
        with np.load(self._queries) as arrays:
            return read_queries(arrays["sentences"], arrays["words"])

    def exact(
        self, searches: Mapping[str, Callable[[list[Query]], list[SearchResults]]]
    ) -> dict[str, list[list[str]]]:
        """Return the exact hits of the first queries by the name of the search.

        ``searches`` find what no earlier call has kept.
        """
        kept: dict[str, list[list[str]]] = {}
        if self._truth.is_file():
            kept = json.loads(self._truth.read_text(encoding="utf-8"))
        for name, search in searches.items():
            if name not in kept:
                print(f"searching {self.size} segments exactly, {name}", file=sys.stderr)
                kept[name] = [names_of(hits) for hits in search(self.queries()[:RECALL_QUERIES])]
                replace_text(self._truth, json.dumps(kept))
        return {name: kept[name] for name in searches}


def names_of(hits: SearchResults) -> list[str]:
    """Return the segment that each hit shows."""
    return [f"{hit.id}#{hit.segment}" for hit in hits]


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

    def queries(self) -> tuple[Floats, Floats]:
        """Return sentences and words: noisy copies of segments all over the gallery."""
        step = self.per_film * max(1, BATCH // self.per_film)
        places = np.random.default_rng(17).integers(0, self.size, QUERIES)
        targets: Floats = np.zeros((QUERIES, DIM), np.float32)
        for start in np.unique(places // step) * step:
            here = places // step == start // step
            features = self.features(int(start), min(step, self.size - int(start)))
            targets[here] = features.video_features[places[here] - start]
        return self.world.queries(targets)


class Ungrouped:
    """A snapshot in which every segment is a video of its own."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.num_videos = len(snapshot)

    def __len__(self) -> int:
        return len(self._snapshot)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all that a snapshot has
        return getattr(self._snapshot, name)

    def groups(self) -> None:
        """Return None: no rows belong together."""


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
