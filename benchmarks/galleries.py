"""Time, disk, memory, latency and recall of galleries from 10,000 to a million videos.

    python -m benchmarks.galleries --output benchmarks/results

Features are synthetic, with D = 512 and F = 12 as in ViT-B/32. Videos of a topic resemble each
other, and frames scatter around their video. A query is a noisy copy of one video: its sentence
and its words. The exact result comes from scoring every video with the real scorer graph. Text
encoding is not measured. The gallery's files are read once before, so that the system's cache
holds them as on a running server, as far as memory allows. Each size is measured in its own
process, which keeps its memory apart. A size that was measured before is not measured again.
``--toy`` measures galleries of a few hundred videos.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gallery_report import draw_galleries, table
from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.runtime.gallery.store import SearchLimits
from xclip_deploy.runtime.search import Query, Searcher, SearchOptions

SIZES = (10_000, 100_000, 1_000_000)
TOY_SIZES = (100, 300)
DIM, FRAMES, WORDS = 512, 12, 32
VIDEOS_PER_TOPIC = 250
BATCH = 10_000
RECALL_QUERIES = 32
LATENCY_QUERIES = 100
UNLIMITED = SearchLimits(flat_videos=1 << 40, flat_bytes=1 << 40, held_bytes=1536 << 20)
INDEXED = SearchLimits(flat_videos=0)

Floats = npt.NDArray[np.float32]


def main() -> None:
    """Measure what is missing, then write table and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("galleries-work"))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--toy", action="store_true", help="measure small galleries")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.toy:
        options.sizes = list(TOY_SIZES)
    bundle = options.work / "bundle"
    if options.measure:
        print(json.dumps(measure(options.work, bundle, options.measure)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    if not bundle.is_dir():
        make_bundle(bundle, options.work / "model.pt")
    results = []
    for size in options.sizes:
        done = options.work / f"result-{size}.json"
        if not done.is_file():
            record = options.work / f"built-{size}.json"
            if not record.is_file():
                replace_text(record, json.dumps(build(options.work, bundle, size)))
            built = json.loads(record.read_text())
            command = [sys.executable, "-m", "benchmarks.galleries", "--measure", str(size)]
            command += ["--work", str(options.work)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603
            replace_text(done, json.dumps({**built, **json.loads(output.splitlines()[-1])}))
        results.append(json.loads(done.read_text()))
        print(json.dumps(results[-1], indent=1), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    replace_text(options.output / "galleries.json", json.dumps(results, indent=1) + "\n")
    replace_text(options.output / "galleries.md", table(results))
    draw_galleries(results, options.output / "galleries.png")
    print(table(results))


def make_bundle(path: Path, checkpoint: Path) -> None:
    """Export a bundle whose scorer has the published size; its encoders are not used."""
    import torch

    from xclip_deploy import export_bundle
    from xclip_deploy.runtime.model_config import ModelConfig, TextConfig, VisionConfig
    from xclip_deploy.training.checkpoints import save_checkpoint
    from xclip_deploy.training.model import XClip

    torch.manual_seed(0)
    config = ModelConfig(
        embed_dim=DIM,
        vision=VisionConfig(image_size=32, patch_size=16, width=64, layers=1, heads=1),
        text=TextConfig(vocab_size=49408, context_length=77, width=64, layers=1, heads=1),
        max_words=WORDS,
        max_frames=FRAMES,
    )
    model = XClip(config)
    with torch.no_grad():
        for name, parameter in model.scorer.named_parameters():
            if parameter.ndim == 2:
                # The matrices start training as the identity, and stay near it.
                noise = torch.randn_like(parameter) * 0.1 / len(parameter) ** 0.5
                parameter.copy_(torch.eye(len(parameter)) + noise)
            del name
    save_checkpoint(checkpoint, config, model.state_dict())
    export_bundle(checkpoint, path)


class World:
    """Source of the synthetic features, the same in every process."""

    def __init__(self, size: int, dim: int = DIM, frames: int = FRAMES) -> None:
        rng = np.random.default_rng(7)
        self.dim, self.frames = dim, frames
        self.topics = unit(rng.standard_normal((max(size // VIDEOS_PER_TOPIC, 1), dim)))
        # The noise is drawn once: a million videos would need six billion random numbers.
        self.noise = unit(rng.standard_normal((8192, dim)))

    def videos(self, start: int, count: int) -> VideoFeatures:
        """Return the FP16 features of ``count`` videos from number ``start`` on."""
        rng = np.random.default_rng([11, start])
        topics = self.topics[rng.integers(0, len(self.topics), count)]
        own = unit(rng.standard_normal((count, self.dim), dtype=np.float32))
        core = unit(0.75 * topics + 0.65 * own)
        picked = self.noise[rng.integers(0, len(self.noise), (count, self.frames))]
        frames = unit(core[:, np.newaxis] + 0.6 * picked)  # [V, F, D]
        return VideoFeatures(
            unit(frames.mean(axis=1)).astype(np.float16),
            frames.astype(np.float16),
            np.full(count, self.frames, np.int32),
        )

    @staticmethod
    def queries(videos: Floats, num_words: int = WORDS) -> tuple[Floats, Floats]:
        """Return sentences [Q, D] and words [Q, W, D] as noisy copies of videos [Q, D]."""
        rng = np.random.default_rng(13)
        sentences = unit(videos + unit(rng.standard_normal(videos.shape)))
        noise = unit(rng.standard_normal((len(videos), num_words, videos.shape[1])))
        return sentences, unit(sentences[:, np.newaxis] + 0.9 * noise)


def read_queries(sentences: Floats, words: Floats) -> list[Query]:
    """Return one query for each text."""
    count = np.array([words.shape[1]], np.int32)
    return [
        Query(TextFeatures(sentences[n : n + 1], words[n : n + 1], count))
        for n in range(len(sentences))
    ]


def build(work: Path, bundle: Path, size: int) -> dict[str, Any]:
    """Write and optimise the gallery of a size. Making the features does not count."""
    path = work / f"gallery-{size}"
    shutil.rmtree(path, ignore_errors=True)
    Path(work, f"exact-{size}.json").unlink(missing_ok=True)
    manifest = Bundle.open(bundle).manifest
    dim, frames = manifest.model.embed_dim, manifest.model.max_frames
    world = World(size, dim, frames)
    write_s = 0.0
    places = np.random.default_rng(17).integers(0, size, LATENCY_QUERIES)
    targets = np.zeros((LATENCY_QUERIES, dim), np.float32)
    durations = np.random.default_rng(19).uniform(frames, 600, size).round(2)
    gallery = Gallery.open(path, manifest, create=True)
    for start in range(0, size, BATCH):
        count = min(BATCH, size - start)
        features = world.videos(start, count)
        here = (places >= start) & (places < start + count)
        targets[here] = features.video_features[places[here] - start]
        videos = [
            GalleryVideo(
                id=f"/videos/{n:08d}.mp4",
                path=f"/videos/{n:08d}.mp4",
                content_sha256=f"{n:064x}",
                duration_s=float(durations[n]),
                frame_times_s=tuple(float(t) for t in range(frames)),
                metadata={"source": f"cam{n % 8}"},
            )
            for n in range(start, start + count)
        ]
        print(f"{size}: {start} written", file=sys.stderr)
        began_s = time.perf_counter()
        gallery.add(videos, features)
        write_s += time.perf_counter() - began_s
    sentences, words = world.queries(targets, manifest.model.max_words)
    np.savez(work / f"queries-{size}.npz", sentences=sentences, words=words)
    began_s = time.perf_counter()
    gallery.optimize(lambda progress: print(f"{size}: {progress.note}", file=sys.stderr), keep_s=0)
    files = [file for file in path.rglob("*") if file.is_file()]
    return {
        "videos": size,
        "write_s": write_s,
        "optimize_s": time.perf_counter() - began_s,
        "bytes_per_video": sum(file.stat().st_size for file in files) / size,
    }


def measure(work: Path, bundle: Path, size: int) -> dict[str, Any]:
    """Open a gallery, search it and compare the results, in this process."""
    path = work / f"gallery-{size}"
    opened = Bundle.open(bundle)
    model = DeployedModel(opened)
    weights = opened.scorer_weights()
    with np.load(work / f"queries-{size}.npz") as arrays:
        queries = read_queries(arrays["sentences"], arrays["words"])
    import lancedb  # noqa: F401  # keeps its import out of the opening time

    read_files(path)
    began_s = time.perf_counter()
    gallery = Gallery.open(path, opened.manifest, limits=INDEXED)
    count = len(gallery)
    result: dict[str, Any] = {"open_s": time.perf_counter() - began_s}
    assert count == size
    searcher = Searcher(model, lambda: weights)
    few = queries[:RECALL_QUERIES]
    two_stage = SearchOptions(exact=False)
    result["candidates"] = two_stage.num_candidates

    def search(with_gallery: Gallery, options: SearchOptions) -> Callable[[Query], list[str]]:
        def run(query: Query) -> list[str]:
            (found,) = searcher.search([query], with_gallery.snapshot(), options)
            return [hit.id for hit in found]

        return run

    indexed = search(gallery, two_stage)
    found = {"unwarmed": timed(indexed, queries)}
    result["unwarmed_resident_bytes"] = resident_bytes()
    began_s = time.perf_counter()
    gallery.warm_up()
    result["warm_up_s"] = time.perf_counter() - began_s
    found["indexed"] = timed(indexed, queries)
    result["indexed_resident_bytes"] = resident_bytes()
    curve = {}
    for candidates in (25, 50, 100, 200, 300, 400, 800):
        options = SearchOptions(exact=False, candidates=candidates)
        curve[candidates] = timed(search(gallery, options), few)
    gallery.close()  # so that its embeddings are not in memory twice
    flat_gallery = Gallery.open(path, opened.manifest, limits=UNLIMITED)
    found["flat"] = timed(search(flat_gallery, two_stage), queries)
    result["flat_resident_bytes"] = resident_bytes()
    exact_options = SearchOptions(exact=True)
    exact_one = timed(search(flat_gallery, exact_options), few[: 8 if size <= 100_000 else 2])
    truth = work / f"exact-{size}.json"
    if not truth.is_file():  # this takes minutes for a million videos
        hits = searcher.search(few, flat_gallery.snapshot(), exact_options)
        replace_text(truth, json.dumps([[hit.id for hit in found] for found in hits]))
    exact = json.loads(truth.read_text())
    result["exact_ms"] = exact_one[0]
    result["exact_resident_bytes"] = resident_bytes()
    for name, (times_ms, ids) in found.items():
        result[f"{name}_ms"] = times_ms
        result[f"{name}_recall_at_10"] = recall(ids, exact)
    result["curve"] = [
        {"candidates": n, "recall_at_10": recall(ids, exact), "p50_ms": float(np.median(times_ms))}
        for n, (times_ms, ids) in curve.items()
    ]
    return result


def read_files(folder: Path) -> None:
    """Read every file once, so that the system's cache holds them as far as memory allows."""
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def timed(
    run: Callable[[Query], list[str]], queries: list[Query]
) -> tuple[list[float], list[list[str]]]:
    """Return milliseconds and ids of each query, after one untimed run."""
    run(queries[0])
    times_ms, ids = [], []
    for query in queries:
        began_s = time.perf_counter()
        ids.append(run(query))
        times_ms.append((time.perf_counter() - began_s) * 1e3)
    return times_ms, ids


def recall(found: list[list[str]], exact: list[list[str]]) -> float:
    """Return the mean share of the exact first ten that was found.

    Queries without an exact result do not count.
    """
    pairs = zip(found, exact, strict=False)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


def resident_bytes() -> int:
    """Return the peak memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def unit(vectors: npt.NDArray[Any]) -> Floats:
    """Scale vectors to unit length along the last axis, in FP32."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)


if __name__ == "__main__":
    main()
