"""Requests that share a run: those that arrive within a few milliseconds, or while others run."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from xclip_deploy.service.errors import Refusal

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
_RETRY_AFTER_S = 1.0
_CLOCK_S = 1e-3
_SHARE = 4
"""Fewest items that one thread takes before it leaves some to another that is free."""


@dataclass(eq=False)
class _Entry(Generic[Item, Outcome]):
    item: Item
    since_s: float
    future: asyncio.Future[Outcome]


class Batcher(Generic[Item, Outcome]):
    """A bounded queue whose items are run together, on threads of its own.

    A run begins once ``max_batch`` items wait, or once the first of them has waited ``wait_s``.
    Free threads share what waits. While all are busy, items wait longer and the next run takes
    more of them. Every method
    but :meth:`close` belongs to one event loop.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Outcome | BaseException]],
        *,
        lanes: int,
        max_batch: int,
        wait_s: float,
        max_waiting: int,
        on_change: Callable[[int], object] = lambda _waiting: None,
    ) -> None:
        """Prepare to run.

        Args:
            run: Function that returns an outcome or an error for each item. It is called on a
                thread; what it raises is the outcome of all its items.
            lanes: Runs at the same time.
            max_batch: Most items of a run.
            wait_s: Longest time that an item waits for others while a thread is free, seconds.
            max_waiting: Most items that wait for a run; more are refused.
            on_change: Function that is told how many items wait.
        """
        self._run = run
        self._free_lanes = lanes
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._max_waiting = max_waiting
        self._on_change = on_change
        self._waiting: deque[_Entry[Item, Outcome]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="batch")

    async def submit(self, item: Item) -> Outcome:
        """Run an item with others and return its outcome. Raises its error, or Refusal (429)."""
        (entry,) = self._admit([item])
        return await entry.future

    async def submit_all(self, items: Sequence[Item]) -> list[Outcome]:
        """Run several items, all or none of which are admitted; raises the first error.

        More items than ever may wait are admitted while nothing else waits.
        """
        entries = self._admit(items)
        outcomes = await asyncio.gather(
            *(entry.future for entry in entries), return_exceptions=True
        )
        found: list[Outcome] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            found.append(outcome)
        return found

    def close(self) -> None:
        """Wait for the runs that began."""
        self._threads.shutdown(wait=True)

    def _admit(self, items: Sequence[Item]) -> list[_Entry[Item, Outcome]]:
        num_waiting = len(self._waiting)
        if num_waiting and num_waiting + len(items) > self._max_waiting:
            raise Refusal(
                429,
                "TooManyWaiting",
                f"{num_waiting} searches wait, and {self._max_waiting} may at most; try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        entries = [_Entry[Item, Outcome](item, now_s, loop.create_future()) for item in items]
        self._waiting.extend(entries)
        self._dispatch(loop)
        return entries

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin every run that is due, and set the timer for the next."""
        if self._is_due(loop.time()):
            self._begin_all(loop)
        if self._free_lanes and self._waiting and self._timer is None:
            due_s = self._waiting[0].since_s + self._wait_s
            self._timer = loop.call_at(due_s, self._tick, loop)
        self._on_change(len(self._waiting))

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        # A timer can fire early by the clock's resolution.
        if self._is_due(loop.time() + _CLOCK_S):
            self._begin_all(loop)
        self._dispatch(loop)

    def _is_due(self, now_s: float) -> bool:
        if len(self._waiting) >= self._max_batch:
            return True
        return bool(self._waiting) and now_s >= self._waiting[0].since_s + self._wait_s

    def _begin_all(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._free_lanes and self._waiting:
            self._begin(loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        entries: list[_Entry[Item, Outcome]] = []
        share = max(_SHARE, -(-len(self._waiting) // self._free_lanes))
        while self._waiting and len(entries) < min(share, self._max_batch):
            entry = self._waiting.popleft()
            if not entry.future.done():  # its client may have gone away
                entries.append(entry)
        if not entries:
            return
        self._free_lanes -= 1
        items = [entry.item for entry in entries]

        def work() -> None:
            outcomes: Sequence[Outcome | BaseException]
            try:
                outcomes = self._run(items)
            except BaseException as error:  # noqa: BLE001 - raised where the items are awaited
                outcomes = [error] * len(items)
            loop.call_soon_threadsafe(self._finish, loop, entries, outcomes)

        self._threads.submit(work)

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        entries: Sequence[_Entry[Item, Outcome]],
        outcomes: Sequence[Outcome | BaseException],
    ) -> None:
        self._free_lanes += 1
        for entry, outcome in zip(entries, outcomes, strict=True):
            if entry.future.done():
                continue
            if isinstance(outcome, BaseException):
                entry.future.set_exception(outcome)
            else:
                entry.future.set_result(outcome)
        self._dispatch(loop)
