"""Numbers of events, and those who wait for the next one.

Every event is the whole state of one job, so a later event of a job makes its earlier ones
needless. Only the last event of each job is therefore kept: a client that comes back with the
number of the last event that it saw gets the state of every job that changed since. A slow client
skips states and never holds anything up.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress


class News:
    """A counter of events that wakes those who wait. It is safe to use from several threads."""

    def __init__(self, first: int) -> None:
        """Begin after the number ``first``, which no earlier start of the service reached."""
        self._last = first
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    @property
    def last(self) -> int:
        """Number of the newest event."""
        return self._last

    def number(self) -> int:
        """Return the number of a new event, larger than all before."""
        with self._lock:
            self._last += 1
            return self._last

    def announce(self) -> None:
        """Wake everybody who waits; called once the event can be seen."""
        with self._lock:
            waiting = list(self._waiting.items())
        for event, loop in waiting:
            with suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(event.set)

    @property
    def num_listeners(self) -> int:
        """Number of those who listen."""
        with self._lock:
            return len(self._waiting)

    def listen(self) -> asyncio.Event:
        """Return an event of this loop that is set by every announcement."""
        event = asyncio.Event()
        with self._lock:
            self._waiting[event] = asyncio.get_running_loop()
        return event

    def leave(self, event: asyncio.Event) -> None:
        """Stop listening."""
        with self._lock:
            self._waiting.pop(event, None)
