"""One call to the service, without any input or output: what to do, attempt by attempt.

A call is a generator, a :data:`Flow`. It yields steps, gets their outcomes, and returns a result.
A driver carries the steps out: one for threads, one for asyncio. All rules stand here, once:
deadlines, bounds, which requests are repeated, and which errors answers become.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

from xclip_deploy.client.answers import Head, refusal_of, refused_after_s
from xclip_deploy.client.bodies import Body
from xclip_deploy.client.settings import Rules
from xclip_deploy.errors import ServiceConnectionError, ServiceError, ServiceTimeoutError
from xclip_deploy.wire import API

T = TypeVar("T")
Flow: TypeAlias = Generator[Any, Any, T]
"""A call: it yields steps and returns a result."""
SILENCE_S = 45.0
"""Longest time without a byte of a stream of events; the service sends comments more often."""
_MAX_ERROR_BYTES = 1 << 20
_BUSY = (429, 503)
_GATEWAY = (502, 504)


class Repeat(Enum):
    """What allows a request to be sent again after a failure."""

    ALWAYS = "always"
    """Sending it twice does no more than sending it once."""
    REFUSED = "refused"
    """Only where it was not carried out: no connection, or a refusal that names a time."""
    UNSENT = "unsent"
    """Only where no connection was made, such as for uploads."""


@dataclass(frozen=True)
class Request:
    """A request below the service's address."""

    method: str
    path: str
    """Path with its prefix, quoted."""
    params: Sequence[tuple[str, str]] = ()
    body: Body | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeat: Repeat = Repeat.ALWAYS
    is_stream: bool = False
    """Whether the answer goes on for as long as events come."""


# Steps


@dataclass(frozen=True)
class Open:
    """Send a request; the outcome is the :class:`Head` of the answer. It ends an earlier answer."""

    request: Request
    connect_s: float
    read_s: float
    left_s: float


@dataclass(frozen=True)
class Read:
    """Read on; the outcome is some bytes, or None at the end."""

    left_s: float


@dataclass(frozen=True)
class Pause:
    """Wait. It ends an earlier answer."""

    seconds: float


@dataclass(frozen=True)
class Emit:
    """Hand a value to whoever iterates."""

    value: Any


@dataclass(frozen=True)
class Work:
    """Call a function that reads or writes files; the outcome is its result."""

    function: Callable[[], Any]


class BrokenError(Exception):
    """A connection that failed; drivers throw it into a flow."""

    def __init__(self, reason: str, *, is_sent: bool, is_timeout: bool = False) -> None:
        super().__init__(reason)
        self.is_sent = is_sent
        """Whether the service may have got the request."""
        self.is_timeout = is_timeout


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, error: Exception, status: int, retry_after_s: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.status = status
        self.retry_after_s = retry_after_s


# Calls


def address_of(*parts: str) -> str:
    """Return the path of an address of the API; names of videos are quoted."""
    return "/".join((API, *(quote(part, safe="") for part in parts)))


def exchange(
    request: Request,
    rules: Rules,
    read: Callable[[Head, float], Flow[T]],
    deadline: float | None = None,
) -> Flow[T]:
    """Send a request, again where that is safe, and return what ``read`` makes of the answer.

    ``read``: takes the head of an answer below 400 and the deadline. Raises the errors of the
    service, ServiceConnectionError, ServiceTimeoutError or ServiceError.
    """
    until = rules.deadline() if deadline is None else deadline
    for repetition in count(1):
        retry_after_s = None
        try:
            return (yield from attempt(request, rules, read, until))
        except BrokenError as broken:
            error: Exception = connection_error(broken, rules)
            is_safe = request.repeat is Repeat.ALWAYS or not broken.is_sent
        except RefusedError as refused:
            error, retry_after_s = refused.error, refused.retry_after_s
            is_safe = may_repeat(refused, request.repeat)
        pause_s = rules.pause_s(repetition, retry_after_s)
        is_late = rules.clock() + pause_s >= until
        if not is_safe or is_late or repetition > rules.settings.retries:
            raise error
        yield Pause(pause_s)
    raise AssertionError("unreachable")


def attempt(
    request: Request, rules: Rules, read: Callable[[Head, float], Flow[T]], until: float
) -> Flow[T]:
    """Send a request once, and return what ``read`` makes of the answer; see :func:`opened`."""
    head = yield from opened(request, rules, until)
    return (yield from read(head, until))


def opened(request: Request, rules: Rules, until: float) -> Flow[Head]:
    """Send a request once. Raises BrokenError, or the refusal for a status from 400."""
    settings, left_s = rules.settings, until - rules.clock()
    if left_s <= 0:
        raise BrokenError("the time is up", is_sent=False, is_timeout=True)
    head: Head = yield Open(
        request,
        min(settings.connect_timeout_s, left_s),
        min(settings.read_timeout_s, left_s, SILENCE_S if request.is_stream else left_s),
        left_s,
    )
    if head.status < 300:
        if head.headers.get("content-encoding", "identity") != "identity":
            raise ServiceError(
                f"the service at {settings.shown_address} compresses its answers, which was not "
                "asked for; expected plain ones",
                status=head.status,
            )
        return head
    if head.status < 400:
        raise ServiceError(
            f"the service at {settings.shown_address} answers with a redirect ({head.status}); "
            "expected the address of the service itself, or follow_redirects=True",
            status=head.status,
        )
    content = yield from whole_body(head, rules, until, _MAX_ERROR_BYTES)
    error = refusal_of(head, content, settings.shown_address)
    raise RefusedError(error, head.status, refused_after_s(head))


def chunks_of(
    head: Head, rules: Rules, until: float, most: int, sink: Callable[[bytes], Work | None]
) -> Flow[None]:
    """Read an answer and hand each chunk to ``sink``, which may return work on a file.

    Raises ServiceError beyond ``most`` bytes, and BrokenError for an answer that ends early.
    """
    settings, done = rules.settings, 0
    while done <= most and (head.length or 0) <= most:
        chunk: bytes | None = yield Read(max(until - rules.clock(), 0.0))
        if rules.clock() > until:
            raise BrokenError("the time is up", is_sent=True, is_timeout=True)
        if chunk is None:
            if head.length not in (None, done):
                reason = f"the answer ended after {done} of {head.length} bytes"
                raise BrokenError(reason, is_sent=True)
            return
        done += len(chunk)
        work = sink(chunk)
        if work is not None:
            yield work
    raise ServiceError(
        f"the service at {settings.shown_address} sends more than {most:,} bytes; expected no "
        "more, or a higher limit of the client",
        status=head.status,
    )


def whole_body(head: Head, rules: Rules, until: float, most: int) -> Flow[bytes]:
    """Read a whole answer into memory, ``most`` bytes at most."""
    parts: list[bytes] = []
    yield from chunks_of(head, rules, until, most, parts.append)
    return b"".join(parts)


def connection_error(broken: BrokenError, rules: Rules) -> ServiceError:
    """Return the public error of a broken connection."""
    address = rules.settings.shown_address
    if broken.is_timeout:
        return ServiceTimeoutError(
            f"the service at {address} did not answer in time ({broken}); try again, or give the "
            "client a longer timeout"
        )
    if not broken.is_sent:
        return ServiceConnectionError(
            f"the service at {address} cannot be reached ({broken}); start it with: "
            "xclip-deploy serve"
        )
    return ServiceConnectionError(
        f"the connection to the service at {address} broke ({broken}); it may have carried the "
        "request out"
    )


def may_repeat(refused: RefusedError, repeat: Repeat = Repeat.ALWAYS) -> bool:
    """Tell whether a refusal allows another attempt."""
    if refused.status in _BUSY and refused.retry_after_s is not None:
        return repeat is not Repeat.UNSENT
    return repeat is Repeat.ALWAYS and refused.status in (*_BUSY, *_GATEWAY)
