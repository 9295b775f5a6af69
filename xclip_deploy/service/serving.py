"""The server process: its socket, its patience, and its end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service.app import create_app
from xclip_deploy.service.health import Health, probe
from xclip_deploy.service.security.tokens import check_binding
from xclip_deploy.service.settings import ServiceSettings
from xclip_deploy.service.state import Service

HEAD_S = 15.0
"""Longest time between a connection and the end of a request's headers."""
MAX_HEAD_BYTES = 64 << 10
"""Largest head of a request."""
_KEEP_ALIVE_S = 60
_LAST_S = 2
"""Seconds after which responses that nobody reads are cut off."""

_SWITCH_S = 5e-4
"""Longest time that a thread computes in Python before another gets its turn, seconds."""


def serve(settings: ServiceSettings, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one ends at once.

    ``on_ready``: called with the address once all three graphs have answered and requests are
    taken. At the end no new requests are taken, running ones finish, and the running job finishes
    its current video.

    Raises InvalidArgumentError for an address that is in use or not this machine's, or that others
    reach without a token; and as :class:`Retriever` does.
    """
    check_binding(settings.host, settings.token)
    # Searches compute on threads. The loop, which has little to do for each request, would wait
    # 5 ms for them each time.
    sys.setswitchinterval(_SWITCH_S)
    with closing(listen(settings.host, settings.port)) as listener:
        service = Service(settings)
        try:
            probe(service.served.retriever, service.served.model)
            service.searching.warm_up()
            service.health.set_fault("model", None)
            app = create_app(settings, service)
        except BaseException:
            service.close()
            raise
        server = Server(_config(app), service.health, settings.shutdown_s)
        server.announce = lambda: on_ready(address_of(settings.host, listener))
        server.run([listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address. Raises InvalidArgumentError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise InvalidArgumentError(
            f"{host!r:.100} is no address of this machine ({error.strerror}); expected one such "
            "as 127.0.0.1 or 0.0.0.0"
        ) from error
    family, kind, protocol, _, place = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError as error:
        listener.close()
        reason = {
            errno.EADDRINUSE: "another program serves there; choose another --port",
            errno.EACCES: "this user may not; choose a --port from 1024 on",
            errno.EADDRNOTAVAIL: "it is no address of this machine; choose another --host",
        }.get(error.errno or 0, error.strerror)
        raise InvalidArgumentError(f"{host} port {port} cannot be served: {reason}") from error
    listener.setblocking(False)
    return listener


def address_of(host: str, listener: socket.socket) -> str:
    """Return the address for browsers of a socket that was bound to ``host``."""
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """A server that tells when it is ready, and lets requests finish at its end.

    While they finish it still listens: the service answers that it shuts down, so that load
    balancers and clients hear it instead of finding nobody.
    """

    announce: Callable[[], None] | None = None
    """Called once, when requests are taken."""

    def __init__(self, config: uvicorn.Config, health: Health, shutdown_s: float) -> None:
        """Serve ``config``. ``shutdown_s``: longest time that running requests get."""
        super().__init__(config)
        self._health = health
        self._shutdown_s = shutdown_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end at the first signal; end at once at the second."""
        del frame
        if self.should_exit:
            sys.stderr.flush()
            os._exit(128 + sig)
        if sig == signal.SIGINT:
            self._captured_signals.append(sig)  # it is raised again, as an interruption
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Announce the address at the first tick."""
        if self.announce is not None:
            announce, self.announce = self.announce, None
            announce()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for running requests, then close everything."""
        self._health.begin_shutdown()
        end = time.monotonic() + self._shutdown_s
        while self._health.is_busy() and time.monotonic() < end:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


class PatientProtocol(HttpToolsProtocol):
    """HTTP that waits for the head of a request so long and so far, and no more.

    Without it a client could hold connections open, or fill memory, and never make a request.
    """

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _idle_bytes = 0
    """Bytes since the last part of a body: chunk sizes with extensions, and trailers."""
    _is_in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Parse what came. Closes the connection on a head or trailers that are too large."""
        self._idle_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._is_in_head:
            if self._idle_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The body has too much between or behind its parts.")
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response("The head of the request is too large.")
        elif self._timer is None:
            self._wait()

    def on_message_begin(self) -> None:
        """Begin a request's head."""
        super().on_message_begin()
        self._is_in_head, self._head_bytes = True, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers are dropped, since nothing checks them."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Take a part of a request's body."""
        self._idle_bytes = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """End a request's head."""
        self._is_in_head, self._head_bytes, self._idle_bytes = False, 0, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the head of the next request, within the time for idle connections."""
        self._is_in_head = not self.pipeline
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self._is_in_head or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self._wait()  # the answer to the request before comes first


def _config(app: Any) -> uvicorn.Config:  # noqa: ANN401 - uvicorn's
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_S,
    )
