"""Clients of either kind, and a service that fails as it is told to, over real sockets."""

from __future__ import annotations

import asyncio
import inspect
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from flaky_service import FlakyService, Use

from xclip_deploy import AsyncClient, Client
from xclip_deploy.client.settings import Rules


@pytest.fixture(scope="module")
def flaky_server() -> Iterator[tuple[str, list[FlakyService]]]:
    """A server on a free port, whose application the tests exchange."""
    current: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await current[0](scope, receive, send)

    config = uvicorn.Config(app, "127.0.0.1", 0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < until
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", current
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def flaky(flaky_server: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> FlakyService:
    """A service that fails as it is told to. Pauses are short."""
    address, current = flaky_server
    service = FlakyService(address)
    current[:] = [service.app()]
    pause_s = Rules.pause_s
    monkeypatch.setattr(Rules, "pause_s", lambda *args: min(0.02, pause_s(*args)))
    return service


@pytest.fixture(scope="session")
def authorities() -> ssl.SSLContext:
    """The machine's certificate authorities. A client that reads its own takes 40 ms for them."""
    return ssl.create_default_context()


@pytest.fixture(params=["threads", "asyncio"])
def use(request: pytest.FixtureRequest, authorities: ssl.SSLContext) -> Use:
    """Call a function with a client of either kind, and return its result."""

    def run(address: str, call: Callable[[Any], Any], **options: Any) -> Any:
        options = {"verify": authorities, **options}
        if request.param == "threads":
            with Client(address, **options) as client:
                return call(client)

        async def go() -> Any:
            async with AsyncClient(address, **options) as client:
                result = call(client)
                return await result if inspect.isawaitable(result) else result

        return asyncio.run(go())

    return run
