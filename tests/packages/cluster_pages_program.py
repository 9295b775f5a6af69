"""A program that asks galleries in shards for the pages of many queries, for tests.

It is a process of its own, as ``cluster_program.py`` is. It prints one line of JSON at the end.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from cluster_program import page

from xclip_deploy.runtime.cluster.connecting import connect

WORDS = ("dog", "man", "car", "night", "rain", "kitchen", "song", "goal", "map", "fire")
TEXTS = [f"a {WORDS[n % 10]} and a {WORDS[n // 10 + n % 4]} {n}" for n in range(50)]
OPTIONS: list[dict[str, Any]] = [
    {"exact": True},
    {"exact": False, "candidates": 20},
    {"exact": False, "candidates": 20, "offset": 4, "where": "kind = 'k1'"},
    {"exact": False, "candidates": 40, "deduplicate": True},
    {"exact": True, "group": "moment", "nms": 0.3, "offset": 6},
    {"exact": True, "from_s": 9, "nms": None, "confidence": True},
]
K = 6


def pages(retriever: Any) -> list[list[list[Any]]]:
    """Return the pages of every text, with each of the options and with a query bank."""
    bank = retriever.query_bank(TEXTS)
    return [
        [
            *(page(retriever.search(text, K, **each)) for each in OPTIONS),
            page(retriever.search(text, K, exact=False, candidates=30, query_bank=bank)),
        ]
        for text in TEXTS
    ]


def run(bundle: str, address: str, galleries: list[str]) -> dict[str, Any]:
    ray = connect(address)
    # After Ray has connected: LanceDB's threads do not survive a fork.
    from xclip_deploy.runtime.cluster import ActorOptions, ShardedRetriever

    found: dict[str, Any] = {"pages": [], "nodes": []}
    for gallery in galleries:
        with ShardedRetriever(
            bundle, gallery, address=address, actors=ActorOptions(num_cpus=0.5), timeout=60
        ) as retriever:
            found["pages"].append(pages(retriever))
            alive = ray._private.state.actors(actor_state_name="ALIVE").values()
            found["nodes"].append(len({actor["Address"]["NodeID"] for actor in alive}))
    return found


if __name__ == "__main__":
    outcome = run(sys.argv[1], sys.argv[2], sys.argv[3:])
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()
