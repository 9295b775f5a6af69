"""A Ray cluster of several nodes on this machine, for tests, in a process of its own.

It prints the address, and stops the cluster when its standard input ends.
"""

from __future__ import annotations

import os
import sys
from typing import Any

STORE_BYTES = 80 << 20
HOST = "127.0.0.2"
"""The loopback interface. Ray puts the address of the network in place of 127.0.0.1."""
CPUS = 8


def start(count: int) -> Any:
    """Start ``count`` nodes on the loopback interface, with small object stores."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {
        "num_cpus": CPUS,
        "object_store_memory": STORE_BYTES,
        "node_ip_address": HOST,
    }
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(count - 1):
        cluster.add_node(**node)
    return cluster


if __name__ == "__main__":
    running = start(int(sys.argv[1]))
    sys.stdout.write(f"address {running.address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    running.shutdown()
