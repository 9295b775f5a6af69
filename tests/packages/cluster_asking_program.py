"""A program that opens a gallery in shards, and searches once for each line it reads, for tests.

It prints the shards that answered, or the error.
"""

from __future__ import annotations

import sys

from cluster_program import failure

from xclip_deploy.runtime.cluster.connecting import connect


def run(bundle: str, gallery: str, address: str, timeout_s: float) -> None:
    connect(address)
    # After Ray has connected: LanceDB's threads do not survive a fork.
    from xclip_deploy.runtime.cluster import ShardedRetriever

    with ShardedRetriever(bundle, gallery, address=address, timeout=timeout_s) as retriever:
        say("ready")
        for _ in sys.stdin:
            seconds, error = failure(lambda: retriever.search("a dog"))
            say(f"{error or 'found'} after {seconds:.1f} s")


def say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
