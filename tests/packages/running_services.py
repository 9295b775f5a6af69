"""Services that run in this process or on a real socket, and what they answered."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.testclient import TestClient

from xclip_deploy.service import ServiceSettings, create_app
from xclip_deploy.service.serving import PatientProtocol
from xclip_deploy.service.state import Service

BASE_URL = "http://127.0.0.1:8000"
"""Address that clients of a service in this process take, since others are refused."""
OpenService = Callable[..., TestClient]
OpenLive = Callable[..., str]
MakeSettings = Callable[..., ServiceSettings]


@contextmanager
def served(settings: ServiceSettings, app: Any = None) -> Iterator[str]:
    """Serve on a free port from a thread of this process; give the address."""
    config = uvicorn.Config(
        app or create_app(settings),
        "127.0.0.1",
        0,
        http=PatientProtocol,
        ws="none",
        log_config=None,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), 60)
        assert thread.is_alive(), "the service did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the service did not end"


def service_in(client: TestClient) -> Service:
    """Return the service behind a client of this process."""
    service = client.app.state.service  # type: ignore[attr-defined]
    assert isinstance(service, Service)
    return service


def refusal_of(response: Any, status: int) -> str:
    """Check the status and the body of an error, and return its kind."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"kind", "message", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]
    return str(error["kind"])


def wait_until(is_met: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for a condition. Raises AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while not is_met():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    """Open a socket to the server at an address."""
    place = urlsplit(address)
    assert place.port is not None
    with socket.create_connection((place.hostname, place.port), timeout=10) as opened:
        yield opened
