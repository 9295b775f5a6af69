"""Jobs that the gallery leaves, that others disturb, and that outlive a restart."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running_services import BASE_URL
from starlette.testclient import TestClient
from watched_jobs import API, ENDED, events, get, index, service_of, until

from xclip_deploy.runtime.failures import FailedVideo
from xclip_deploy.runtime.indexing import IndexReport, add_sources
from xclip_deploy.service import ServiceSettings, create_app
from xclip_deploy.service.jobs import queue, reports, work
from xclip_deploy.service.jobs.ledger import Ledger
from xclip_deploy.service.jobs.records import JobRequest
from xclip_deploy.wire import AddOptions


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
