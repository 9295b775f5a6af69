"""Deadlines for threads: a call ends in time, however slowly bytes come.

httpx2 bounds each read, not their sum, so that a service which sends a byte now and then could hold
a thread for hours. Here a thread sets a deadline, and each read and write ends by it.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any

import httpcore2
import httpx2

from xclip_deploy.client.settings import ClientSettings


class Deadline(threading.local):
    """The time at which the calling thread gives up; infinity for never."""

    until = float("inf")

    def set(self, left_s: float) -> None:
        """Give up after some seconds."""
        self.until = time.monotonic() + left_s

    def limited(self, timeout_s: float | None, error: type[Exception]) -> float | None:
        """Return a timeout that ends by the deadline. Raises ``error`` after it."""
        left_s = self.until - time.monotonic()
        if left_s <= 0:
            raise error("the time is up")
        return left_s if timeout_s is None else min(timeout_s, left_s)


class _TimedStream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        limit_s = self._deadline.limited(timeout, httpcore2.ReadTimeout)
        return self._stream.read(max_bytes, limit_s)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        limit_s = self._deadline.limited(timeout, httpcore2.WriteTimeout)
        self._stream.write(buffer, limit_s)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        limit_s = self._deadline.limited(timeout, httpcore2.ConnectTimeout)
        secured = self._stream.start_tls(ssl_context, server_hostname, limit_s)
        return _TimedStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore2's
        return self._stream.get_extra_info(info)


class _TimedBackend(httpcore2.NetworkBackend):
    def __init__(self, backend: httpcore2.NetworkBackend, deadline: Deadline) -> None:
        self._backend = backend
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        limit_s = self._deadline.limited(timeout, httpcore2.ConnectTimeout)
        stream = self._backend.connect_tcp(host, port, limit_s, local_address, socket_options)
        return _TimedStream(stream, self._deadline)

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


def timed_transport(settings: ClientSettings, deadline: Deadline) -> httpx2.HTTPTransport:
    """Return a transport whose reads and writes end by the thread's deadline."""
    transport = httpx2.HTTPTransport(verify=settings.verify, proxy=settings.proxy, trust_env=False)
    # httpx2 has no argument for it. A test fails if a release names it otherwise.
    pool: Any = transport._pool
    pool._network_backend = _TimedBackend(pool._network_backend, deadline)
    return transport
