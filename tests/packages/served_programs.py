"""``xclip-deploy serve`` as a process of its own, the load on it, and what its gallery holds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
import psutil

from xclip_deploy import Bundle
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.wire import API

ENDED = ("done", "failed", "cancelled")
CODE = "from xclip_deploy.cli import main; main()"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
MORE_BYTES = 150 << 20
"""Most memory that a service may have more after bad requests than after the first of them."""


class Program:
    """``xclip-deploy serve`` on a folder, started again after each end."""

    def __init__(
        self, bundle: Path, folder: Path, *options: str, gallery: Path | None = None
    ) -> None:
        self.gallery = folder / "gallery" if gallery is None else gallery
        self.data = folder / "data"
        self.command = [
            sys.executable, "-c", CODE, "serve", str(bundle), "--gallery", str(self.gallery),
            "--data", str(self.data), "--port", "0", "--device", "cpu", "--workers", "1", *options,
        ]  # fmt: skip
        self.log = folder / "log"

    @contextmanager
    def running(self) -> Iterator[tuple[subprocess.Popen[bytes], httpx2.Client]]:
        with self.log.open("ab") as log:
            start = log.tell()
            process = subprocess.Popen(self.command, stdout=log, stderr=log, env=ENVIRONMENT)
            try:
                address = self._address(process, start)
                with httpx2.Client(base_url=address, timeout=60) as client:
                    yield process, client
            finally:
                process.kill()
                process.wait()

    def _address(self, process: subprocess.Popen[bytes], start: int) -> str:
        deadline = time.monotonic() + 120
        while True:
            said = self.log.read_bytes()[start:].decode()
            for line in said.splitlines():
                if "serves at " in line:
                    return line.split("serves at ")[1].split()[0]
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)


def command_line(*words: str | Path) -> str:
    """Run a command of the package in a process of its own; return what it printed."""
    command = [sys.executable, "-c", CODE, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Load:
    """Threads that send requests until the block ends; ``statuses`` counts the answers.

    ``ask`` is called with a client and the number of the call. A server that goes away ends its
    thread.
    """

    def __init__(
        self, address: Any, ask: Callable[[httpx2.Client, int], httpx2.Response], threads: int = 4
    ) -> None:
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        """Bodies of answers from 500 on."""
        self._address, self._ask = str(address), ask
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(threads)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    @property
    def count(self) -> int:
        with self._lock:
            return sum(self.statuses.values())

    def _run(self, number: int) -> None:
        with httpx2.Client(base_url=self._address, timeout=60) as client:
            while not self._is_over.is_set():
                try:
                    answer = self._ask(client, number)
                except httpx2.TransportError:
                    return
                with self._lock:
                    self.statuses[answer.status_code] += 1
                    if answer.status_code >= 500:
                        self.failures.append(answer.text)
                number += len(self._threads)


def search(client: httpx2.Client, number: int) -> httpx2.Response:
    """Search by one of several texts."""
    return client.post(f"{API}/search", json={"text": f"a red square {number % 7}", "k": 5})


def answers_of(client: httpx2.Client) -> dict[int, int]:
    """Return how many requests got each status, as the service counts them."""
    found: dict[int, int] = {}
    text = client.get("/metrics").text
    for status, count in re.findall(
        r'^xclip_requests_total\{.*status="(\d+)".*\} ([\d.e+]+)$', text, re.MULTILINE
    ):
        found[int(status)] = found.get(int(status), 0) + int(float(count))
    return found


def memory_of(process: int) -> int:
    """Return the bytes in memory of a process and those that it started."""
    first = psutil.Process(process)
    return sum(each.memory_info().rss for each in (first, *first.children(recursive=True)))


def jobs_of(client: httpx2.Client) -> dict[str, Any]:
    return {job["id"]: job for job in client.get(f"{API}/jobs?limit=1000").json()["jobs"]}


def wait_for_all(client: httpx2.Client, seconds: float = 240) -> dict[str, Any]:
    """Wait until every job has ended; return all by id."""
    deadline = time.monotonic() + seconds
    while True:
        jobs = jobs_of(client)
        if all(job["state"] in ENDED for job in jobs.values()):
            return jobs
        assert time.monotonic() < deadline, jobs
        time.sleep(0.1)


Rows = dict[str, tuple[list[tuple[float | None, float | None]], npt.NDArray[np.float32]]]


def rows_of(gallery_path: Path, bundle_path: Path) -> Rows:
    """Every video by content: the times of its segments, and their embeddings."""
    gallery = Gallery.open(gallery_path, Bundle.open(bundle_path).manifest)
    snapshot = gallery.snapshot()
    found: Rows = {}
    for video in snapshot.listing():
        assert video.content_sha256 is not None
        assert video.content_sha256 not in found, "one content twice"
        rows = snapshot.segments([video.id])[video.id]
        segments = [(each.start_s, each.end_s) for each in snapshot.videos(rows)]
        found[video.content_sha256] = (segments, snapshot.features(rows).frame_features)
    return found


def check_equal(found: Rows, expected: Rows) -> None:
    assert found.keys() == expected.keys()
    for content, (segments, features) in expected.items():
        assert found[content][0] == segments
        np.testing.assert_allclose(found[content][1], features, atol=1e-5)
