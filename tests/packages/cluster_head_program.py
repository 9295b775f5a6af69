"""A program that searches and indexes while the head of its cluster is killed, for tests.

It is a process of its own, as ``cluster_program.py`` is. It prints one line of JSON at the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

from cluster_program import failure

from xclip_deploy.runtime.cluster.connecting import connect

LIMIT_S = 2.0


def run(bundle: str, gallery: str, address: str, head: int) -> dict[str, Any]:
    connect(address)
    # After Ray has connected: LanceDB's threads do not survive a fork.
    from xclip_deploy.runtime.cluster import ActorOptions, ShardedRetriever, routing
    from xclip_deploy.runtime.cluster.encoding import EncoderActor, EncoderOptions
    from xclip_deploy.runtime.video.segmentation import Segmentation

    keywords: dict[str, Any] = {"address": address, "actors": ActorOptions(num_cpus=0.5)}
    retriever = ShardedRetriever(bundle, gallery, timeout=60, **keywords)
    retriever.search("warm-up")
    retriever.searches.timeout_s = LIMIT_S
    ray = retriever._ray
    kind = ray.remote(EncoderActor).options(num_cpus=1000)  # which no node has
    encoder = EncoderOptions(retriever.shards.fingerprint, Segmentation("whole"))
    dispatcher = routing.Dispatcher(ray, [kind.remote(bundle, ActorOptions(), encoder)])
    os.kill(head, signal.SIGKILL)
    found: dict[str, Any] = {"searches": []}
    started = time.monotonic()
    while time.monotonic() - started < 90:
        found["searches"].append(failure(lambda: retriever.search("a dog")))
        if found["searches"][-1][1]:
            break
        time.sleep(0.5)
    found["lost_s"] = time.monotonic() - started
    found["states"] = [state.state for state in retriever.states()]
    found["opening"] = failure(lambda: ShardedRetriever(bundle, gallery, **keywords))
    routing._HEAD_S = 3.0
    found["indexing"] = failure(lambda: take_for_ever(dispatcher))
    started = time.monotonic()
    retriever.close()
    found["close_s"] = time.monotonic() - started
    return found


def take_for_ever(dispatcher: Any) -> None:
    """Wait as ``index`` does, for an actor that never starts."""
    while True:
        dispatcher.take(lambda _path: None)


if __name__ == "__main__":
    given = sys.argv[1:]
    outcome = run(given[0], given[1], given[2], int(given[3]))
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()
