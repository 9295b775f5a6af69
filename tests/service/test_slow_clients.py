"""Slow, greedy and malformed clients over real sockets."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import Request
from running_services import MakeSettings, connected, served, wait_until

from xclip_deploy.service import create_app
from xclip_deploy.wire import API

ECHO = f"{API}/echo"


@pytest.fixture(scope="module")
def impatient(settings_of: MakeSettings) -> Iterator[str]:
    """A server that gives up on slow clients after a moment."""
    settings = settings_of(stall_s=1.0)
    app = create_app(settings)

    @app.post(ECHO)
    async def echo(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    with pytest.MonkeyPatch.context() as patch, served(settings, app) as address:
        patch.setattr("xclip_deploy.service.serving.HEAD_S", 1.0)
        yield address


def read_all(opened: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    content = b""
    while part := opened.recv(65536):
        content += part
    return content


def head(length: str) -> bytes:
    lines = (
        f"POST {ECHO} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        length,
        "",
        "",
    )
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("length", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_a_body_that_stalls(impatient: str, length: str) -> None:
    with connected(impatient) as opened:
        opened.sendall(head(length) + b"5\r\n12345\r\n")
        answer = read_all(opened)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"SlowBody"' in answer
    assert b"connection: close" in answer.lower()


def test_a_body_that_drips(impatient: str) -> None:
    """A byte in time, again and again, would hold a connection for ever."""
    start = time.monotonic()
    with connected(impatient) as opened:
        opened.sendall(head("Content-Length: 1000000"))
        opened.settimeout(0.1)
        answer = b""
        while not answer:
            assert time.monotonic() - start < 60
            opened.sendall(b"1")
            try:
                answer = opened.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("begun", [b"", b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "])
def test_a_head_that_does_not_come(impatient: str, begun: bytes) -> None:
    with connected(impatient) as opened:
        opened.sendall(begun)
        assert read_all(opened) == b""


def test_a_second_head_that_does_not_come(impatient: str) -> None:
    request = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with connected(impatient) as opened:
        opened.sendall(request + request[:20])
        assert read_all(opened).count(b"HTTP/1.1 200 OK") == 1


def test_connections_stay_open_between_requests(impatient: str) -> None:
    with httpx2.Client(base_url=impatient) as client:
        for _ in range(2):
            assert client.get("/health/live").status_code == 200
            time.sleep(1.3)  # longer than the head of a request may take
        body = b" " * 300_000
        for _ in range(2):
            answer = client.post(ECHO, content=body, headers={"content-type": "application/json"})
            assert answer.json() == {"bytes": len(body)}


def test_a_head_without_end(impatient: str) -> None:
    with connected(impatient) as opened:
        opened.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        with pytest.raises(OSError):  # noqa: PT012 - the server closes in the middle
            for _ in range(10_000):
                opened.sendall(b"x" * 65536)
                time.sleep(0.001)


@pytest.mark.parametrize("line", [b"X: " + b"x" * 1000 + b"\r\n", b"x" * 1000])
def test_trailers_without_end(impatient: str, line: bytes) -> None:
    """What follows the last chunk is no body, so the limits of bodies do not count it."""
    sent = 0
    with connected(impatient) as opened:
        opened.sendall(head("Transfer-Encoding: chunked") + b"1\r\n \r\n0\r\nX: ")
        with pytest.raises(OSError):  # noqa: PT012 - the server closes in the middle
            while sent < 256 << 20:
                opened.sendall(line * 64)
                sent += 64 * len(line)
    assert sent < 16 << 20  # the buffers of two sockets, and no more


def test_a_few_trailers_do_no_harm(impatient: str) -> None:
    with connected(impatient) as opened:
        opened.sendall(
            head("Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\nX-Request-Id: a\r\n\r\n"
            b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )
        answer = read_all(opened)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b'{"bytes":2}' in answer


def test_a_body_in_chunks_without_end(impatient: str) -> None:
    """The refusal arrives, though the sender is in the middle of its body."""

    def chunks() -> Iterator[bytes]:
        for _ in range(18):
            yield b" " * (1 << 20)

    answer = httpx2.post(
        impatient + ECHO, content=chunks(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["kind"] == "BodyTooLarge"


def test_a_client_that_goes_away_in_its_body(
    impatient: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "xclip_deploy")
    with connected(impatient) as opened:
        opened.sendall(head("Content-Length: 100") + b"12345")
        time.sleep(0.1)
    wait_until(lambda: any(fields(record).get("status") == 499 for record in caplog.records))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def fields(record: Any) -> dict[str, Any]:
    return dict(getattr(record, "fields", {}))


@pytest.mark.parametrize(
    "line",
    [
        b"GET /%00 HTTP/1.1",
        b"GET /static/%00 HTTP/1.1",
        b"GET /static/%ff%fe HTTP/1.1",
        b"GET /docs/%ff HTTP/1.1",
        b"GET //attacker.example/docs HTTP/1.1",
        b"GET http://attacker.example/health/live HTTP/1.1",
        b"GET /health/live?%ff=%00&&=%zz HTTP/1.1",
        b"GET /" + b"a/" * 10_000 + b" HTTP/1.1",
        b"GET * HTTP/1.1",
        b"CONNECT 127.0.0.1:80 HTTP/1.1",
        b"TRACE / HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"GET /health/live HTTP/9.9",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\nCookie: \xff=\xfe; =; ;;a",
        b"GET / HTTP/1.1\r\nAuthorization: \xff \xfe",
        b"GET / HTTP/1.1\r\nOrigin: \xff://[",
        b"GET / HTTP/1.1\r\nX-Request-Id: a\x00b",
        b"POST /api/v1/session HTTP/1.1\r\nContent-Type: \xff;;\r\nContent-Length: 0",
        b"POST /api/v1/session HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
        b"POST /api/v1/session HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
    ],
)
def test_malformed_requests_are_refused(impatient: str, line: bytes) -> None:
    with connected(impatient) as opened:
        opened.sendall(line + b"\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = read_all(opened)
    found = re.match(rb"HTTP/1.1 (\d+) ", answer)
    assert found, answer
    assert int(found[1]) < 500
    # Without TLS, the machine's certificate authorities need not be read: 40 ms each.
    assert httpx2.get(f"{impatient}/health/ready", verify=False).status_code == 200


def test_no_web_sockets(impatient: str) -> None:
    with connected(impatient) as opened:
        opened.sendall(
            b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade, close\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b" 101 " not in read_all(opened)
