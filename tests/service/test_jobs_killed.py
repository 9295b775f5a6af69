"""The real program is killed while it receives and indexes; what it acknowledged is there."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import pytest
from served_programs import Load, Program, check_equal, jobs_of, rows_of, search, wait_for_all

from xclip_deploy import Retriever
from xclip_deploy.wire import API

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


@pytest.mark.slow
def test_killed_while_it_searches_receives_and_indexes(
    bundle_path: Path, clips_to_send: list[Path], tmp_path: Path
) -> None:
    """Four clients search all the time, one uploads and removes, and the service is killed."""
    with Retriever(bundle_path, tmp_path / "whole", create=True, device="cpu") as retriever:
        report = retriever.add(clips_to_send, segment="8s", workers=1)
        assert not report.failed
    program = Program(bundle_path, tmp_path)
    rng = random.Random(7)
    left = list(clips_to_send)
    acknowledged: dict[str, str] = {}
    removed: set[str] = set()
    asked: str | None = None
    statuses: Counter[int] = Counter()
    kills = 0
    while left:
        with program.running() as (process, client), Load(client.base_url, search) as load:
            jobs = jobs_of(client)
            assert acknowledged.keys() <= jobs.keys()
            if asked is not None and is_gone(client, asked):
                removed.add(asked)  # the answer alone was lost
            assert all(is_gone(client, each) for each in removed)
            if kills < 4:
                threading.Timer(rng.uniform(0.1, 1.5), process.kill).start()
            try:
                asked = lone_video(jobs, left, clips_to_send) if len(removed) < 2 else None
                if asked is not None:
                    assert client.delete(f"{API}/videos/{asked}").json() == {"num_removed": 1}
                    removed.add(asked)
                while left:
                    job_id = upload_in_segments(client, left[0])
                    acknowledged[job_id] = left.pop(0).name
                    time.sleep(rng.uniform(0, 0.3))
            except httpx2.TransportError:
                kills += 1
        statuses += load.statuses
    assert kills >= 2
    assert removed
    assert set(statuses) == {200}, statuses
    assert statuses[200] > 20
    with program.running() as (_, client), Load(client.base_url, search) as load:
        jobs = wait_for_all(client)
        assert acknowledged.keys() <= jobs.keys()
        for job_id, name in acknowledged.items():
            job = jobs[job_id]
            assert job["state"] == "done", job
            assert job["title"] == name
            assert len(job["videos"]) == 1, job
        assert max(job["num_starts"] for job in jobs.values()) > 1, "no job was interrupted"
    assert set(load.statuses) == {200}, load.statuses
    expected = rows_of(tmp_path / "whole", bundle_path)
    for each in removed:
        del expected[each]
    check_equal(rows_of(program.gallery, bundle_path), expected)
    store = program.data / "uploads"
    assert not any((store / "partial").iterdir())
    assert {path.name for path in store.iterdir()} - {"partial"} == set(expected)
    assert all(len(list((store / content).iterdir())) == 1 for content in expected)


def lone_video(jobs: dict[str, Any], left: list[Path], sent: list[Path]) -> str | None:
    """Return the handle of a video that was added and that no job to come adds again."""
    names: dict[str, list[str]] = {}
    for path in sent:
        names.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), []).append(path.name)
    busy = {path.name for path in left}
    busy |= {job["title"] for job in jobs.values() if job["state"] != "done"}
    handles = [handle for job in jobs.values() for handle in job["videos"]]
    return next((each for each in handles if not busy.intersection(names[each])), None)


def is_gone(client: httpx2.Client, handle: str) -> bool:
    return client.get(f"{API}/videos/{handle}").status_code == 404


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
