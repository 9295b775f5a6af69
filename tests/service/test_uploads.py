"""Uploads: streamed, limited, stored once, and gone when they should be."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from starlette.testclient import TestClient
from stored_uploads import VIDEOS, form, is_settled, service_of, stored, until

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.gallery import VideoFile
from xclip_deploy.runtime.video import UPLOADS
from xclip_deploy.service import ServiceSettings, create_app, uploads
from xclip_deploy.service.jobs import work
from xclip_deploy.service.state import Service

BASE_URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def frog(clips: Path) -> bytes:
    return (clips / "mdn_frog.webm").read_bytes()


def send(client: TestClient, *files: tuple[str, bytes], options: Any = None) -> Any:
    data = {} if options is None else {"options": json.dumps(options)}
    parts = [("files", (name, content, "video/mp4")) for name, content in files]
    return client.post(VIDEOS, files=parts, data=data)


def finished(client: TestClient, answer: Any) -> dict[str, Any]:
    """Wait for the job that an answer names."""
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + 60
    while True:
        job: dict[str, Any] = client.get(answer.headers["location"]).json()
        if job["state"] in ("done", "failed", "cancelled"):
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.05)


# Names


# Forms


# One upload


def test_what_a_client_may_leave_out_and_what_not(shop: TestClient, frog: bytes) -> None:
    none = shop.post(VIDEOS, files=[("options", (None, b"{}", "application/json"))])
    assert none.status_code == 422
    assert "no part 'files'" in none.text
    other = shop.post(VIDEOS, files=[("picture", ("a.mp4", frog, "video/mp4"))])
    assert other.status_code == 422
    empty = send(shop, ("a.mp4", b""))
    assert empty.status_code == 422
    assert "is empty" in empty.text
    refused: tuple[Any, ...] = (
        {"unknown": 1},
        {"on_duplicate": "maybe"},
        [],
        {"metadata": {"_a": 1}},
    )
    for options in refused:
        answer = send(shop, ("a.mp4", frog), options=options)
        assert answer.status_code == 422, answer.text
    wrong = send(shop, ("a.mp4", frog), options={"segment": "3s"})
    assert wrong.status_code == 409, wrong.text
    assert stored(shop) == []
    assert service_of(shop).uploads.stored_bytes == 0


def test_equal_content_is_stored_once(open_service: Callable[..., TestClient], frog: bytes) -> None:
    client = open_service()
    first = finished(client, send(client, ("Frosch im Teich.webm", frog), ("copy.webm", frog)))
    assert first["state"] == "done"
    assert len(first["report"]["indexed"]) == 1
    assert first["report"]["failed"] == []
    again = finished(client, send(client, ("other name.webm", frog)))
    assert again["report"]["indexed"] == []
    assert again["report"]["unchanged"] == first["report"]["indexed"]
    assert again["videos"] == first["videos"]
    (content,) = first["videos"]
    assert stored(client) == [f"{content}/Frosch im Teich.webm"]
    service = service_of(client)
    until(lambda: is_settled(service))
    assert service.uploads.stored_bytes == len(frog)
    video = service.served.writer.gallery.snapshot().videos(
        service.served.writer.gallery.snapshot().matching(f"fingerprint = '{content}'")
    )[0]
    assert Path(video.path or "").name == "Frosch im Teich.webm"
    # A removed video's file goes with it; files elsewhere never do.
    service.served.writer.remove(video.id)
    outside = Path(service.settings.data, "other.webm")
    outside.write_bytes(frog)
    stray = service.uploads.folder / content / ".." / ".." / "other.webm"
    assert service.uploads.forget([VideoFile(path=str(outside)), str(stray)]) == 0
    assert service.uploads.forget(video.files) == 1
    assert service.uploads.forget(video.files) == 0
    assert stored(client) == []
    assert outside.exists()
    assert service.uploads.stored_bytes == 0
    # And the content can come again.
    assert len(finished(client, send(client, ("new.webm", frog)))["report"]["indexed"]) == 1


def test_a_bad_video_is_reported_and_removed(shop: TestClient, frog: bytes) -> None:
    job = finished(shop, send(shop, ("broken.mp4", b"no video at all" * 100)))
    assert job["state"] == "done"
    assert [failed["name"] for failed in job["report"]["failed"]] == ["broken.mp4"]
    assert str(service_of(shop).settings.data) not in json.dumps(job)
    assert stored(shop) == []
    assert shop.get("/health/ready").status_code == 200
    listed = finished(
        shop, send(shop, ("list.txt", b"/etc/passwd\n"), ("list.csv", b"file\n/etc/passwd\n"))
    )
    assert len(listed["report"]["failed"]) == 2
    assert "passwd" not in json.dumps(listed)


def test_nothing_is_spooled(
    open_service: Callable[..., TestClient], frog: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_words: Any, **_options: Any) -> None:
        raise AssertionError("a temporary file")

    client = open_service()
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", refuse)
    assert send(client, ("a.webm", frog)).status_code == 202


# Limits


def test_limits_on_size_number_and_names(shop: TestClient, frog: bytes) -> None:
    for files in (
        [("large.mp4", b"x" * 1_000_001)],
        [(f"{n}.mp4", b"x") for n in range(4)],
        [("x" * 1100, b"x")],
        [("a.mp4", b"x" * 999_999), ("large.mp4", b"x" * 1_000_001)],
    ):
        answer = send(shop, *files)
        assert answer.status_code == 413, answer.text
        assert answer.json()["error"]["kind"] == "TooLarge"
    options = send(shop, ("a.mp4", frog), options={"metadata": {"a": "x" * 300_000}})
    assert options.status_code == 413
    assert stored(shop) == []


def test_limit_on_everything_together(
    open_service: Callable[..., TestClient], clips: Path, frog: bytes
) -> None:
    client = open_service(max_stored_bytes=len(frog) + 1000)
    finished(client, send(client, ("frog.webm", frog)))
    answer = send(client, ("dog.mp4", (clips / "sam2_dog.mp4").read_bytes()[:2000]))
    assert answer.status_code == 507
    assert "remove videos first" in answer.text
    assert len(stored(client)) == 1
    # Room comes back.
    service = service_of(client)
    (name,) = stored(client)
    service.uploads.forget([str(service.uploads.folder / name)])
    assert send(client, ("dog.mp4", b"x" * 2000)).status_code == 202


def test_many_uploads_at_once(
    shop: TestClient, frog: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_AT_ONCE", 0)
    answer = send(shop, ("a.webm", frog))
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "10"


def test_read_only(open_service: Callable[..., TestClient], frog: bytes) -> None:
    client = open_service(read_only=True)
    assert send(client, ("a.webm", frog)).status_code == 403
    assert client.post("/api/v1/index", json={"paths": ["x"]}).status_code == 403


# A full disk


@pytest.mark.parametrize("reserved", [0, 4 << 20])
def test_a_full_disk(
    open_service: Callable[..., TestClient],
    small_disk: Path,
    frog: bytes,
    monkeypatch: pytest.MonkeyPatch,
    reserved: int,
) -> None:
    monkeypatch.setattr(uploads, "RESERVED_BYTES", reserved)
    client = open_service(data=small_disk / "data")
    before = set(small_disk.rglob("*"))
    # In pieces without a length, so that the room runs out in the middle.
    body = form(
        ('Content-Disposition: form-data; name="files"; filename="small.mp4"', frog),
        ('Content-Disposition: form-data; name="files"; filename="large.mp4"', b"x" * (12 << 20)),
    )
    pieces = (body[at : at + 65536] for at in range(0, len(body), 65536))
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    answer = client.post(VIDEOS, content=pieces, headers=headers)
    assert answer.status_code == 507, answer.text
    assert answer.json()["error"]["kind"] == "NoRoom"
    assert str(small_disk) not in answer.text
    assert stored(client) == []
    assert client.get("/api/v1/jobs").json()["total"] == 0
    assert set(small_disk.rglob("*")) - before <= set(small_disk.glob("data/jobs.*"))
    # What fits is taken, and the service is well.
    assert finished(client, send(client, ("frog.webm", frog)))["state"] == "done"
    assert client.get("/health/ready").status_code == 200


def test_no_room_for_the_ledger(
    open_service: Callable[..., TestClient],
    small_disk: Path,
    frog: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bytes fit, the job does not: the client hears 507, and nothing is left."""
    monkeypatch.setattr(uploads, "RESERVED_BYTES", 0)
    client = open_service(data=small_disk / "data")
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    leave = len(frog) // free.f_frsize + 2
    filler.write_bytes(b"x" * (free.f_frsize * (free.f_bavail - leave)))
    answer = send(client, ("frog.webm", frog))
    assert answer.status_code == 507, answer.text
    assert stored(client) == []
    filler.unlink()
    assert client.get("/api/v1/jobs").json()["total"] == 0
    assert finished(client, send(client, ("frog.webm", frog)))["state"] == "done"


# Clients that go away, and crashes


def test_a_client_that_goes_away(open_live: Callable[..., str], settings_of: Any) -> None:
    settings = settings_of()
    address = open_live(data=settings.data)
    host, port = address.removeprefix("http://").split(":")
    folder = settings.data / "uploads" / "partial"
    with socket.create_connection((host, int(port))) as connection:
        head = (
            f"POST {VIDEOS} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 50000000\r\n"
            "Content-Type: multipart/form-data; boundary=edge\r\n\r\n"
        )
        connection.sendall(head.encode())
        part = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        connection.sendall(part + b"x" * 3_000_000)
        until(lambda: any(folder.iterdir()))
    until(lambda: not any(folder.iterdir()))
    assert list(folder.parent.iterdir()) == [folder]


def test_what_a_crash_leaves(settings_of: Callable[..., ServiceSettings], frog: bytes) -> None:
    settings = settings_of()
    folder = settings.data / "uploads"
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        (content,) = finished(client, send(client, ("frog.webm", frog)))["videos"]
    kept = folder / content / "frog.webm"
    # A crash in the middle of an upload, and one between the rename and the ledger.
    (folder / "partial" / "half.part").write_bytes(b"x")
    unknown = folder / ("0" * 64)
    unknown.mkdir()
    (unknown / "clip.mp4").write_bytes(b"x")
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        assert stored(client) == [f"{content}/frog.webm"]
        assert service_of(client).uploads.stored_bytes == len(frog)
        # A file that is gone is no longer counted, and can come again.
        kept.unlink()
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        assert service_of(client).uploads.stored_bytes == 0
        assert finished(client, send(client, ("again.webm", frog)))["state"] == "done"


def test_one_folder_for_one_service(settings_of: Callable[..., ServiceSettings]) -> None:
    settings = settings_of()
    with (
        TestClient(create_app(settings), base_url=BASE_URL),
        pytest.raises(InvalidArgumentError, match="another service uses this folder"),
    ):
        Service(settings)


def test_other_users_of_the_machine_see_no_data(
    settings_of: Callable[..., ServiceSettings],
) -> None:
    settings = settings_of()
    with TestClient(create_app(settings), base_url=BASE_URL):
        assert settings.data.stat().st_mode & 0o077 == 0


def test_a_crash_between_the_end_of_a_job_and_its_files(
    settings_of: Callable[..., ServiceSettings], frog: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is recorded as done, and the process ends before anything else happens."""
    settings = settings_of()
    with monkeypatch.context() as patch:
        patch.setattr(uploads.Uploads, "settle", lambda *_words: None)
        with TestClient(create_app(settings), base_url=BASE_URL) as client:
            (content,) = finished(client, send(client, ("frog.webm", frog)))["videos"]
            finished(client, send(client, ("broken.mp4", b"no video" * 100)))
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        assert stored(client) == [f"{content}/frog.webm"]


def test_a_bomb_does_not_end_the_service(
    shop: TestClient, frog: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file with large pictures costs its decoder's memory, and nothing else."""
    path = tmp_path / "bomb.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 4096, 4096, "yuv420p"
        for _ in range(2):
            grey = av.VideoFrame.from_ndarray(np.full((6144, 4096), 128, np.uint8), "yuv420p")
            container.mux(stream.encode(grey))
        container.mux(stream.encode(None))
    assert path.stat().st_size < 1_000_000
    monkeypatch.setattr(work, "UPLOADS", replace(UPLOADS, memory_bytes=48 << 20))
    job = finished(shop, send(shop, ("bomb.mp4", path.read_bytes())))
    assert [each["name"] for each in job["report"]["failed"]] == ["bomb.mp4"]
    assert shop.get("/health/ready").status_code == 200
    assert stored(shop) == []


def test_a_codec_that_is_not_let_in(shop: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("magicyuv", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv444p")))
        container.mux(stream.encode(None))
    job = finished(shop, send(shop, ("clip.avi", path.read_bytes())))
    (failed,) = job["report"]["failed"]
    assert failed["name"] == "clip.avi"
    assert "codec magicyuv, which is not accepted" in failed["reason"]
    assert stored(shop) == []


def test_a_video_that_is_too_long(open_service: Callable[..., TestClient], frog: bytes) -> None:
    client = open_service(max_duration_s=1)
    (failed,) = finished(client, send(client, ("frog.webm", frog)))["report"]["failed"]
    assert "expected 1 s at most" in failed["reason"]
