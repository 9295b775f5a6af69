"""Fan-out, searches, commits, start and idle memory of a Ray cluster on one machine.

    python -m benchmarks.cluster --output benchmarks/results

Features are synthetic, with D = 512 and F = 12. The same videos are searched in one, three and
eight shards. The network is the loopback, so that the times are those of Ray and of this package
alone. Commits are those of ``index``: files that were read are compared with the gallery, and
written. One committer writes to one shard that holds all rows; then three write side by side.
``--toy`` measures a few hundred videos.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.galleries import World, make_bundle
from benchmarks.machine import ROOT
from xclip_deploy import Bundle
from xclip_deploy.runtime.benchmark.machine import installed_versions, this_machine
from xclip_deploy.runtime.cluster import ActorOptions, ShardedRetriever, create_shards
from xclip_deploy.runtime.cluster.connecting import connect
from xclip_deploy.runtime.cluster.publishing import publish_shards
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, VideoFile
from xclip_deploy.runtime.indexing import Task
from xclip_deploy.runtime.indexing.committing import commit_files
from xclip_deploy.runtime.indexing.records import (
    EncodedVideo,
    ReadyFile,
    SegmentTimes,
    SourceVideo,
)
from xclip_deploy.runtime.search import SearchOptions

NODES = 3
COUNTS = (3, 8, 1)
"""Numbers of shards. Commits go into the shards of the first and of the last."""
STORE_BYTES = 80 << 20
HOST = "127.0.0.2"
"""The loopback interface. Ray puts the address of the network in place of 127.0.0.1."""
COMMIT_FILES = 256
"""Files of one commit of each shard, as in ``index``."""
BUILT_AT_ONCE = 10_000
"""Most videos of which the features are made at a time."""
IDLE_S = 5.0
"""Time that the nodes rest before their memory is read, seconds."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run."""

    rows: int = 40_000
    fan_outs: int = 200
    queries: int = 60
    exact_queries: int = 15
    commits: int = 12


TOY = Sizes(rows=300, fan_outs=5, queries=5, exact_queries=3, commits=2)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("cluster-work"))
    parser.add_argument("--bundle", type=Path, help="Bundle to measure with, instead of a new one.")
    parser.add_argument("--toy", action="store_true", help="Measure a few hundred videos.")
    parser.add_argument("--nodes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.nodes:
        run_nodes(options.nodes)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    bundle = options.bundle or options.work / "bundle"
    if not bundle.is_dir():
        make_bundle(bundle, options.work / "model.pt")
    content = measure(options.work, bundle, TOY if options.toy else Sizes())
    options.output.mkdir(parents=True, exist_ok=True)
    replace_text(options.output / "cluster.json", json.dumps(content, indent=1) + "\n")
    replace_text(options.output / "cluster.md", table(content))
    print(table(content))


def run_nodes(count: int) -> None:
    """Start nodes in this process, print their address, and end them with standard input."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray.cluster_utils

    node: dict[str, Any] = {
        "num_cpus": 2,
        "object_store_memory": STORE_BYTES,
        "node_ip_address": HOST,
    }
    head = {**node, "include_dashboard": False}
    cluster: Any = ray.cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    for _ in range(count - 1):
        cluster.add_node(**node)
    print(f"address {cluster.address}", flush=True)
    sys.stdin.read()
    cluster.shutdown()


@contextmanager
def nodes(count: int) -> Iterator[tuple[str, int]]:
    """Run nodes in a process of their own; give their address and the process."""
    command = [sys.executable, "-m", "benchmarks.cluster", "--nodes", str(count)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(  # noqa: S603 - words of this module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        first = next(line for line in process.stdout if line.startswith("address "))
        yield first.split()[1], process.pid
        process.communicate(timeout=60)


def measure(work: Path, bundle: Path, sizes: Sizes) -> dict[str, Any]:
    """Measure all of it."""
    found: dict[str, Any] = {"rows": sizes.rows, "nodes": NODES, "load": os.getloadavg()[0]}
    found |= {"machine": this_machine().model_dump(), "versions": installed_versions()}
    began_s = time.perf_counter()
    with nodes(NODES) as (address, pid):
        found["up_s"] = time.perf_counter() - began_s
        time.sleep(IDLE_S)
        found["idle_bytes"] = sum(
            each.memory_full_info().pss for each in psutil.Process(pid).children(recursive=True)
        )
        tell(found)
        connect(address)
        for count in COUNTS:
            gallery = work / f"gallery-{count}"
            began_s = time.perf_counter()
            build(gallery, bundle, sizes.rows, count)
            built = {"built_s": time.perf_counter() - began_s}
            searched = measure_searches(gallery, bundle, address, sizes)
            found[f"shards_{count}"] = built | searched
            tell(found)
            if count == COUNTS[0]:
                found["three_committers_per_s"] = measure_commits(gallery, bundle, sizes)
            elif count == 1:
                found["one_committer_per_s"] = measure_commits(gallery, bundle, sizes)
            shutil.rmtree(gallery)
    return found


def measure_searches(gallery: Path, bundle: Path, address: str, sizes: Sizes) -> dict[str, Any]:
    """Start actors for every shard, and time questions and searches."""
    found: dict[str, Any] = {}
    began_s = time.perf_counter()
    with ShardedRetriever(
        bundle, gallery, address=address, actors=ActorOptions(num_cpus=0.5), timeout=60
    ) as retriever:
        found["open_s"] = time.perf_counter() - began_s
        for exact in (False, True):
            retriever.search("warm-up", exact=exact)
        found["fan_out_ms"] = times_ms(sizes.fan_outs, fan_out(retriever))
        found["two_stage_ms"] = times_ms(sizes.queries, searches(retriever, exact=False))
        found["exact_ms"] = times_ms(sizes.exact_queries, searches(retriever, exact=True))
    return found


def tell(found: dict[str, Any]) -> None:
    """Print what was found so far, in case the run is cut off."""
    print(json.dumps(found), file=sys.stderr, flush=True)


def searches(retriever: ShardedRetriever, *, exact: bool) -> Callable[[], object]:
    """Return a function that searches for another text at each call."""
    numbers = itertools.count()
    return lambda: retriever.search(f"text {next(numbers)}", exact=exact)


def fan_out(retriever: ShardedRetriever) -> Callable[[], object]:
    """Return a function that asks every shard a question that costs it nothing."""
    versions = [shard.version for shard in retriever.shards.shards]

    def question(version: int) -> Callable[[Any], Any]:
        return lambda handle: handle.answer.remote(version, "num_rows", (), SearchOptions())

    calls = {number: question(version) for number, version in enumerate(versions)}

    def ask() -> None:
        answers, failed = retriever.searches.replicas.call(calls, time.monotonic() + 60)
        assert len(answers) == len(versions)
        assert not failed

    return ask


def build(gallery: Path, bundle: Path, rows: int, count: int) -> None:
    """Write a gallery in ``count`` shards."""
    shutil.rmtree(gallery, ignore_errors=True)
    manifest = Bundle.open(bundle).manifest
    create_shards(gallery, manifest, count)
    world = World(rows, manifest.model.embed_dim, manifest.model.max_frames)
    for number, own in enumerate(np.array_split(np.arange(rows), count)):
        shard = Gallery.open(gallery / f"shard-{number:03d}", manifest)
        for part in np.array_split(own, -(-len(own) // BUILT_AT_ONCE)):
            videos = [
                GalleryVideo(
                    id=f"/videos/{n:08d}.mp4",
                    path=f"/videos/{n:08d}.mp4",
                    content_sha256=f"{n:064x}",
                    duration_s=60.0,
                    frame_times_s=tuple(map(float, range(world.frames))),
                )
                for n in part
            ]
            shard.add(videos, world.videos(int(part[0]), len(part)))
        shard.close()
    publish_shards(gallery)


def measure_commits(gallery: Path, bundle: Path, sizes: Sizes) -> list[float]:
    """Commit files into all shards side by side, and return videos a second of each time."""
    manifest = Bundle.open(bundle).manifest
    world = World(sizes.rows, manifest.model.embed_dim, manifest.model.max_frames)
    shards = [Gallery.open(place) for place in sorted(gallery.glob("shard-*"))]
    assert sum(map(len, shards)) == sizes.rows
    writers = [ThreadPoolExecutor(1) for _ in shards]
    rates = []
    count = COMMIT_FILES * len(shards)
    try:
        for n in range(sizes.commits):
            files = ready_files(world, sizes.rows + n * count, count)
            began_s = time.perf_counter()
            work = [
                writer.submit(commit_files, shard, files[place :: len(shards)])
                for place, (writer, shard) in enumerate(zip(writers, shards, strict=True))
            ]
            results = [each.result() for each in work]
            rates.append(count / (time.perf_counter() - began_s))
            assert sum(len(result.placed) for result in results) == count
    finally:
        for writer in writers:
            writer.shutdown()
        for shard in shards:
            shard.close()
    return rates


def ready_files(world: World, start: int, count: int) -> list[ReadyFile]:
    """Make files as an actor returns them."""
    features = world.videos(start, count)
    times = (SegmentTimes(0.0, 60.0, tuple(map(float, range(world.frames)))),)
    files = []
    for n in range(count):
        path, content = f"/videos/{start + n:08d}.mp4", f"{start + n:064x}"
        encoded = EncodedVideo(60.0, times, features[n : n + 1])
        file = VideoFile(path=path, size_bytes=1, modified_ns=1)
        task = Task(order=n, source=SourceVideo(path), content_sha256=content)
        files.append(ReadyFile(task, file, content, encoded))
    return files


def seconds(work: Callable[[], object]) -> float:
    """Return the time of one call."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def times_ms(count: int, work: Callable[[], object]) -> list[float]:
    """Return the times of ``count`` calls, milliseconds."""
    return [1000 * seconds(work) for _ in range(count)]


def table(content: dict[str, Any]) -> str:
    """Return the results as Markdown, beside what was asked."""

    def middle(samples: Sequence[float]) -> str:
        low, half, high = np.percentile(samples, (25, 50, 75))
        return f"{half:,.1f} ({low:,.1f} to {high:,.1f})"

    shards = [(count, content[f"shards_{count}"]) for count in sorted(COUNTS)]

    def searched(name: str, key: str, asked: str = "") -> Iterator[tuple[str, str, str]]:
        for count, found in shards:
            words = "one shard" if count == 1 else f"{count} shards"
            yield f"{name}, {words}, ms", middle(found[key]), asked if count == NODES else ""

    rows = (
        *searched("fan-out", "fan_out_ms", "< 10"),
        *searched("two-stage search", "two_stage_ms"),
        *searched("exact search", "exact_ms"),
        ("one committer, videos/s", middle(content["one_committer_per_s"]), "≥ 1,500"),
        ("three committers, videos/s", middle(content["three_committers_per_s"]), ""),
        ("nodes up, s", f"{content['up_s']:.1f}", "< 60"),
        *((f"actors of {count} up, s", f"{each['open_s']:.1f}", "") for count, each in shards),
        ("idle memory of the nodes, GB", f"{content['idle_bytes'] / 1e9:.2f}", "< 1.5"),
    )
    lines = [
        f"# A cluster of {content['nodes']} nodes on one machine",
        "",
        f"{content['rows']:,} synthetic videos, in one, three and eight shards.",
        "Medians, and the quartiles in parentheses.",
        f"The load was {content['load']:.1f} when it began.",
        "`python -m benchmarks.cluster` wrote this page.",
        "",
        "| | found | asked |",
        "|---|--:|--:|",
        *(f"| {name} | {found} | {asked} |" for name, found, asked in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
