"""Lanes: how many tasks of a kind run at a time, how many may wait, and who waits for which."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from threading import Lock
from typing import Any, Generic, TypeVar

from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.media.process import Answer, IdleEndError, MediaProcess, Starter

T = TypeVar("T")
_IDLE_ENDS = 3


class Lane:
    """A bound on the tasks of one kind: so many run, so many wait, others are refused."""

    def __init__(self, name: str, width: int, waiting: int, retry_after_s: float) -> None:
        """Set the most tasks that run and wait, and the pause that a refusal asks for."""
        self._name = name
        self._width, self._waiting = width, waiting
        self._retry_after_s = retry_after_s
        self._free = asyncio.Semaphore(width)
        self.num_running = 0
        self.num_waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it. Raises Refusal (429) where too many wait."""
        if self._free.locked() and self.num_waiting >= self._waiting:
            raise Refusal(
                429,
                "TooManyMediaRequests",
                f"{self.num_running} {self._name} run and {self.num_waiting} wait; expected "
                f"{self._width} and {self._waiting} at most, so try again later",
                retry_after_s=self._retry_after_s,
            )
        self.num_waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.num_waiting -= 1
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            self._free.release()


class Flights(Generic[T]):
    """Runs that equal requests share. A run that nobody waits for any more is cancelled."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}
        self._askers: dict[asyncio.Task[T], int] = {}

    async def join(self, key: Hashable, start: Callable[[], Awaitable[T]]) -> T:
        """Return the result of the run of a key, which begins unless it is under way.

        Raises whatever the run raises.
        """
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.ensure_future(_awaited(start))
            self._tasks[key] = task
            self._askers[task] = 0
            task.add_done_callback(lambda done: self._forget(key, done))
        self._askers[task] += 1
        try:
            return await asyncio.shield(task)
        finally:
            if task in self._askers:
                self._askers[task] -= 1
                if not self._askers[task] and not task.done():
                    self._forget(key, task)
                    task.cancel()

    def __len__(self) -> int:
        """Return the number of runs under way."""
        return len(self._tasks)

    async def cancel_all(self) -> None:
        """Cancel every run and wait until each has ended."""
        tasks = list(self._askers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, key: Hashable, task: asyncio.Task[T]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        self._askers.pop(task, None)
        if task.done() and not task.cancelled():
            task.exception()  # whoever waited has it; nobody may be left


async def _awaited(start: Callable[[], Awaitable[T]]) -> T:
    return await start()


class Workers:
    """Media processes, each driven by a thread while it has a task."""

    def __init__(self, starter: Starter, number: int) -> None:
        """Make the threads; a process starts with the first task that finds none idle."""
        self._starter = starter
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="media")
        self._runs: set[_Run] = set()

    async def ask(self, request: dict[str, Any], timeout_s: float) -> Answer:
        """Have a task done. A cancelled call kills the process and waits until it is gone.

        Raises as :meth:`MediaProcess.ask` does, and Refusal if no process starts.
        """
        run = _Run(self._starter, request, timeout_s)
        self._runs.add(run)
        future = asyncio.get_running_loop().run_in_executor(self._threads, run)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            run.cancel()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(asyncio.shield(future), 30)
            raise
        finally:
            self._runs.discard(run)

    def pids(self) -> list[int]:
        """Return the ids of the processes that have a task."""
        found = (run.process for run in list(self._runs))
        return [process.pid for process in found if process is not None]

    def close(self) -> None:
        """Kill the processes that have a task, then end all."""
        for run in list(self._runs):
            run.cancel()
        self._threads.shutdown(wait=True)
        self._starter.close()


class _Run:
    """One task on its way through a process."""

    def __init__(self, starter: Starter, request: dict[str, Any], timeout_s: float) -> None:
        self._starter = starter
        self._request, self._timeout_s = request, timeout_s
        self._lock = Lock()
        self._is_cancelled = False
        self.process: MediaProcess | None = None

    def __call__(self) -> Answer:
        for _ in range(_IDLE_ENDS):
            if self._is_cancelled:
                break
            process = self._starter.take(self._request["path"])
            with self._lock:
                self.process = process
                if self._is_cancelled:
                    process.interrupt()
            try:
                return process.ask(self._request, self._timeout_s)
            except IdleEndError:
                continue
            finally:
                with self._lock:
                    self.process = None
                self._starter.put_back(process)
        raise Refusal(503, "WorkerUnavailable", "no process for media took the task")

    def cancel(self) -> None:
        """Kill the process, now or as soon as it has started."""
        with self._lock:
            self._is_cancelled = True
            if self.process is not None:
                self.process.interrupt()
