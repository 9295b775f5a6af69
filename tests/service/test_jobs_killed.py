"""The real program is killed while it receives and indexes; what it acknowledged is there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import numpy.typing as npt
import pytest

from xclip_deploy import Retriever
from xclip_deploy.runtime.gallery import Gallery

API = "/api/v1"
ENDED = ("done", "failed", "cancelled")
COUNT = 24


@pytest.fixture(scope="module")
def clips_to_send(tmp_path_factory: pytest.TempPathFactory, videos_path: Path) -> list[Path]:
    """Small clips of random blocks, some of equal content, and a long one in several segments."""
    folder = tmp_path_factory.mktemp("sent")
    paths = []
    for n in range(COUNT):
        rng = np.random.default_rng(n - 3 if n % 6 == 5 else n)
        path = folder / f"{n:03}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=2)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for _ in range(4):
                blocks = rng.integers(0, 255, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(blocks, format="rgb24")))
            container.mux(stream.encode(None))
        paths.append(path)
    return [*paths, videos_path / "numbers.mp4"]


class Program:
    """``xclip-deploy serve`` on a folder, started again after each end."""

    def __init__(self, bundle: Path, folder: Path, *options: str) -> None:
        self.gallery = folder / "gallery"
        self.data = folder / "data"
        code = "from xclip_deploy.cli import main; main()"
        self._command = [
            sys.executable, "-c", code, "serve", str(bundle), "--gallery", str(self.gallery),
            "--data", str(self.data), "--port", "0", "--device", "cpu", "--workers", "1", *options,
        ]  # fmt: skip
        self._log = folder / "log"

    @contextmanager
    def running(self) -> Iterator[tuple[subprocess.Popen[bytes], httpx2.Client]]:
        with self._log.open("ab") as log:
            start = log.tell()
            process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
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
            said = self._log.read_bytes()[start:].decode()
            for line in said.splitlines():
                if "serves at " in line:
                    return line.split("serves at ")[1].split()[0]
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)


def jobs_of(client: httpx2.Client) -> dict[str, Any]:
    return {job["id"]: job for job in client.get(f"{API}/jobs?limit=1000").json()["jobs"]}


def wait_for_all(client: httpx2.Client) -> dict[str, Any]:
    deadline = time.monotonic() + 240
    while True:
        jobs = jobs_of(client)
        if all(job["state"] in ENDED for job in jobs.values()):
            return jobs
        assert time.monotonic() < deadline, jobs
        time.sleep(0.1)


Rows = dict[str, tuple[list[tuple[float | None, float | None]], npt.NDArray[np.float32]]]


def rows_of(gallery_path: Path, bundle_path: Path) -> Rows:
    """Every video by content: the times of its segments, and their embeddings."""
    from xclip_deploy import Bundle

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


@pytest.mark.slow
def test_killed_while_it_receives_and_indexes(
    bundle_path: Path, clips_to_send: list[Path], tmp_path: Path
) -> None:
    with Retriever(bundle_path, tmp_path / "whole", create=True, device="cpu") as retriever:
        report = retriever.add(clips_to_send, segment="8s", workers=1)
        assert not report.failed
    program = Program(bundle_path, tmp_path)
    rng = random.Random(7)
    left = list(clips_to_send)
    acknowledged: dict[str, str] = {}
    kills = 0
    while left:
        with program.running() as (process, client):
            assert acknowledged.keys() <= jobs_of(client).keys()
            if kills < 4:
                threading.Timer(rng.uniform(0.1, 1.5), process.kill).start()
            while left:
                try:
                    job_id = upload_in_segments(client, left[0])
                except httpx2.TransportError:
                    kills += 1
                    break
                acknowledged[job_id] = left.pop(0).name
                time.sleep(rng.uniform(0, 0.3))
    assert kills >= 2
    with program.running() as (_, client):
        jobs = wait_for_all(client)
        assert acknowledged.keys() <= jobs.keys()
        for job_id, name in acknowledged.items():
            job = jobs[job_id]
            assert job["state"] == "done", job
            assert job["title"] == name
            assert len(job["videos"]) == 1, job
        assert max(job["num_starts"] for job in jobs.values()) > 1, "no job was interrupted"
    check_equal(rows_of(program.gallery, bundle_path), rows_of(tmp_path / "whole", bundle_path))
    store = program.data / "uploads"
    assert not any((store / "partial").iterdir())
    contents = rows_of(program.gallery, bundle_path).keys()
    assert {path.name for path in store.iterdir()} - {"partial"} == set(contents)
    assert all(len(list((store / content).iterdir())) == 1 for content in contents)


def upload_in_segments(client: httpx2.Client, path: Path) -> str:
    files = [("files", (path.name, path.read_bytes(), "video/mp4"))]
    options = {"options": json.dumps({"segment": "8s"})}
    answer = client.post(f"{API}/videos", files=files, data=options)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.mark.slow
def test_killed_in_the_middle_of_one_job(
    bundle_path: Path, clips_to_send: list[Path], tmp_path: Path
) -> None:
    """A folder in one job, killed at random moments until it gets to its end."""
    folder = clips_to_send[0].parent
    with Retriever(bundle_path, tmp_path / "whole", create=True, device="cpu") as retriever:
        retriever.add([folder], workers=1)
    program = Program(bundle_path, tmp_path, "--root", str(folder))
    rng = random.Random(3)
    job_id = ""
    for kill in range(4):
        with program.running() as (process, client):
            if not job_id:
                answer = client.post(f"{API}/index", json={"paths": ["."]})
                job_id = answer.json()["id"]
            time.sleep(rng.uniform(0, 0.6))
            process.kill()
            process.wait()
            assert kill < 4
    with program.running() as (_, client):
        job = wait_for_all(client)[job_id]
    assert job["state"] == "done"
    assert job["num_starts"] > 1
    report = job["report"]
    assert report["failed"] == []
    check_equal(rows_of(program.gallery, bundle_path), rows_of(tmp_path / "whole", bundle_path))


@pytest.mark.slow
def test_asked_to_end(bundle_path: Path, clips_to_send: list[Path], tmp_path: Path) -> None:
    """Streams of events end, the job waits for the next start, and nothing is lost."""
    folder = clips_to_send[0].parent
    program = Program(bundle_path, tmp_path, "--root", str(folder))
    with program.running() as (process, client):
        job_ids = [
            client.post(f"{API}/index", json={"paths": ["."], "on_duplicate": "replace"}).json()[
                "id"
            ]
            for _ in range(6)
        ]
        with client.stream("GET", f"{API}/events") as stream:
            process.send_signal(signal.SIGTERM)
            lines = list(stream.iter_lines())  # to its end
        assert any(line.startswith("data: ") for line in lines)
        assert process.wait(60) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    with program.running() as (_, client):
        jobs = wait_for_all(client)
    assert [jobs[job_id]["state"] for job_id in job_ids] == ["done"] * 6
    assert all(job["report"]["failed"] == [] for job in jobs.values())
