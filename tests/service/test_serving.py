"""The server process over real sockets: slow and greedy clients, its end, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi import FastAPI, Request
from running_services import MakeSettings, served, wait_until
from starlette.responses import StreamingResponse

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service import create_app
from xclip_deploy.service.serving import Server, address_of, listen
from xclip_deploy.wire import API

ECHO = f"{API}/echo"


@pytest.fixture(scope="module")
def impatient(settings_of: MakeSettings) -> Iterator[str]:
    """A server that gives up on slow clients after a moment."""
    settings = settings_of(stall_s=0.4)
    app = create_app(settings)

    @app.post(ECHO)
    async def echo(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    with pytest.MonkeyPatch.context() as patch, served(settings, app) as address:
        patch.setattr("xclip_deploy.service.serving.HEAD_S", 0.4)
        yield address


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port), timeout=10) as opened:
        yield opened


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
            assert time.monotonic() - start < 15
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
            time.sleep(0.6)  # longer than the head of a request may take
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


def test_no_web_sockets(impatient: str) -> None:
    with connected(impatient) as opened:
        opened.sendall(
            b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade, close\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b" 101 " not in read_all(opened)


# Sockets


def test_an_address_in_use() -> None:
    with listen("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InvalidArgumentError, match="another program serves there"):
            listen("127.0.0.1", port)
        assert address_of("127.0.0.1", listener) == f"http://127.0.0.1:{port}"


def test_an_address_of_another_machine() -> None:
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with pytest.raises(InvalidArgumentError, match="no address of this machine"):
            listen(host, 0)


# Its end


class Ending:
    """A server in a thread, with requests that last until they are let go."""

    def __init__(self, app: FastAPI, settings: Any) -> None:
        import uvicorn

        self.app, self.gone = app, threading.Event()
        self.let_go = threading.Event()

        @app.get(API + "/slow")
        async def slow() -> dict[str, bool]:
            done = await app.state.service.run(self.let_go.wait, 20)
            return {"done": done}

        @app.get(API + "/stream")
        async def stream() -> StreamingResponse:
            return StreamingResponse(self._events(), media_type="text/event-stream")

        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5)
        listener = listen("127.0.0.1", 0)
        self.address = address_of("127.0.0.1", listener)
        self.health: Any = None
        self._settings = settings
        started = threading.Event()

        def run() -> None:
            async def lifespan_health() -> None:
                # The application makes its own state; the server asks it.
                server = Server(config, app.state.health, settings.shutdown_s)
                server.announce = started.set
                self.server = server
                await server.serve([listener])

            asyncio.run(lifespan_health())
            listener.close()
            self.gone.set()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert started.wait(60)

    async def _events(self) -> AsyncIterator[str]:
        yield "data: begun\n\n"
        await self.app.state.service.health.stopping.wait()
        yield "data: ended\n\n"

    def stop(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)


def test_running_requests_finish_and_streams_end(settings_of: MakeSettings) -> None:
    settings = settings_of()
    ending = Ending(create_app(settings), settings)
    answers: dict[str, Any] = {}

    def ask(path: str) -> None:
        answers[path] = httpx2.get(ending.address + API + path, timeout=30)

    threads = [threading.Thread(target=ask, args=(path,)) for path in ("/slow", "/stream")]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(ending.app.state.health.running) == 2)
    service = ending.app.state.service
    ending.stop()
    wait_until(lambda: httpx2.get(f"{ending.address}/health/ready").status_code == 503)
    assert httpx2.get(f"{ending.address}/health/live").status_code == 200
    refused = httpx2.get(f"{ending.address}{API}/session")
    assert refused.status_code == 503
    assert refused.json()["error"]["kind"] == "ShuttingDown"
    assert refused.headers["retry-after"] == "5"
    assert not ending.gone.is_set()
    ending.let_go.set()
    for thread in threads:
        thread.join(20)
    assert answers["/slow"].json() == {"done": True}
    assert answers["/stream"].text == "data: begun\n\ndata: ended\n\n"
    assert ending.gone.wait(20)
    assert service.retriever._is_closed


def test_a_request_that_never_ends_is_cut_off(settings_of: MakeSettings) -> None:
    settings = settings_of(shutdown_s=0.2)
    app = create_app(settings)

    @app.get(API + "/forever")
    async def forever() -> None:
        await asyncio.sleep(1000)

    ending = Ending(app, settings)
    ending.server.config.timeout_graceful_shutdown = 1
    errors: list[Exception] = []

    def ask() -> None:
        try:
            httpx2.get(f"{ending.address}{API}/forever", timeout=30)
        except httpx2.HTTPError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: len(app.state.health.running) == 1)
    ending.stop()
    assert ending.gone.wait(20)
    thread.join(10)


def test_a_player_that_stopped_reading_holds_nothing_up(settings_of: MakeSettings) -> None:
    settings = settings_of()
    app = create_app(settings)

    @app.get(API + "/film")
    async def film() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b" " * (1 << 20)

        return StreamingResponse(pieces(), media_type="video/mp4")

    ending = Ending(app, settings)
    with connected(ending.address) as opened:
        opened.sendall(f"GET {API}/film HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert opened.recv(1000).startswith(b"HTTP/1.1 200")
        wait_until(lambda: not app.state.health.is_busy())
        ending.stop()
        assert ending.gone.wait(15)


@pytest.mark.slow
def test_a_missing_extra_is_named() -> None:
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        code = (
            f"import sys; sys.modules[{package!r}] = None; "
            "from xclip_deploy.cli.program import main; main(['serve'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 3, done.stderr
        assert done.stderr == (
            f"error: xclip-deploy serve needs {package}, which is not installed; "
            "run: pip install 'xclip-deploy[serve]'\n"
        )


# The command


@contextmanager
def started(*arguments: str | Path, environment: dict[str, str] | None = None) -> Iterator[Any]:
    program = Path(sys.executable).with_name("xclip-deploy")
    process = subprocess.Popen(
        [program, "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_an_open_address_is_refused_in_one_line(bundle_path: Path, tmp_path: Path) -> None:
    with started(bundle_path, "--host", "0.0.0.0", "--data", tmp_path / "data") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "--token-file" in err
    assert not (tmp_path / "data").exists()


def test_the_command_serves_and_ends(settings_of: Callable[..., Any], tmp_path: Path) -> None:
    settings = settings_of()
    arguments = (
        settings.bundle,
        *("--gallery", settings.gallery, "--data", settings.data),
        *("--port", "0", "--device", "cpu", "--threads", "1"),
    )
    token = {"XCLIP_DEPLOY_TOKEN": "a-token-of-the-tests-0123456789"}
    with started(*arguments, environment=token) as process:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address, line
        # The address is printed once the service is ready, so nothing has to wait.
        assert httpx2.get(f"{address[0]}/health/ready").status_code == 200
        assert httpx2.get(f"{address[0]}/metrics").status_code == 401
        bearer = {"Authorization": f"Bearer {token['XCLIP_DEPLOY_TOKEN']}"}
        assert httpx2.get(f"{address[0]}/metrics", headers=bearer).status_code == 200
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == ""
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["status"] for line in lines if line["message"] == "request"] == [200, 401, 200]
    assert token["XCLIP_DEPLOY_TOKEN"] not in err


@pytest.mark.slow
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(settings_of: Callable[..., Any], first: int) -> None:
    settings = settings_of()
    arguments = (
        settings.bundle,
        *("--gallery", settings.gallery, "--data", settings.data),
        *("--port", "0", "--device", "cpu", "--threads", "1"),
    )
    with started(*arguments) as process:
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert address
        with connected(address[0]) as opened:
            # A request whose body does not come holds the service for half a minute.
            opened.sendall(head("Content-Length: 100").replace(b"echo", b"search"))
            time.sleep(1)
            process.send_signal(first)
            time.sleep(1)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 128 + signal.SIGTERM
