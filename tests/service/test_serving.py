"""The server process its socket, its end, and the command."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from running_services import MakeSettings, connected, wait_until
from starlette.responses import StreamingResponse

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service import create_app
from xclip_deploy.service.serving import Server, address_of, listen
from xclip_deploy.wire import API

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

    def __init__(self, app: FastAPI, settings: Any, *, last_s: int = 5) -> None:
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

        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=last_s)
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
    assert service.served.writer._is_closed


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

    ending = Ending(app, settings, last_s=1)
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
        described = process.stdout.readline()
        assert described == f"the API is described at {address[0]}/docs\n"
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
            opened.sendall(
                f"POST {API}/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n"
                "Content-Type: application/json\r\n\r\n".encode()
            )
            metrics = f"{address[0]}/metrics"
            wait_until(lambda: "xclip_requests_running 2.0" in httpx2.get(metrics).text)
            process.send_signal(first)
            wait_until(lambda: httpx2.get(f"{address[0]}/health/ready").status_code == 503)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM
