"""Forms that a client sends, and what a service stores of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from starlette.testclient import TestClient

from xclip_deploy.service.state import Service

VIDEOS = "/api/v1/videos"


SETTINGS: dict[str, Any] = {
    "max_upload_bytes": 1_000_000, "max_upload_files": 3, "max_stored_bytes": 4_000_000,
}  # fmt: skip


def service_of(client: TestClient) -> Service:
    service = client.app.state.service  # type: ignore[attr-defined]
    assert isinstance(service, Service)
    return service


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_settled(service: Service) -> bool:
    """Tell whether no job has a claim on a file. A job is seen as ended shortly before."""
    with service.uploads._lock:
        return not service.uploads._claims


def stored(client: TestClient) -> list[str]:
    """Files in the store, as content/name; unfinished ones too."""
    service = service_of(client)
    until(lambda: is_settled(service))
    folder = service.uploads.folder
    found = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return sorted(found)


def form(*parts: tuple[str, bytes]) -> bytes:
    body = b"".join(
        b"--edge\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts
    )
    return body + b"--edge--\r\n"
