"""Jobs: their states, their events, and what they survive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from watched_jobs import API, ENDED, events, get, index, parsed, service_of, until

from xclip_deploy.errors import VideoReadError
from xclip_deploy.service.jobs import queue
from xclip_deploy.service.routes import jobs as routes

# A job and its events


def test_a_folder_is_indexed(desk: TestClient, folder: Path) -> None:
    job = index(desk, ".", metadata={"caption": "from a folder", "split": "new"})
    assert (job.kind, job.state, job.title) == ("index", "waiting", folder.name)
    found = events(desk, f"/jobs/{job.id}/events")
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))
    last = found[-1][1]
    assert last.state == "done"
    assert last == get(desk, job.id)
    report = last.report
    assert report is not None
    assert len(report.indexed) == 2
    assert sorted(report.duplicates) == ["0000.mp4", "0001.mp4"]
    assert last.created_s <= (last.started_s or 0) <= (last.ended_s or 0)
    assert last.num_starts == 1
    assert len(last.videos) == 4
    assert list(last.videos[:2]) == report.indexed
    assert str(folder) not in last.model_dump_json()
    # The client finds the videos by these names.
    gallery = service_of(desk).served.writer.gallery
    rows = gallery.snapshot().matching(f"fingerprint = '{last.videos[0]}'")
    assert gallery.snapshot().videos(rows)[0].metadata == {
        "caption": "from a folder",
        "split": "new",
    }
    listed = desk.get(f"{API}/jobs").json()
    assert listed["jobs"][0]["id"] == job.id
    assert listed["total"] >= 1


def test_progress_comes_while_it_runs(desk: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_EVERY_S", 0.0)
    job = index(desk, "sam2_dog.mp4", "mdn_frog.webm", on_duplicate="replace")
    progress = [job.progress for _, job in events(desk, f"/jobs/{job.id}/events") if job.progress]
    assert progress
    assert progress[-1].done == progress[-1].total == 2
    assert any("sam2_dog.mp4" in each.note or "mdn_frog.webm" in each.note for each in progress)


def test_replay_after_a_reconnect(desk: TestClient) -> None:
    job = index(desk, "mdn_frog.webm")
    found = events(desk, f"/jobs/{job.id}/events")
    end, last = found[-1]
    # From any point on, the rest is told, as far as it is not overtaken.
    again = events(desk, f"/jobs/{job.id}/events", **{"Last-Event-ID": str(found[0][0] - 1)})
    assert again == [(end, last)]
    assert events(desk, f"/jobs/{job.id}/events") == [(end, last)]
    assert events(desk, f"/jobs/{job.id}/events?after={found[0][0]}") == [(end, last)]
    # With nothing new, a browser is told not to come back.
    answer = desk.get(f"{API}/jobs/{job.id}/events", headers={"Last-Event-ID": str(end)})
    assert answer.status_code == 204
    # A number of another service, or nonsense, gives everything.
    for number in (str(1 << 52), "x", "-1", "1.5"):
        headers = {"Last-Event-ID": number}
        assert events(desk, f"/jobs/{job.id}/events", **headers) == [(end, last)]


def test_events_of_all_jobs(open_live: Any, settings_of: Any, folder: Path) -> None:
    """Over a socket: a page that reloads takes up where the list of jobs was."""
    import httpx2

    address = open_live(roots=(folder,))
    with httpx2.Client(base_url=address, timeout=60) as client:
        before = client.post(f"{API}/index", json={"paths": ["mdn_frog.webm"]}).json()
        with client.stream("GET", f"{API}/jobs/{before['id']}/events") as stream:
            *_, (_, done) = parsed(stream.iter_lines())
        assert done.state == "done"
        seen = max(job["last_event"] for job in client.get(f"{API}/jobs").json()["jobs"])
        job = client.post(f"{API}/index", json={"paths": ["sam2_dog.mp4"]}).json()
        with client.stream("GET", f"{API}/events?after={seen}") as stream:
            for _, told in parsed(stream.iter_lines()):
                assert told.id == job["id"]
                if told.state == "done":
                    break
        # Somebody who missed it all hears of both, in their order.
        headers = {"Last-Event-ID": str(before["last_event"] - 1)}
        with client.stream("GET", f"{API}/events", headers=headers) as stream:
            lines = parsed(stream.iter_lines())
            assert [next(lines)[1].id, next(lines)[1].id] == [before["id"], job["id"]]


def test_listeners_are_limited_and_leave(open_live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    monkeypatch.setattr(routes, "MAX_LISTENERS", 1)
    monkeypatch.setattr(routes, "ALIVE_S", 0.1)
    with httpx2.Client(base_url=open_live(), timeout=30) as client:
        with client.stream("GET", f"{API}/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "retry: 2000"
            assert any(line == ": alive" for line in lines)
            refused = client.get(f"{API}/events")
            assert refused.status_code == 429
            assert "retry-after" in refused.headers
        deadline = time.monotonic() + 20
        while True:
            with client.stream("GET", f"{API}/events") as stream:
                if stream.status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_is_not_there(desk: TestClient) -> None:
    for address in ("jobs/none", f"jobs/{'0' * 32}", "jobs/none/events"):
        answer = desk.get(f"{API}/{address}")
        assert answer.status_code == 404, answer.text
        assert answer.json()["error"]["kind"] == "UnknownJob"
    assert desk.delete(f"{API}/jobs/none").status_code == 404
    for query in ("limit=0", "limit=1001", "offset=-1", "limit=x"):
        assert desk.get(f"{API}/jobs?{query}").status_code == 422
    assert desk.get(f"{API}/events?after=-1").status_code == 422


def test_pages(desk: TestClient) -> None:
    jobs = [index(desk, "mdn_frog.webm").id for _ in range(3)]
    for job_id in jobs:
        until(desk, job_id, *ENDED)
    pages = [desk.get(f"{API}/jobs?limit=1&offset={n}").json() for n in range(3)]
    assert [page["jobs"][0]["id"] for page in pages] == jobs[::-1]
    beyond = desk.get(f"{API}/jobs?offset=1000000").json()
    assert beyond["jobs"] == []
    assert beyond["total"] >= 3


# Duplicates, cancellation, failures


def test_duplicates_as_an_error(desk: TestClient, folder: Path) -> None:
    until(desk, index(desk, "sam2_dog.mp4").id, "done")
    job = until(desk, index(desk, "sam2_dog.mp4", on_duplicate="error").id, *ENDED)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.kind == "DuplicateIdError"
    assert str(folder) not in job.error.message


def test_a_waiting_job_is_cancelled_at_once(
    desk: TestClient, clips: Path, held: threading.Event
) -> None:
    client = desk
    first = index(client, "sam2_dog.mp4")
    until(client, first.id, "running")
    content = (clips / "intel_asl_walk.mkv").read_bytes()
    files = [("files", ("frog.webm", content, "video/webm"))]
    second = client.post(f"{API}/videos", files=files).json()
    store = service_of(client).uploads
    assert store.stored_bytes == len(content)
    cancelled = client.delete(f"{API}/jobs/{second['id']}").json()
    assert cancelled["state"] == "cancelled"
    assert store.stored_bytes == 0
    held.set()
    assert until(client, first.id, *ENDED).state == "done"
    assert get(client, second["id"]).state == "cancelled"
    assert client.delete(f"{API}/jobs/{first.id}").json()["state"] == "done"


def test_a_running_job_is_cancelled_soon(desk: TestClient, held: threading.Event) -> None:
    client = desk
    size = len(service_of(client).served.writer)
    job = index(client, ".")
    until(client, job.id, "running")
    assert client.delete(f"{API}/jobs/{job.id}").json()["state"] == "running"
    assert until(client, job.id, *ENDED).state == "cancelled"
    held.set()
    assert len(service_of(client).served.writer) == size
    # The next one runs.
    assert until(client, index(client, ".").id, *ENDED).state == "done"


@pytest.mark.slow
def test_a_decoder_that_hangs_does_not_hold_a_cancelled_job(
    open_service: Callable[..., TestClient], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing gets done and no progress comes, yet the run looks up once a second."""
    from xclip_deploy.runtime.decoding import process

    client = open_service(roots=(folder,))

    def hang(self: Any, *_words: Any, **_options: Any) -> Any:
        self._process.wait()  # until the pool interrupts it
        raise VideoReadError("was interrupted")

    monkeypatch.setattr(process.DecoderProcess, "read", hang)
    job = index(client, "sam2_dog.mp4")
    until(client, job.id, "running")
    started = time.monotonic()
    client.delete(f"{API}/jobs/{job.id}")
    assert until(client, job.id, *ENDED).state == "cancelled"
    assert time.monotonic() - started < 20


def test_too_many_jobs(
    desk: TestClient, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_WAITING", 2)
    client = desk
    jobs = [index(client, "sam2_dog.mp4"), index(client, "sam2_dog.mp4")]
    refused = client.post(f"{API}/index", json={"paths": ["."]})
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "30"
    assert 'xclip_waiting{queue="jobs"}' in client.get("/metrics").text
    held.set()
    for job in jobs:
        until(client, job.id, "done")


# Restarts


# The ledger
