"""A disk without room: for moments, for queries, for jobs, and where a service starts."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running_services import BASE_URL, OpenService, refusal_of
from served_programs import ENVIRONMENT, Program, wait_for_all
from starlette.testclient import TestClient

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service import ServiceSettings, create_app, query_files, uploads
from xclip_deploy.service.jobs import queue, table, work
from xclip_deploy.service.state import Service
from xclip_deploy.wire import API


def fill(disk: Path, left: int = 0, name: str = "filler") -> Path:
    """Fill a disk, but for some of its blocks; return the file that does."""
    filler = disk / name
    room = os.statvfs(disk)
    filler.write_bytes(bytes(room.f_frsize * max(0, room.f_bavail - left)))
    return filler


@pytest.fixture(autouse=True)
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is smaller than what the service keeps free."""
    monkeypatch.setattr(uploads, "RESERVED_BYTES", 0)
    monkeypatch.setattr(query_files, "_RESERVED_BYTES", 0)


def test_no_room_for_moments_and_queries(
    open_service: OpenService, small_disk: Path, clips: Path
) -> None:
    client = open_service(data=small_disk / "data")
    (handle,) = (
        video["handle"]
        for video in client.get(f"{API}/videos").json()["videos"]
        if video["name"] == "numbers.mp4"
    )
    playable = f"{API}/videos/{handle}/playable?start_s=1&end_s=3"
    query = [("file", ("frog.webm", (clips / "mdn_frog.webm").read_bytes()))]
    for left in (0, 2):
        filler = fill(small_disk, left)
        assert refusal_of(client.get(playable), 507) == "NoRoom"
        refused = client.post(f"{API}/search/video", files=query)
        assert refusal_of(refused, 507) == "NoRoom"
        assert str(small_disk) not in refused.text
        # What needs no disk goes on.
        assert client.post(f"{API}/search", json={"text": "a square"}).status_code == 200
        for path in ("thumbnail", "frame?time_s=2", "media"):
            assert client.get(f"{API}/videos/{handle}/{path}").status_code == 200
        assert client.get("/health/ready").status_code == 200
        filler.unlink()
    assert not list((small_disk / "data" / "queries").iterdir())
    assert not list((small_disk / "data" / "media").rglob("*.mp4"))
    assert client.get(playable).status_code == 200
    assert client.post(f"{API}/search/video", files=query).status_code == 200


def test_no_room_while_a_job_runs(
    open_service: OpenService, small_disk: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither gallery nor ledger can be written. Once there is room, the job ends."""
    monkeypatch.setattr(queue, "_RETRY_S", 0.2)
    monkeypatch.setattr(table, "_RETRY_S", 0.2)
    client = open_service(gallery=small_disk / "gallery", data=small_disk / "data")
    has_failed = threading.Event()
    index = work.index_videos

    def without_room(*arguments: Any) -> Any:
        fill(small_disk)
        try:
            return index(*arguments)
        finally:
            has_failed.set()

    files = [("files", ("frog.webm", (clips / "mdn_frog.webm").read_bytes()))]
    with monkeypatch.context() as patch:
        patch.setattr(queue, "index_videos", without_room)
        answer = client.post(f"{API}/videos", files=files)
        assert answer.status_code == 202, answer.text
        assert has_failed.wait(60)
    assert client.get(answer.headers["location"]).status_code == 200
    assert client.get(f"{API}/videos").json()["total"] == 0
    assert refusal_of(client.post(f"{API}/videos", files=files), 507) == "NoRoom"
    assert client.get("/health/ready").status_code == 200
    (small_disk / "filler").unlink()
    (job,) = wait_for_all(client, 60).values()
    assert job["state"] == "failed"
    assert "disk" in job["error"]["message"], job
    assert str(small_disk) not in job["error"]["message"]
    client.post(f"{API}/videos", files=files)
    assert {job["state"] for job in wait_for_all(client, 60).values()} == {"failed", "done"}
    assert client.get(f"{API}/videos").json()["total"] == 1


def test_no_room_at_the_start(
    settings_of: Callable[..., ServiceSettings], small_disk: Path
) -> None:
    """The command ends with one line that says what is missing."""
    settings = settings_of()
    program = Program(settings.bundle, small_disk, gallery=settings.gallery)
    filler = fill(small_disk)
    done = subprocess.run(
        program.command, capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "expected" in line
    filler.unlink()
    again = settings_of(data=program.data)
    with TestClient(create_app(again), base_url=BASE_URL) as client:
        assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("name", ["uploads", "queries", "media", "jobs.sqlite"])
def test_a_folder_of_data_that_cannot_be_used(
    settings_of: Callable[..., ServiceSettings], tmp_path: Path, name: str
) -> None:
    """The start fails in one line, and a later one finds nothing in its way."""
    data = tmp_path / "data"
    data.mkdir()
    (data / name).symlink_to(tmp_path / "nowhere" / "at-all")
    settings = settings_of(data=data)
    with pytest.raises(InvalidArgumentError, match=re.escape(str(data)) + ".*; expected a"):
        Service(settings)
    (data / name).unlink()
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        assert client.get("/health/ready").status_code == 200
