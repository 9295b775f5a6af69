"""A pool of decoder processes; one bad video costs at most one of them."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from xclip_deploy.errors import InvalidArgumentError, VideoError
from xclip_deploy.runtime.decoding.process import (
    WORKER_COMMAND,
    DecoderProcess,
    DecoderStartError,
    FileContent,
    WentAwayError,
    shelf,
)
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.runtime.video import VideoReading, check_reader

Key = TypeVar("Key")


@dataclass(frozen=True)
class _Task(Generic[Key]):
    key: Key
    path: str
    wants_frames: Callable[[str], bool]


class DecoderPool(Generic[Key]):
    """A pool that reads videos in child processes and returns results as they become ready.

    If a decoder crashes on a video or exceeds its time, the result is a ``VideoReadError`` in
    place of the frames, and the pool replaces the decoder. One thread calls :meth:`submit` and
    :meth:`take`. To bound memory, that thread keeps at most ``window`` videos in flight:
    :meth:`has_room` tells. The pool is a context manager.
    """

    def __init__(
        self,
        reading: VideoReading,
        *,
        workers: int | None = None,
        timeout_s: float = 120.0,
        window: int | None = None,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        """Check the arguments. Decoders start with the first videos.

        Args:
            reading: How the videos are read.
            workers: Number of processes; by default one for each core of this process.
            timeout_s: Time limit for decoding one video, and for silence while its file is
                hashed, seconds.
            window: Most videos in work or waiting to be taken; by default twice ``workers``.
            command: Command that starts a decoder. The pool appends the parent's process id.

        Raises:
            InvalidArgumentError: a number that is too small.
            MissingExtraError: the reader's package is not installed.
        """
        check_reader(reading)
        self.workers = usable_cores() if workers is None else workers
        self.window = 2 * self.workers if window is None else window
        if self.workers < 1 or self.window < 1 or not timeout_s > 0:
            raise InvalidArgumentError(
                f"workers is {workers}, window {window} and timeout_s {timeout_s}; expected at "
                "least 1 each, and more than 0 seconds"
            )
        self._reading = reading
        self._timeout_s = timeout_s
        self._command = tuple(command)
        self._is_default = self._command == WORKER_COMMAND
        self._tasks: queue.SimpleQueue[_Task[Key] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Key, FileContent | BaseException]] = (
            queue.SimpleQueue()
        )
        self._threads: list[threading.Thread] = []
        self._running: set[DecoderProcess] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        self.in_flight = 0
        """Number of videos submitted and not yet taken."""

    def has_room(self, beside: int = 0) -> bool:
        """Return whether one more video still fits into the window.

        ``beside`` counts videos that the caller can hold beyond the window.
        """
        return self.in_flight < self.window + beside

    def submit(
        self,
        key: Key,
        path: str | os.PathLike[str],
        wants_frames: Callable[[str], bool] = lambda _content_sha256: True,
    ) -> None:
        """Queue a video; the next free decoder reads it.

        ``path`` is absolute. Another thread calls ``wants_frames`` with the file's SHA-256; the
        decoder decodes the video only if it returns True.
        """
        if self._is_closed:
            raise InvalidArgumentError("the pool of decoders is closed")
        self.in_flight += 1
        self._tasks.put(_Task(key, str(path), wants_frames))
        if len(self._threads) < min(self.workers, self.in_flight):
            thread = threading.Thread(
                target=self._serve, name=f"decoder-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def take(self, timeout_s: float | None = None) -> tuple[Key, FileContent | VideoError] | None:
        """Return the next finished video, or None if none finishes within ``timeout_s``.

        Raises DecoderStartError if decoders cannot be started at all.
        """
        try:
            key, outcome = self._results.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self.in_flight -= 1
        if isinstance(outcome, DecoderStartError):
            raise outcome
        if isinstance(outcome, (FileContent, VideoError)):
            return key, outcome
        raise outcome

    def close(self) -> None:
        """Drop the videos in work and keep idle decoders for the next pool."""
        with self._lock:
            self._is_closed = True
            for process in self._running:
                process.interrupt()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> DecoderPool[Key]:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _serve(self) -> None:
        process: DecoderProcess | None = None
        while (task := self._tasks.get()) is not None and not self._is_closed:
            process, outcome = self._read(process, task)
            self._results.put((task.key, outcome))
        if process is not None:
            if self._is_default:
                shelf.put_back(process)
            else:
                process.end()

    def _read(
        self, process: DecoderProcess | None, task: _Task[Key]
    ) -> tuple[DecoderProcess | None, FileContent | BaseException]:
        """Read one video. Return the decoder, None if it ended, and the outcome."""
        try:
            while True:
                if process is None:
                    process = shelf.take() if self._is_default else DecoderProcess(self._command)
                try:
                    with self._interruptible(process):
                        content = process.read(
                            task.path, self._reading, self._timeout_s, task.wants_frames
                        )
                        return process, content
                except WentAwayError:
                    process = None
        except BaseException as error:  # noqa: BLE001 - raised by take()
            if process is not None and not process.is_alive():
                process.end()
                process = None
            return process, error

    @contextmanager
    def _interruptible(self, process: DecoderProcess) -> Iterator[None]:
        """Allow :meth:`close` to interrupt a decoder while it reads."""
        with self._lock:
            self._running.add(process)
            if self._is_closed:
                process.interrupt()
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)
