"""A pool of decoder processes; one bad video costs at most one of them."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from xclip_deploy.errors import InvalidArgumentError, VideoError, VideoReadError
from xclip_deploy.runtime.decoding.process import (
    DecoderProcess,
    DecoderStartError,
    FileContent,
    WentAwayError,
    shelf,
    worker_command,
)
from xclip_deploy.runtime.decoding.stream import FrameStream
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.runtime.video import Segmentation, VideoReading, check_reader

Key = TypeVar("Key")
STARTS = 4
"""Number of failed starts in a row after which the pool gives up."""
_PAUSE_S = 0.25
"""Pause after the first failed start, seconds. It doubles with each further one."""


@dataclass(frozen=True)
class _Task(Generic[Key]):
    key: Key
    path: str
    wants_frames: Callable[[str], bool]
    segmentation: Segmentation
    is_image: bool


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
        command: Sequence[str] | None = None,
    ) -> None:
        """Check the arguments. Decoders start with the first videos.

        Args:
            reading: How the videos are read.
            workers: Number of processes; by default one for each core of this process.
            timeout_s: Time limit for decoding one video, and for silence while its file is
                hashed or the frames of a long video come, seconds.
            window: Most videos in work or waiting to be taken; by default twice ``workers``.
            command: Command that starts a decoder, for tests. The pool appends the parent's
                process id.

        Raises:
            InvalidArgumentError: a number is too small, or no Python interpreter is found.
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
        self.reading = reading
        """How the videos are read."""
        self._timeout_s = timeout_s
        self._is_default = command is None
        self._command = worker_command() if command is None else tuple(command)
        self._tasks: queue.SimpleQueue[_Task[Key] | None] = queue.SimpleQueue()
        self._news = threading.Condition()
        self._results: deque[tuple[Key, FileContent | BaseException]] = deque()
        self._streams: set[FrameStream] = set()
        self._threads: list[threading.Thread] = []
        self._running: set[DecoderProcess] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._successes = 0
        """Number of starts and readings that succeeded."""
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
        segmentation: Segmentation | None = None,
        *,
        is_image: bool = False,
    ) -> None:
        """Queue a video; the next free decoder reads it.

        ``path`` is absolute. Another thread calls ``wants_frames`` with the file's SHA-256; the
        decoder decodes the video only if it returns True. A video that ``segmentation`` cuts is
        read as a stream; None leaves every video whole. ``is_image``: whether the file is an image,
        which counts as a video of one frame.
        """
        if self._closed.is_set():
            raise InvalidArgumentError("the pool of decoders is closed")
        self.in_flight += 1
        cut = segmentation or Segmentation.whole()
        self._tasks.put(_Task(key, str(path), wants_frames, cut, is_image))
        with self._news:
            busy = len(self._streams)  # with videos that were taken already
        if len(self._threads) < min(self.workers, self.in_flight + busy):
            thread = threading.Thread(
                target=self._serve, name=f"decoder-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def take(
        self, timeout_s: float | None = None, streams: Collection[FrameStream] = ()
    ) -> tuple[Key, FileContent | VideoError] | None:
        """Return the next finished video, or the next long video once its stream begins.

        Returns None if there is none within ``timeout_s``, or as soon as one of ``streams`` has
        something to give. A decoder works on one stream at a time, so at most ``workers`` of
        them are open.

        Raises DecoderStartError after ``STARTS`` failed starts in a row.
        """
        with self._news:
            self._news.wait_for(
                lambda: self._results or any(stream.has_news for stream in streams), timeout_s
            )
            if not self._results:
                return None
            key, outcome = self._results.popleft()
        self.in_flight -= 1
        if isinstance(outcome, DecoderStartError):
            raise outcome
        if isinstance(outcome, (FileContent, VideoError)):
            return key, outcome
        raise outcome

    def close(self) -> None:
        """Drop the videos in work and keep idle decoders for the next pool."""
        with self._lock:
            self._closed.set()
            for process in self._running:
                process.interrupt()
        with self._news:
            streams = list(self._streams)
        for stream in streams:
            stream.close()
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
        while (task := self._tasks.get()) is not None and not self._closed.is_set():
            process, outcome = self._read(process, task)
            stream = outcome.frames if isinstance(outcome, FileContent) else None
            with self._news:
                if isinstance(stream, FrameStream):
                    self._streams.add(stream)
                self._results.append((task.key, outcome))
                self._news.notify_all()
            if isinstance(stream, FrameStream):
                assert process is not None
                process = self._fill(process, task, stream)
        if process is not None:
            if self._is_default:
                shelf.put_back(process)
            else:
                process.end()

    def _read(
        self, process: DecoderProcess | None, task: _Task[Key]
    ) -> tuple[DecoderProcess | None, FileContent | BaseException]:
        """Read one video. Return the decoder, None if it ended, and the outcome."""
        lost = 0
        try:
            while True:
                if process is None:
                    process = self._start()
                try:
                    with self._interruptible(process):
                        content = process.read(
                            task.path,
                            self.reading,
                            task.segmentation,
                            self._timeout_s,
                            task.wants_frames,
                            self._news,
                            is_image=task.is_image,
                        )
                        self._successes += 1
                        return process, content
                except WentAwayError as error:
                    process = None
                    lost += error.was_new
                    if lost == STARTS or self._closed.is_set():
                        raise VideoReadError(
                            f"{task.path}: {lost} new decoders in a row ended before they read it "
                            f"({error})"
                        ) from None
        except BaseException as error:  # noqa: BLE001 - raised by take()
            if process is not None and not process.is_alive():
                process.end()
                process = None
            return process, error

    def _fill(
        self, process: DecoderProcess, task: _Task[Key], stream: FrameStream
    ) -> DecoderProcess | None:
        """Read the frames of a long video. Return the decoder, None if it ended."""
        try:
            with self._interruptible(process):
                if self._closed.is_set():
                    stream.close()
                process.fill(stream, task.path, self.reading, self._timeout_s)
        except VideoError as error:
            stream.fail(error)
        except BaseException as error:  # noqa: BLE001 - raised where the stream is used
            stream.fail(VideoReadError(f"{task.path}: cannot be read: {error!r:.200}"))
        finally:
            with self._news:
                self._streams.discard(stream)
        if process.is_alive():
            return process
        process.end()
        return None

    def _start(self) -> DecoderProcess:
        """Return a ready decoder, trying again where one is killed while it starts.

        Raises DecoderStartError after ``STARTS`` failures in a row. A success of another thread
        in between starts the count anew.
        """
        failures, seen = 0, self._successes
        while True:
            process = shelf.take() if self._is_default else None
            if process is not None:
                return process
            try:
                process = DecoderProcess(self._command)
            except DecoderStartError as error:
                if self._successes != seen:
                    failures, seen = 0, self._successes
                failures += 1
                if failures == STARTS:
                    raise DecoderStartError(
                        f"{STARTS} starts of a decoder in a row failed; the last: {error}"
                    ) from error
                if self._closed.wait(_PAUSE_S * 2 ** (failures - 1)):
                    raise
            else:
                self._successes += 1
                return process

    @contextmanager
    def _interruptible(self, process: DecoderProcess) -> Iterator[None]:
        """Allow :meth:`close` to interrupt a decoder while it reads."""
        with self._lock:
            self._running.add(process)
            if self._closed.is_set():
                process.interrupt()
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)
