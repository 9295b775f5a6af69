"""Forms of uploads: names, boundaries and headers, sound and broken."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from stored_uploads import VIDEOS, form, stored

from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.file_names import MAX_NAME_BYTES, safe_name
from xclip_deploy.service.multipart import MultipartForm, PartData, PartEnd, PartStart

BASE_URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("clip.mp4", "clip.mp4"),
        ("Mein Urlaub – Höhe 3.mp4", "Mein Urlaub – Höhe 3.mp4"),
        ("猫の動画.webm", "猫の動画.webm"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\clip.avi", "clip.avi"),
        ("/absolute/clip.mp4", "clip.mp4"),
        ("a\0b\n\x1b[31m.mp4", "ab[31m.mp4"),
        ("gnp\u202e4pm.exe", "gnp4pm.exe"),
        (".hidden.mp4", "hidden.mp4"),
        ("..", "video"),
        ("folder/", "video"),
        ("  ", "video"),
        ("e\u0301.mp4", "é.mp4"),
    ],
)
def test_names(given: str, name: str) -> None:
    assert safe_name(given) == name


def test_long_names() -> None:
    cut = safe_name("猫" * 300 + ".mp4")
    assert cut.endswith("猫.mp4")
    assert len(cut.encode()) <= MAX_NAME_BYTES
    assert len(safe_name("x" * 500).encode()) == MAX_NAME_BYTES
    assert len(safe_name("x." + "y" * 500).encode()) == MAX_NAME_BYTES
    with pytest.raises(Refusal) as refusal:
        safe_name("x" * 1025)
    assert refusal.value.status == 413


def test_a_form_in_single_bytes() -> None:
    parser = MultipartForm("multipart/form-data; boundary=edge")
    content = b"\r\n--edg\r\n\0" * 3
    body = form(
        ('Content-Disposition: form-data; name="files"; filename="höhe \\"1\\".mp4"', content),
        ('content-disposition: form-data; name="options"', b"{}"),
    )
    events = [event for byte in body for event in parser.feed(bytes([byte]))]
    parser.end()
    starts = [event for event in events if isinstance(event, PartStart)]
    assert [start.name for start in starts] == ["files", "options"]
    assert starts[1].filename is None
    assert starts[0].filename == 'höhe "1".mp4'
    data = [event.content for event in events if isinstance(event, PartData)]
    assert b"".join(data) == content + b"{}"
    assert sum(isinstance(event, PartEnd) for event in events) == 2


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/json", ""])
def test_another_type_of_content(kind: str) -> None:
    with pytest.raises(Refusal) as refusal:
        MultipartForm(kind)
    assert refusal.value.status == 415


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"--edge\r\n", b"--edge\r\nX: y\r\n\r\nrest", form()[:-6]]
)
def test_malformed_forms(shop: TestClient, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    answer = shop.post(VIDEOS, content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["message"]
    assert stored(shop) == []


def test_many_and_long_headers(shop: TestClient) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    for head in ("X: " + "y" * 10_000, "\r\n".join(f"X{n}: y" for n in range(100))):
        answer = shop.post(VIDEOS, content=form((head, b"x")), headers=headers)
        assert answer.status_code == 422
