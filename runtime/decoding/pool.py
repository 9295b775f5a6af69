"""A pool of decoder processes, of which a video can take one down but no more."""

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
    """Reads videos in processes of its own, results in the order in which they are ready.

    A video with which a decoder crashes, or which it does not read in time, is a
    ``VideoReadError`` in place of its frames; the decoder is replaced. Submitted and taken from
    by one thread; at most ``window`` videos should be between the two, which bounds memory:
    see :meth:`has_room`. A context manager.
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
        """Start nothing yet: decoders start when there is work for them.

        Args:
            reading: How the videos are read.
            workers: Processes; by default one for each core of this process.
            timeout_s: Longest time for decoding one video, and longest without a sign of life
                while its file is hashed, seconds.
            window: Most videos in work or waiting to be taken; by default, twice ``workers``.
            command: What starts a decoder; its parent's process number is added.

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
        """Videos submitted and not taken."""

    def has_room(self, beside: int = 0) -> bool:
        """Whether another video can be submitted without more than ``window`` being open.

        ``beside``: videos that the caller can hold beyond the window.
        """
        return self.in_flight < self.window + beside

    def submit(
        self,
        key: Key,
        path: str | os.PathLike[str],
        wants_frames: Callable[[str], bool] = lambda _content_sha256: True,
    ) -> None:
        """Read a video as soon as a decoder is free.

        ``path``: absolute. ``wants_frames``: called with the file's SHA-256 from another thread;
        whether to decode the video.
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
        """The next video that is done; None where none is after ``timeout_s``.

        Raises DecoderStartError where decoders cannot be started at all.
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
        """Stop: what is being read is dropped, decoders without work are kept for others."""
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
        """Read one video; also returns the decoder for the next one, None where it is gone."""
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
        """Let :meth:`close` interrupt a decoder while it reads."""
        with self._lock:
            self._running.add(process)
            if self._is_closed:
                process.interrupt()
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)
