"""Limits on the size and the slowness of request bodies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import Message, Receive

from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.settings import ServiceSettings
from xclip_deploy.wire import API

MAX_JSON_BYTES = 16 << 20
"""Largest JSON body."""
MAX_SCORE_BYTES = 64 << 20
"""Largest body of a request to score, which can hold embeddings."""
SLOWEST_BYTES_S = 1024
"""Fewest bytes a second on average, once a body takes longer than the time to stall."""
MAX_MARKS = 1 << 16
"""Most commas, colons and brackets of a JSON body. Each can stand for a value or a field, of which
a million would keep the event loop busy for half a minute; arrays and texts have few."""
MAX_SESSION_BYTES = 8 << 10
"""Largest body of a request to sign in. Nobody has shown a token by then."""
_FORM_BYTES = 1 << 20
"""Room in a form for its options and the heads of its parts."""


def body_limits(settings: ServiceSettings) -> Callable[[str], int]:
    """Return a function from an address to the largest body that it takes, in bytes."""
    uploads = min(settings.max_upload_bytes * settings.max_upload_files, settings.max_stored_bytes)
    limits = {
        f"{API}/videos": uploads + _FORM_BYTES,
        f"{API}/search/image": settings.max_query_bytes + _FORM_BYTES,
        f"{API}/search/video": settings.max_query_bytes + _FORM_BYTES,
        f"{API}/encode/videos": settings.max_query_bytes + _FORM_BYTES,
        f"{API}/score": MAX_SCORE_BYTES,
        f"{API}/session": MAX_SESSION_BYTES,
    }
    return lambda path: limits.get(path, MAX_JSON_BYTES)


def check_length(text: str | None, limit: int) -> None:
    """Refuse a ``Content-Length`` above the limit, or one that is no number. Raises Refusal."""
    if text is None:
        return
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise Refusal(400, "BadLength", "Content-Length is no number; expected one in bytes")
    if int(text) > limit:
        raise _too_large(limit)


class LimitedBody:
    """A request's body: it counts bytes, and gives up on a sender that stalls.

    It stands in place of the ASGI ``receive``. A body in chunks has no length that could be
    checked first, and one with a length may come a byte at a time.
    """

    def __init__(
        self, receive: Receive, limit: int, stall_s: float, *, is_json: bool = False
    ) -> None:
        """Limit the body of ``receive`` to ``limit`` bytes and waits of ``stall_s`` seconds.

        ``is_json``: whether :data:`MAX_MARKS` holds.
        """
        self._receive = receive
        self._marks_left = MAX_MARKS if is_json else None
        self._limit = limit
        self._stall_s = stall_s
        self._started = time.monotonic()
        self.num_bytes = 0
        """Bytes that came so far."""
        self.is_complete = False
        """Whether the body has ended, or its sender went away."""
        self.refusal: Refusal | None = None
        """Reason why the body was refused; frameworks turn it into an error of their own."""

    async def __call__(self) -> Message:
        """Return the next message. Raises Refusal for a body too large or too slow."""
        if self.is_complete:
            return await self._receive()
        if self.refusal is not None:
            raise self.refusal
        try:
            message = await asyncio.wait_for(self._receive(), self._stall_s)
        except asyncio.TimeoutError:
            self.refusal = Refusal(
                408, "SlowBody", f"nothing of the body came for {self._stall_s:g} s; send it again"
            )
            raise self.refusal from None
        self.num_bytes += len(message.get("body", b""))
        self.is_complete = message["type"] != "http.request" or not message.get("more_body")
        if self.num_bytes > self._limit:
            self.refusal = _too_large(self._limit)
        elif self._has_too_many_marks(message.get("body", b"")):
            self.refusal = Refusal(
                413,
                "BodyTooLarge",
                f"the JSON has more than {MAX_MARKS} commas, colons and brackets; send less",
            )
        elif not self.is_complete and self._is_too_slow():
            self.refusal = Refusal(
                408, "SlowBody", f"the body comes at less than {SLOWEST_BYTES_S} bytes a second"
            )
        if self.refusal is not None:
            raise self.refusal
        return message

    async def drain(self, most_bytes: int = 4 << 20, most_s: float = 1.0) -> None:
        """Read what a refused sender still sends, within bounds, so that it reads the answer.

        A connection that closes on unread bytes is reset, which takes the answer with it.
        """
        end = time.monotonic() + most_s
        while not self.is_complete and most_bytes > 0:
            left = end - time.monotonic()
            if left <= 0:
                return
            try:
                message = await asyncio.wait_for(self._receive(), left)
            except asyncio.TimeoutError:
                return
            most_bytes -= len(message.get("body", b""))
            self.is_complete = message["type"] != "http.request" or not message.get("more_body")

    def _has_too_many_marks(self, chunk: bytes) -> bool:
        if self._marks_left is None:
            return False
        self._marks_left -= sum(map(chunk.count, (b",", b":", b"[", b"{")))
        return self._marks_left < 0

    def _is_too_slow(self) -> bool:
        late_s = time.monotonic() - self._started - self._stall_s
        return late_s > 0 and self.num_bytes < late_s * SLOWEST_BYTES_S


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413,
        "BodyTooLarge",
        f"the body has more than the {limit} bytes that this address takes; send less",
    )
