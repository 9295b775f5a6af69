"""Clients that go away in the middle, by a close or a reset, and what they leave: nothing."""

from __future__ import annotations

import socket
import struct

import httpx2
import pytest
from running_services import MakeSettings, connected, served, wait_until

from xclip_deploy.service import create_app
from xclip_deploy.wire import API

FORM = "Content-Type: multipart/form-data; boundary=edge\r\n"
PART = b'--edge\r\nContent-Disposition: form-data; name="%s"; filename="a.mp4"\r\n\r\n'


def head(line: str, headers: str = "") -> bytes:
    return f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n".encode()


def upload(address: str, part: bytes, length: str) -> bytes:
    body = PART % part + b"x" * 200_000
    if length.startswith("Transfer"):
        body = b"%x\r\n%s\r\n" % (len(body), body)
    return head(f"POST {API}/{address}", FORM + length) + body


REQUESTS = {
    "events": head(f"GET {API}/events"),
    "upload": upload("videos", b"files", "Content-Length: 50000000\r\n"),
    "upload in chunks": upload("videos", b"files", "Transfer-Encoding: chunked\r\n"),
    "query": upload("search/video", b"file", "Content-Length: 50000000\r\n"),
    "search": head(
        f"POST {API}/search", "Content-Type: application/json\r\nContent-Length: 100\r\n"
    )
    + b'{"text": ',
}


def test_clients_that_leave(settings_of: MakeSettings, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_of()
    app = create_app(settings)
    folders = [settings.data / "uploads" / "partial", settings.data / "queries"]
    with served(settings, app) as address:
        service = app.state.service
        for request in REQUESTS.values():
            for is_reset in (False, True):
                with connected(address) as client:
                    client.sendall(request)
                    wait_until(lambda: len(service.health.running) == 1)
                    if is_reset:
                        now = struct.pack("ii", 1, 0)
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
                wait_until(lambda: not service.health.running)
        assert service.jobs.news.num_listeners == 0
        assert not any(path for folder in folders for path in folder.iterdir())
        assert service.uploads._incoming == service.uploads._running == 0
        assert service.query_files._num_waiting == 0
        assert httpx2.get(f"{address}/health/ready").status_code == 200
        assert httpx2.get(f"{address}{API}/jobs").json()["total"] == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
