"""A Ray cluster that ``ray start`` makes on this machine, whose head can be lost, for tests."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from cluster_galleries import ENVIRONMENT

HOST = "127.0.0.2"
"""The loopback interface. Ray puts the address of the network in place of 127.0.0.1."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class StartedCluster:
    """A head without cores, and a machine for the actors."""

    def __init__(self, folder: Path, redis: str | None) -> None:
        self._folder = folder
        self.environment = {
            **ENVIRONMENT,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        if redis is not None:
            self.environment["RAY_REDIS_ADDRESS"] = redis
        self._port = free_port()
        self.address = f"{HOST}:{self._port}"
        self._head: set[int] = set()

    def processes(self) -> set[int]:
        """Return the processes whose command names the cluster's folder."""
        found = set()
        for each in psutil.process_iter(["cmdline"]):
            if str(self._folder) in " ".join(each.info["cmdline"] or ()):
                found.add(each.pid)
        return found

    def start_head(self) -> None:
        before = self.processes()
        self._ray(
            "--head",
            f"--port={self._port}",
            f"--temp-dir={self._folder}",
            "--num-cpus=0",
            "--include-dashboard=false",
        )
        self._head = self.processes() - before

    def start_node(self) -> None:
        self._ray(f"--address={self.address}", "--num-cpus=8")

    def kill_head(self) -> None:
        kill(self._head)
        # Ray believes that the head runs while another process of this machine, which stands for
        # another machine here, names its address.
        (self._folder / "ray_current_cluster").unlink()

    def _ray(self, *words: str) -> None:
        ray = Path(sys.executable).with_name("ray")
        common = (f"--node-ip-address={HOST}", f"--object-store-memory={80 << 20}")
        done = subprocess.run(
            [ray, "start", *words, *common],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=self.environment,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def kill(processes: set[int]) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def started_cluster(redis: str | None = None) -> Iterator[StartedCluster]:
    """Run a cluster. ``redis``: address of the Redis in which its head keeps its state."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets need a short path
    cluster = StartedCluster(folder, redis)
    try:
        cluster.start_head()
        cluster.start_node()
        yield cluster
    finally:
        for _ in range(3):  # an agent may start another process meanwhile
            kill(cluster.processes())
            time.sleep(0.5)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_redis(program: str) -> Iterator[str]:
    """Run a Redis server on the loopback interface; give its address."""
    port = free_port()
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
