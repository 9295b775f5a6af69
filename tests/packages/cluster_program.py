"""A program that searches shards on a real Ray cluster of this machine, for tests of the cluster.

It is a process of its own: Ray forks, which must not happen where LanceDB's threads run. It prints
one line of JSON at the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xclip_deploy.errors import XclipDeployError
from xclip_deploy.runtime.cluster.connecting import connect

TEXTS = ["a dog on a leash", "two people talk", "red", "a car in the rain at night"]
OPTIONS: list[dict[str, Any]] = [
    {"exact": True},
    {"exact": False, "candidates": 20},
    {"exact": False, "candidates": 20, "offset": 4, "where": "kind = 'k1'"},
    {"exact": False, "deduplicate": True, "group": "moment"},
    {"exact": True, "from_s": 9, "nms": None},
]


def page(results: Any) -> list[list[Any]]:
    """Return what a page shows of each hit."""
    return [
        [
            hit.id,
            hit.segment,
            hit.score,
            hit.best_frame_time_s,
            len(hit.moments),
            list(hit.near_identical),
        ]
        for hit in results
    ]


def failure(search: Callable[[], object]) -> tuple[float, str]:
    """Return the seconds until a search failed, and its error."""
    started = time.monotonic()
    try:
        search()
    except XclipDeployError as error:
        return time.monotonic() - started, f"{type(error).__name__}: {error}"
    return time.monotonic() - started, ""


def whole_again(search: Callable[[], object], limit_s: float = 30) -> float:
    """Return the seconds until a search answers."""
    started = time.monotonic()
    while failure(search)[1]:
        if time.monotonic() - started > limit_s:
            return float("inf")
        time.sleep(0.1)
    return time.monotonic() - started


def run(bundle: str, gallery: str, *, breaks: bool) -> dict[str, Any]:
    ray = connect("local")
    # After Ray has started: LanceDB's threads do not survive a fork.
    from xclip_deploy.runtime.cluster import ActorOptions, ShardedRetriever
    from xclip_deploy.runtime.cluster.publishing import publish_shards
    from xclip_deploy.runtime.gallery import Gallery

    found: dict[str, Any] = {}
    options = ActorOptions(num_cpus=0.2)
    replicas = 2 if breaks else 1
    with ShardedRetriever(
        bundle, gallery, address="local", actors=options, timeout=60, replicas=replicas
    ) as retriever:
        bank = retriever.query_bank(TEXTS)
        retriever.search("warm-up")
        found["pages"] = [
            [page(retriever.search(text, 6, **each)) for each in OPTIONS] for text in TEXTS
        ]
        found["banked"] = page(retriever.search(TEXTS[0], 6, exact=False, query_bank=bank))
        hits = retriever.search(TEXTS[0])
        found["answered"] = hits.answered_shards
        found["explained"] = retriever.explain(TEXTS[0], hits[0]).score
        found["where"] = failure(lambda: retriever.search("x", where="nowhere = 1"))[1]
        entry = retriever.shards.shards[0]
        opened = Gallery.open(Path(gallery, entry.path))
        gone = opened.videos(limit=1)[0].id
        opened.remove(gone)
        opened.close()
        publish_shards(gallery)
        before = len(retriever)
        found["before"] = gone in [hit.id for hit in retriever.search(TEXTS[0], before)]
        retriever.refresh()
        found["refreshed"] = [before, len(retriever)]
        found["after"] = gone in [hit.id for hit in retriever.search(TEXTS[0], before)]
        found["states"] = [state.state for state in retriever.states()]
        if breaks:
            found |= broken(ray, retriever)
    return found


def broken(ray: Any, retriever: Any) -> dict[str, Any]:
    """Kill and stop replicas, and return what searches did."""
    found: dict[str, Any] = {}
    replicas = retriever.searches.replicas.shards
    version = retriever.shards.shards[1].version

    def pids_of_shard() -> list[int]:
        return [ray.get(each.handle.open.remote(version)).pid for each in replicas[1]]

    def search() -> object:
        return retriever.search("a dog")

    def check_all() -> None:
        for state in retriever.states():
            if state.state != "ready":
                raise XclipDeployError(state.state)

    pids = pids_of_shard()

    retriever.searches.timeout_s = 4.0
    os.kill(pids[0], signal.SIGKILL)
    found["one_killed"] = [failure(search) for _ in range(6)]
    found["one_back_s"] = whole_again(check_all)
    pids = pids_of_shard()
    retriever.searches.timeout_s = 2.0
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    found["stopped"] = failure(search)
    found["stopped_states"] = [state.state for state in retriever.states()]
    retriever.searches.allow_partial = True
    started = time.monotonic()
    part = retriever.search("a dog")
    found["partial_s"] = time.monotonic() - started
    found["partial"] = [part.answered_shards, [shard.number for shard in part.failed_shards]]
    retriever.searches.allow_partial = False
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    found["continued_s"] = whole_again(search)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    found["killed"] = failure(search)
    found["killed_back_s"] = whole_again(search)
    return found


def serve(bundle: str, gallery: str) -> dict[str, Any]:
    """Serve shards, stop the process of one, look at them, and serve them again."""
    ray = connect("local")
    from xclip_deploy.runtime.cluster import (
        ActorOptions,
        ShardedRetriever,
        serve_shards,
        shard_states,
        stop_shards,
    )

    keywords: dict[str, Any] = {"address": "local", "actors": ActorOptions(num_cpus=0.2)}
    found: dict[str, Any] = {}
    found["served"] = [state.state for state in serve_shards(bundle, gallery, **keywords)]
    with ShardedRetriever(bundle, gallery, **keywords, timeout=60) as retriever:
        found["owns"] = retriever._owns_actors
        version = retriever.shards.shards[1].version
        pid = ray.get(retriever.searches.replicas.shards[1][0].handle.open.remote(version)).pid
    os.kill(pid, signal.SIGSTOP)
    stopped = shard_states(gallery, bundle, address="local", timeout_s=2)
    found["stopped"] = [[state.number, state.node, state.state] for state in stopped]
    started = time.monotonic()
    found["again"] = [state.state for state in serve_shards(bundle, gallery, **keywords)]
    found["again_s"] = time.monotonic() - started
    with ShardedRetriever(bundle, gallery, **keywords, timeout=60) as retriever:
        found["answered"] = retriever.search("a dog").answered_shards
    found["pid"] = pid
    found["ended"] = stop_shards(bundle, gallery, address="local")
    deadline = time.monotonic() + 30
    while Path("/proc", str(pid)).exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    found["is_gone"] = not Path("/proc", str(pid)).exists()
    if not found["is_gone"]:
        os.kill(pid, signal.SIGKILL)
    return found


def answer_lines(bundle: str, gallery: str, address: str) -> None:
    """Open the gallery, and search once for each line of standard input.

    Prints ``ready``, and then ``found`` or the error of each search.
    """
    connect(address)
    from xclip_deploy.runtime.cluster import ShardedRetriever

    with ShardedRetriever(bundle, gallery, address=address, timeout=20) as retriever:
        words = ["ready"]
        while True:
            sys.stdout.write(f"{words[-1]}\n")
            sys.stdout.flush()
            if not sys.stdin.readline():
                return
            words.append(failure(lambda: retriever.search("a dog"))[1] or "found")


if __name__ == "__main__":
    if "--answer" in sys.argv:
        answer_lines(sys.argv[1], sys.argv[2], sys.argv[4])
        sys.exit()
    if "--serve" in sys.argv:
        outcome = serve(sys.argv[1], sys.argv[2])
    else:
        outcome = run(sys.argv[1], sys.argv[2], breaks="--break" in sys.argv)
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()
