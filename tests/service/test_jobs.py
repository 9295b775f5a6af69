"""Jobs: their states, their events, and what they survive."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from xclip_deploy.runtime.failures import FailedVideo
from xclip_deploy.runtime.indexing import IndexReport
from xclip_deploy.service import ServiceSettings, create_app
from xclip_deploy.service.jobs import queue, reports, work
from xclip_deploy.service.jobs.ledger import Ledger
from xclip_deploy.service.jobs.records import JobRequest
from xclip_deploy.service.routes import jobs as routes
from xclip_deploy.service.state import Service
from xclip_deploy.wire import AddOptions, JobModel

BASE_URL = "http://127.0.0.1:8000"
API = "/api/v1"
ENDED = ("done", "failed", "cancelled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, videos_path: Path, clips: Path) -> Path:
    """A folder of clips that no gallery of the fixtures has, beside two that it has."""
    path = tmp_path_factory.mktemp("allowed")
    for name in ("mdn_frog.webm", "sam2_dog.mp4"):
        shutil.copy(clips / name, path)
    for name in ("0000.mp4", "0001.mp4"):
        shutil.copy(videos_path / "shapes" / "train" / name, path)
    return path


@pytest.fixture(scope="module")
def desk(settings_of: Callable[..., ServiceSettings], folder: Path) -> Iterator[TestClient]:
    """A service with that folder."""
    with TestClient(create_app(settings_of(roots=(folder,))), base_url=BASE_URL) as client:
        yield client


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Jobs wait, once they run, until the event is set. A job that is asked to stop goes on."""
    release = threading.Event()
    index_videos = queue.index_videos

    def waiting(*words: Any) -> IndexReport:
        control: work.Control = words[5]
        while not release.wait(0.02):
            control.pulse()
        return index_videos(*words)

    monkeypatch.setattr(queue, "index_videos", waiting)
    yield release
    release.set()


def service_of(client: TestClient) -> Service:
    service = client.app.state.service  # type: ignore[attr-defined]
    assert isinstance(service, Service)
    return service


def index(client: TestClient, *paths: str, **options: Any) -> JobModel:
    answer = client.post(f"{API}/index", json={"paths": paths, **options})
    assert answer.status_code == 202, answer.text
    job = JobModel.model_validate(answer.json())
    assert answer.headers["location"] == f"{API}/jobs/{job.id}"
    return job


def get(client: TestClient, job_id: str) -> JobModel:
    answer = client.get(f"{API}/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    return JobModel.model_validate(answer.json())


def until(client: TestClient, job_id: str, *states: str) -> JobModel:
    deadline = time.monotonic() + 60
    while (job := get(client, job_id)).state not in states:
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def events(client: TestClient, address: str, **headers: str) -> list[tuple[int, JobModel]]:
    """Read a stream to its end."""
    with client.stream("GET", f"{API}{address}", headers=headers) as answer:
        if answer.status_code == 204:
            return []
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        return list(parsed(answer.iter_lines()))


def parsed(lines: Iterator[str]) -> Iterator[tuple[int, JobModel]]:
    number = 0
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            number = int(value)
        elif name == "event":
            assert value == "job"
        elif name == "data":
            job = JobModel.model_validate_json(value)
            assert job.last_event == number
            yield number, job


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
        raise process.VideoReadError("was interrupted")

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


def test_the_gallery_goes_away(
    open_service: Callable[..., TestClient], folder: Path, held: threading.Event
) -> None:
    """Another process deletes it under a job: the job ends with an error, the service goes on."""
    client = open_service(roots=(folder,))
    service = service_of(client)
    job = index(client, "sam2_dog.mp4")
    until(client, job.id, "running")
    shutil.rmtree(service.settings.gallery)
    held.set()
    ended = until(client, job.id, *ENDED)
    assert ended.state == "failed"
    assert ended.error is not None
    assert ended.error.kind.startswith("Gallery"), ended.error
    assert str(service.settings.gallery) not in ended.error.message
    assert client.get("/health/live").status_code == 200
    assert until(client, index(client, "sam2_dog.mp4").id, *ENDED).state == "failed"


@pytest.mark.slow
def test_others_write_meanwhile(
    open_service: Callable[..., TestClient],
    folder: Path,
    bundle_path: Path,
    clips: Path,
    held: threading.Event,
) -> None:
    """Another process adds, removes and compacts between the start of a job and its commit."""
    from xclip_deploy import Retriever

    client = open_service(roots=(folder,))
    job = index(client, ".")
    until(client, job.id, "running")
    gallery = service_of(client).settings.gallery
    with Retriever(bundle_path, gallery, device="cpu") as other:
        other.add(clips / "intel_asl_walk.mkv", workers=1)
        ids = sorted(video.id for video in other.gallery)
        other.remove(ids[0])
        other.gallery.optimize()
        count = len(other)
    held.set()
    ended = until(client, job.id, *ENDED)
    assert ended.state == "done", ended
    service_of(client).served.writer.refresh()
    assert ended.report is not None
    assert len(service_of(client).served.writer) == count + len(ended.report.indexed)


@pytest.mark.slow
def test_two_services_on_one_gallery(
    open_service: Callable[..., TestClient], folder: Path, clips: Path
) -> None:
    one = open_service(roots=(folder,))
    settings = service_of(one).settings
    other = open_service(roots=(folder,), gallery=settings.gallery)
    jobs = [(client, index(client, ".")) for client in (one, other)]
    reports_of = [until(client, job.id, *ENDED).report for client, job in jobs]
    assert all(report is not None and not report.failed for report in reports_of)
    for client, _ in jobs:
        service_of(client).served.writer.refresh()
    sizes = {len(service_of(client).served.writer) for client, _ in jobs}
    assert sizes == {9}  # 7 of the fixture and two new ones, each once


# Restarts


def test_a_shutdown_lets_a_job_wait(
    settings_of: Callable[..., ServiceSettings],
    folder: Path,
    held: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "GRACE_S", 0.1)
    settings = settings_of(roots=(folder,))
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        jobs = [index(client, "sam2_dog.mp4"), index(client, "mdn_frog.webm")]
        running = until(client, jobs[0].id, "running")
    held.set()
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        for job, starts in zip(jobs, (2, 1), strict=True):
            ended = until(client, job.id, *ENDED)
            assert ended.state == "done"
            assert ended.num_starts == starts
            assert ended.report is not None
            assert len(ended.report.indexed) == 1
        # A client that was told of the first start hears of everything since.
        headers = {"Last-Event-ID": str(running.last_event)}
        ((number, told),) = events(client, f"/jobs/{jobs[0].id}/events", **headers)
        assert number > running.last_event
        assert told.state == "done"


def test_a_shutdown_waits_for_the_video_in_work(
    settings_of: Callable[..., ServiceSettings], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The video that is being read when the service stops is in the gallery afterwards."""
    settings = settings_of(roots=(folder,))
    progress = work.Control.progress
    seen: list[tuple[int, str]] = []

    def noted(self: work.Control, state: Any) -> None:
        if state.is_waiting:  # no video is in work yet
            return
        if not seen:
            self.pause()
        seen.append((state.done, state.note))
        progress(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(work.Control, "progress", noted)
        with TestClient(create_app(settings), base_url=BASE_URL) as client:
            service = service_of(client)
            size = len(service.served.writer)
            job = index(client, "sam2_dog.mp4", "mdn_frog.webm", "0000.mp4", "0001.mp4")
            until(client, job.id, "running")
            service.jobs.close()
            assert get(client, job.id).state == "waiting"
            assert len(service.served.writer) == size + 1
    assert seen[0][0] == 0
    assert "sam2_dog.mp4" in seen[0][1]
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        ended = until(client, job.id, *ENDED)
        assert ended.report is not None
        assert [len(ended.report.unchanged), len(ended.report.indexed)] == [1, 1]
        assert len(service_of(client).served.writer) == size + 2


def test_duplicates_as_an_error_survive_a_restart(
    settings_of: Callable[..., ServiceSettings], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start must not take the first one's videos for duplicates."""
    settings = settings_of(roots=(folder,))
    add_sources = work.add_sources

    def commit_then_pause(*words: Any, **options: Any) -> IndexReport:
        add_sources(*words, **options)
        raise work.JobPausedError

    monkeypatch.setattr(work, "add_sources", commit_then_pause)
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        job = index(client, "mdn_frog.webm", on_duplicate="error")
        service_of(client).jobs.stop()
    monkeypatch.setattr(work, "add_sources", add_sources)
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        ended = until(client, job.id, *ENDED)
        assert ended.state == "done", ended
        assert ended.report is not None
        assert len(ended.report.unchanged) + len(ended.report.indexed) == 1


@pytest.mark.slow
def test_a_path_is_checked_again_after_a_restart(
    settings_of: Callable[..., ServiceSettings],
    folder: Path,
    tmp_path: Path,
    held: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "GRACE_S", 0.1)
    settings = settings_of(roots=(folder,))
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        first, job = index(client, "mdn_frog.webm"), index(client, "sam2_dog.mp4")
        until(client, first.id, "running")
        client.delete(f"{API}/jobs/{first.id}")
        until(client, job.id, "running")
        service_of(client).jobs.stop()
    held.set()
    with TestClient(create_app(replace(settings, roots=(tmp_path,))), base_url=BASE_URL) as client:
        ended = until(client, job.id, *ENDED)
        assert ended.state == "failed"
        assert ended.error is not None
        assert ended.error.kind == "PathNotAllowed"


# The ledger


def test_a_job_that_always_ends_the_service_fails(
    settings_of: Callable[..., ServiceSettings], folder: Path
) -> None:
    settings = settings_of(roots=(folder,))
    settings.data.mkdir()
    ledger = Ledger(settings.data / "jobs.sqlite")
    request = JobRequest(options=AddOptions(), paths=[str(folder)])
    job = ledger.add("a" * 32, "index", "a", request, 1, 1.0)
    ledger.save(replace(job, state="running", num_lost=queue.MAX_LOST - 1))
    cancelled = ledger.add("b" * 32, "index", "b", request, 2, 1.0)
    ledger.save(replace(cancelled, state="running", was_cancelled=True))
    ledger.close()
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        ended = until(client, job.id, *ENDED)
        assert ended.state == "failed"
        assert ended.error is not None
        assert ended.error.kind == "JobLost"
        # A client cancelled this one; the crash came before it stopped.
        assert until(client, cancelled.id, *ENDED).state == "cancelled"


def test_reports_are_bounded(desk: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MAX_NAMED", 2)
    failed = tuple(FailedVideo(f"/a b/{n}.mp4", f"/a b/{n}.mp4: is bad") for n in range(5))
    report = IndexReport(
        failed=failed, duplicates={"/x/a.mp4": "/none", "/y/a.mp4": "/none"}, unchanged=("/gone",)
    )
    snapshot = service_of(desk).served.writer.gallery.snapshot()
    model = reports.ReportWriter(snapshot, [Path("/a b")], show_paths=False).write(report)
    assert [each.name for each in model.failed] == ["0.mp4", "1.mp4"]
    assert "/a b" not in model.model_dump_json()
    assert model.warnings[-1].reason == "3 more under 'failed' are not named here"
    assert model.duplicates == {"a.mp4": "none", "a.mp4 (2)": "none"}
    assert model.unchanged == ["gone"]
    shown = reports.ReportWriter(snapshot, [], show_paths=True).write(report)
    assert shown.failed[0].name == "/a b/0.mp4"
    assert json.loads(shown.model_dump_json())["unchanged"] == ["/gone"]
