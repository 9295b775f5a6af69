"""HTTP of the client: two drivers that carry out the steps of a call, by httpx2."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from xclip_deploy import errors
from xclip_deploy.client.answers import Head
from xclip_deploy.client.bodies import Body, JsonBody
from xclip_deploy.client.exchange import BrokenError, Emit, Flow, Open, Pause, Read, Work
from xclip_deploy.client.settings import ClientSettings
from xclip_deploy.runtime.arguments import as_instance

try:
    import httpx2
except ModuleNotFoundError as error:
    raise errors.MissingExtraError("httpx2", "client", "a client") from error

from xclip_deploy.client.deadlines import Deadline, timed_transport

T = TypeVar("T")
_UNSENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)
_FAILURES = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL)


class ThreadHTTP:
    """A driver that waits in the calling thread. Safe to use from several threads."""

    def __init__(
        self, settings: ClientSettings, transport: httpx2.BaseTransport | None = None
    ) -> None:
        """Prepare connections; none is made yet."""
        if transport is not None:
            as_instance("transport", transport, httpx2.BaseTransport, "a transport of httpx2")
        self._settings = settings
        self._deadline = Deadline()
        self._http = httpx2.Client(
            transport=transport or timed_transport(settings, self._deadline),
            follow_redirects=settings.follow_redirects,
            trust_env=False,
        )

    def run(self, flow: Flow[T]) -> T:
        """Carry out a call and return its result."""
        result: list[T] = []

        def finish() -> Iterator[None]:
            result.append((yield from self.follow(flow)))

        for _ in finish():
            pass  # values that nobody asked for
        return result[0]

    def follow(self, flow: Flow[T]) -> Generator[Any, None, T]:
        """Carry out a call and yield the values that it emits; return its result."""
        answer = _ThreadAnswer(self._http, self._settings, self._deadline)
        outcome: Any = None
        broken: BrokenError | None = None
        try:
            while True:
                try:
                    step = flow.send(outcome) if broken is None else flow.throw(broken)
                except StopIteration as end:
                    result: T = end.value
                    return result
                outcome = broken = None
                if isinstance(step, Emit):
                    yield step.value
                    continue
                try:
                    outcome = answer.perform(step)
                except _FAILURES as error:
                    broken = _broken_by(error)
        finally:
            flow.close()
            answer.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()


class _ThreadAnswer:
    """The answer that is being read."""

    def __init__(self, http: httpx2.Client, settings: ClientSettings, deadline: Deadline) -> None:
        self._http = http
        self._deadline = deadline
        self._settings = settings
        self._response: httpx2.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def perform(self, step: object) -> Any:  # noqa: ANN401 - each step has an outcome of its own
        if isinstance(step, Read):
            self._deadline.set(step.left_s)
            return next(self._chunks, None)
        if isinstance(step, Work):
            return step.function()
        self.close()
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        assert isinstance(step, Open)
        self._deadline.set(step.left_s)
        body = step.request.body
        content = None if body is None else _ThreadContent(body)
        request = self._http.build_request(
            **_request_options(step, self._settings), content=content
        )
        self._response = self._http.send(request, stream=True)
        self._chunks = self._response.iter_raw()
        return _head_of(self._response)

    def close(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            with suppress(*_FAILURES):
                response.close()


class _ThreadContent:
    """Bytes of a body, which httpx2 reads from the start for each attempt."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self._body.chunks()


class LoopHTTP:
    """A driver for asyncio. It belongs to the event loop that uses it first."""

    def __init__(
        self, settings: ClientSettings, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        """Prepare connections; none is made yet."""
        if transport is not None:
            kind = httpx2.AsyncBaseTransport
            as_instance("transport", transport, kind, "a transport of httpx2 for asyncio")
        self._settings = settings
        self._http = httpx2.AsyncClient(
            verify=settings.verify,
            proxy=settings.proxy,
            transport=transport,
            follow_redirects=settings.follow_redirects,
            # The environment's proxies, and passwords of ~/.netrc, are not asked for.
            trust_env=False,
        )

    async def run(self, flow: Flow[T]) -> T:
        """Carry out a call and return its result."""
        result: list[T] = []
        async for _ in self.follow(flow, result):
            pass
        return result[0]

    async def follow(
        self, flow: Flow[T], result: list[T] | None = None
    ) -> AsyncGenerator[Any, None]:
        """Carry out a call and yield the values that it emits; append its result."""
        answer = _LoopAnswer(self._http, self._settings)
        outcome: Any = None
        broken: BrokenError | None = None
        try:
            while True:
                try:
                    step = flow.send(outcome) if broken is None else flow.throw(broken)
                except StopIteration as end:
                    if result is not None:
                        result.append(end.value)
                    return
                outcome = broken = None
                if isinstance(step, Emit):
                    yield step.value
                    continue
                try:
                    outcome = await answer.perform(step)
                except _FAILURES as error:
                    broken = _broken_by(error)
                except asyncio.TimeoutError:
                    broken = BrokenError("the time is up", is_sent=True, is_timeout=True)
        finally:
            flow.close()
            await answer.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


class _LoopAnswer:
    """The answer that is being read."""

    def __init__(self, http: httpx2.AsyncClient, settings: ClientSettings) -> None:
        self._http = http
        self._settings = settings
        self._response: httpx2.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def perform(self, step: object) -> Any:  # noqa: ANN401 - each step has its own outcome
        if isinstance(step, Read):
            assert self._chunks is not None
            return await asyncio.wait_for(_next(self._chunks), _finite(step.left_s))
        if isinstance(step, Work):
            return await asyncio.to_thread(step.function)
        await self.close()
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        assert isinstance(step, Open)
        body = step.request.body
        content = None if body is None else _LoopContent(body)
        request = self._http.build_request(
            **_request_options(step, self._settings), content=content
        )
        sending = self._http.send(request, stream=True)
        self._response = await asyncio.wait_for(sending, _finite(step.left_s))
        self._chunks = self._response.aiter_raw()
        return _head_of(self._response)

    async def close(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            with suppress(*_FAILURES):
                await response.aclose()


class _LoopContent:
    """Bytes of a body, read from files on threads."""

    def __init__(self, body: Body) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = self._body.chunks()
        if isinstance(self._body, JsonBody):  # no file is read
            yield self._body.content
            return
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield chunk


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    try:
        return await chunks.__anext__()
    except StopAsyncIteration:
        return None


def _finite(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds


def _request_options(step: Open, settings: ClientSettings) -> dict[str, Any]:
    request = step.request
    headers = {"Accept-Encoding": "identity", "User-Agent": "xclip-deploy", **request.headers}
    if settings.token is not None:
        headers["Authorization"] = f"Bearer {settings.token}"
    if request.body is not None:
        headers["Content-Type"] = request.body.content_type
        headers["Content-Length"] = str(request.body.length)
    timeout = httpx2.Timeout(step.read_s, connect=step.connect_s, pool=step.connect_s)
    return {
        "method": request.method,
        "url": settings.address + request.path,
        "params": list(request.params) or None,
        "headers": headers,
        "timeout": timeout,
    }


def _head_of(response: httpx2.Response) -> Head:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Head(response.status_code, headers)


def _broken_by(error: Exception) -> BrokenError:
    is_timeout = isinstance(error, httpx2.TimeoutException)
    reason = str(error) or type(error).__name__
    return BrokenError(
        f"{reason:.200}", is_sent=not isinstance(error, _UNSENT), is_timeout=is_timeout
    )
