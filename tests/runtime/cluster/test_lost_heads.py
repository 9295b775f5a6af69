"""A cluster whose head is killed and started again, with and without Redis."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_galleries import PROGRAMS
from cluster_started import StartedCluster, running_redis, started_cluster

pytestmark = pytest.mark.slow
REDIS = os.environ.get("XCLIP_REDIS_SERVER") or shutil.which("redis-server")


def run(cluster: StartedCluster, *words: object, **environment: str) -> Any:
    """Run a command in a process of its own."""
    program = Path(sys.executable).with_name("xclip-deploy")
    return subprocess.run(
        [program, *map(str, words), "--cluster", cluster.address, "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**cluster.environment, **environment},
    )


def output_of(cluster: StartedCluster, *words: object) -> Any:
    done = run(cluster, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def states_of(bundle: Path, gallery: Path, cluster: StartedCluster) -> list[str]:
    found = output_of(cluster, "shards", gallery, "--bundle", bundle)
    return [state["state"] for state in found["shards"]]


def found_ids(bundle: Path, gallery: Path, cluster: StartedCluster) -> list[str]:
    place = ("--gallery", gallery, "--bundle", bundle)
    found = output_of(cluster, "search", "a dog", *place, "--timeout", 60)
    return [hit["id"] for hit in found[0]["results"]]


def serve(bundle: Path, gallery: Path, cluster: StartedCluster) -> None:
    served = output_of(cluster, "serve-shards", gallery, "--bundle", bundle, "--cpus", 0.5)[
        "shards"
    ]
    assert [state["state"] for state in served] == ["ready"] * 3


@contextmanager
def asking(bundle: Path, gallery: Path, cluster: StartedCluster) -> Iterator[Any]:
    """Run a process that stays connected; give a function that lets it search."""
    words = (PROGRAMS / "cluster_program.py", bundle, gallery, "--answer", cluster.address)
    with subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=cluster.environment,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        # Ray's own messages precede it.
        assert any(line == "ready\n" for line in iter(stdout.readline, ""))

        def ask() -> str:
            stdin.write("\n")
            stdin.flush()
            return stdout.readline()

        try:
            yield ask
        finally:
            process.kill()


def test_without_redis_the_cluster_is_started_again(bundle_path: Path, galleries: Any) -> None:
    place = (bundle_path, galleries.sharded)
    with started_cluster() as cluster:
        serve(*place, cluster)
        before = found_ids(*place, cluster)
        # Whoever has not the head's token is told so.
        words = ("shards", galleries.sharded, "--bundle", bundle_path)
        stranger = run(cluster, *words, RAY_AUTH_TOKEN="0" * 64)
        assert stranger.returncode == 16
        assert "refuses this process, as its head has another token" in stranger.stderr
        cluster.kill_head()
        cluster.start_head()
        assert states_of(*place, cluster) == ["not served"] * 3
        # The other machines join the new head.
        cluster.start_node()
        serve(*place, cluster)
        assert states_of(*place, cluster) == ["ready"] * 3
        assert found_ids(*place, cluster) == before


@pytest.mark.skipif(REDIS is None, reason="needs redis-server, or its path in XCLIP_REDIS_SERVER")
def test_with_redis_the_head_alone_is_started_again(bundle_path: Path, galleries: Any) -> None:
    assert REDIS is not None
    place = (bundle_path, galleries.sharded)
    with running_redis(REDIS) as redis, started_cluster(redis) as cluster:
        serve(*place, cluster)
        before = found_ids(*place, cluster)
        with asking(*place, cluster) as ask:
            assert ask() == "found\n"
            cluster.kill_head()
            assert ask() == "found\n"
            cluster.start_head()
            # The actors are those of before.
            assert states_of(*place, cluster) == ["ready"] * 3
            assert ask() == "found\n"
            assert found_ids(*place, cluster) == before
