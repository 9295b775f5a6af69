"""The use of the cores: while videos are indexed by 1 to 8 decoders, and by one whole query.

    python -m benchmarks.cores --checkpoint run/last.pt --videos run/videos

Indexing shares the cores between processes that decode and threads that encode. For each number of
decoders, the benchmark reads ``/proc/stat`` and the kernel's account of this process. The machine
must do nothing else, since ``/proc/stat`` counts every process.

A query encodes one text and scores 1,000 videos. Threads of ONNX Runtime that wait may spin, stop
spinning after a run, or never spin. Results go to a table and a picture. ``--toy`` indexes the
videos once and asks a few queries.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import psutil

from xclip_deploy import Bundle, Retriever, export_bundle
from xclip_deploy.runtime.arrays import FloatArray
from xclip_deploy.runtime.benchmark.machine import installed_versions, this_machine
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.sessions.block_scorer import CpuBlockScorer
from xclip_deploy.runtime.sessions.onnx_session import import_onnxruntime, open_bytes
from xclip_deploy.runtime.theme import write_pngs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WORKERS = (1, 2, 4, 8)
SCORED = 1000
SEED = 0
WAITING = {"spin": ("1", "0"), "stop after a run": ("1", "1"), "never spin": ("0", "0")}
"""ONNX Runtime's ``allow_spinning`` and ``force_spinning_stop``, by what threads do."""
QUERY = "a man is driving a car"


class Reading(NamedTuple):
    """Counters of the kernel at one time."""

    wall_s: float
    busy_s: float
    """Time of all cores in which they did not idle, of every process."""
    own_s: float
    """Processor time of this process and of its children, which decode."""
    switches: int
    """Context switches of the machine."""

    @classmethod
    def now(cls) -> Reading:
        """Read ``/proc/stat`` and the account of this process."""
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        ticks = [int(field) for field in lines[0].split()[1:9]]
        idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
        switches = next(int(line.split()[1]) for line in lines if line.startswith("ctxt"))
        usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own_s = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        # Decoders wait for the next videos once these are read, so that they are no ended children.
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                own_s += sum(child.cpu_times()[:2])
        busy_s = (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")
        return cls(time.perf_counter(), busy_s, own_s, switches)


def main() -> None:
    """Export, index and ask, then write table and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos to index")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="one round and a few queries")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("cores-work"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bundle = options.work / "bundle"
    if not bundle.is_dir():
        export_bundle(options.checkpoint, bundle)
    rounds, queries = (1, 3) if options.toy else (options.rounds, 100)
    result = {
        "cores": usable_cores(),
        "machine": vars(this_machine()),
        "versions": installed_versions(),
        "seed": SEED,
        "rounds": rounds,
        "indexing": index(bundle, options.videos, options.work / "gallery", rounds),
        "queries": ask(Bundle.open(bundle), queries),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    replace_text(options.output / "cores.json", json.dumps(result, indent=1, default=str) + "\n")
    replace_text(options.output / "cores.md", table(result))
    draw(result, options.output / "cores.png")
    print(table(result))


def index(bundle: Path, videos: Path, gallery: Path, rounds: int) -> list[dict[str, Any]]:
    """Index a folder anew with each number of decoders in turn; return medians of the rounds."""
    found: dict[int, list[dict[str, float]]] = {workers: [] for workers in WORKERS}
    session = SessionOptions(device="cpu")
    count = 0
    for _ in range(rounds):
        for workers, points in found.items():
            shutil.rmtree(gallery, ignore_errors=True)
            with Retriever(bundle, gallery, create=True, session=session) as retriever:
                retriever.model.load()
                before = Reading.now()
                retriever.add(videos, workers=workers)
                points.append(between(before, Reading.now()))
                count = len(retriever)
    return [
        {
            "workers": workers,
            "videos": count,
            "videos_per_s": count / float(np.median([point["seconds"] for point in points])),
            **{name: float(np.median([point[name] for point in points])) for name in points[0]},
        }
        for workers, points in found.items()
    ]


def between(before: Reading, after: Reading) -> dict[str, float]:
    """Return what happened between two readings, as shares of all cores and by the second."""
    seconds = after.wall_s - before.wall_s
    available_s = seconds * usable_cores()
    return {
        "seconds": seconds,
        "busy_share": (after.busy_s - before.busy_s) / available_s,
        "own_share": (after.own_s - before.own_s) / available_s,
        "switches_per_s": (after.switches - before.switches) / seconds,
    }


def ask(bundle: Bundle, queries: int) -> list[dict[str, Any]]:
    """Encode a text and score videos, with each way of waiting in turn; return medians."""
    config = bundle.manifest.model
    ids = bundle.tokenizer().encode([QUERY], config.max_words).astype(np.int32)
    encoders = {name: open_encoder(bundle, *ways) for name, ways in WAITING.items()}
    scorer = CpuBlockScorer(config, bundle.scorer_weights(), open_bytes)
    random = np.random.default_rng(SEED)
    videos = VideoFeatures(
        unit(random, SCORED, config.embed_dim).astype(np.float16),
        unit(random, SCORED, config.max_frames, config.embed_dim).astype(np.float16),
        np.full(SCORED, config.max_frames, np.int32),
    )
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WAITING}
    for _ in range(queries + 1):  # the first ones load what they need, and do not count
        for name, encoder in encoders.items():
            time.sleep(0.02)  # threads of the query before come to rest
            began_s, cpu_s = time.perf_counter(), time.process_time()
            sentence, words = encoder.run(None, {"token_ids": ids})
            encoded_s = time.perf_counter()
            scorer.score(TextFeatures(sentence, words, np.array([8], np.int32)), videos)
            ended_s, ended_cpu_s = time.perf_counter(), time.process_time()
            times[name].append((encoded_s - began_s, ended_s - encoded_s, ended_cpu_s - cpu_s))
    medians = {name: np.median(found[1:], axis=0) * 1e3 for name, found in times.items()}
    return [
        {"threads": name, "encode_ms": encode, "score_ms": score, "cpu_ms": cpu}
        for name, (encode, score, cpu) in ((n, m.tolist()) for n, m in medians.items())
    ]


def open_encoder(bundle: Bundle, allow_spinning: str, force_stop: str) -> Any:  # noqa: ANN401
    """Load the FP32 text encoder with ONNX Runtime's options for waiting threads."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", allow_spinning)
    options.add_session_config_entry("session.force_spinning_stop", force_stop)
    path = bundle.graph_path(Graph.TEXT_ENCODER, Precision.FP32)
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )


def unit(random: np.random.Generator, *shape: int) -> FloatArray:
    """Draw vectors of unit length."""
    drawn = random.standard_normal(shape, dtype=np.float32)
    length: FloatArray = np.linalg.norm(drawn, axis=-1, keepdims=True)
    return drawn / length


def table(result: dict[str, Any]) -> str:
    """Return two Markdown tables: indexing by decoders, and queries by ways of waiting."""
    indexing, queries = result["indexing"], result["queries"]
    lines = [
        f"Indexing of {indexing[0]['videos']} videos and queries of {SCORED:,} videos on "
        f"{result['cores']} cores, medians. Written by `python -m benchmarks.cores`.",
        "",
        "| decoders | videos/s | cores busy | by this command | context switches/s |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {point['workers']} | {point['videos_per_s']:.2f} | {point['busy_share']:.0%} | "
        f"{point['own_share']:.0%} | {point['switches_per_s']:,.0f} |"
        for point in indexing
    ]
    lines += ["", "| waiting threads | encode, ms | score, ms | processor time, ms |"]
    lines += ["|---|---|---|---|"]
    lines += [
        f"| {point['threads']} | {point['encode_ms']:.1f} | {point['score_ms']:.1f} | "
        f"{point['cpu_ms']:.1f} |"
        for point in queries
    ]
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw videos a second and the busy share by number of decoders as PNG, light and dark."""
    write_pngs(lambda: _figure(result), path)


def _figure(result: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    speed, share = figure.subplots(1, 2)
    points: Sequence[dict[str, Any]] = result["indexing"]
    workers = [point["workers"] for point in points]
    speeds = [point["videos_per_s"] for point in points]
    speed.plot(workers, speeds, "o-")
    speed.set(xlabel="decoders", ylabel="videos indexed a second", ylim=(0, 1.1 * max(speeds)))
    for name, label in (("busy_share", "all processes"), ("own_share", "this command")):
        share.plot(workers, [point[name] for point in points], "o-", label=label)
    share.set(xlabel="decoders", ylabel="share of the cores' time", ylim=(0, 1.05))
    share.legend()
    for axes in (speed, share):
        axes.set_xticks(workers)
        axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
