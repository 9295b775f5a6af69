"""Decoder processes: how they start, read a video, end, and wait for the next pool."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from xclip_deploy.errors import VideoReadError
from xclip_deploy.runtime.child_process import (
    describe_end,
    forget_log,
    python_command,
    start_child,
)
from xclip_deploy.runtime.decoding.channel import (
    Channel,
    ChannelClosedError,
    ChannelTimeoutError,
    ProtocolError,
)
from xclip_deploy.runtime.decoding.stream import BlockReceiver, FrameStream, check_gaps
from xclip_deploy.runtime.video import SampledBy, Segmentation, VideoFrames, VideoReading

MAX_DURATION_S = 1e9
"""Longest video, seconds: 31 years."""
_START_S = 120.0
"""Time limit for loading the decoder's libraries, for a busy machine with a cold disk."""


class FileChangedError(VideoReadError):
    """The file changed while it was read, so the result belongs to no version of it."""


class DecoderStartError(VideoReadError):
    """Decoder processes do not start, whatever the video."""


class WentAwayError(Exception):
    """The decoder ended before it answered, so the video is not to blame.

    An idle decoder ends after a while. A new one can be killed, as when memory runs out.
    """

    def __init__(self, how: str, *, was_new: bool) -> None:
        super().__init__(how)
        self.was_new = was_new
        """True if the decoder had read no video before."""


def worker_command() -> tuple[str, ...]:
    """Return the command that starts a decoder. Raises InvalidArgumentError without a Python."""
    return python_command("xclip_deploy.runtime.decoding.worker")


@dataclass(frozen=True, eq=False)
class FileContent:
    """Content of a file at the time of reading."""

    path: str
    size_bytes: int
    modified_ns: int
    content_sha256: str
    """SHA-256 of the file, hexadecimal."""
    frames: VideoFrames | FrameStream | None
    """Frames of the video, or the stream of a long one; None if the caller wanted only the
    hash."""


class DecoderProcess:
    """A child process that reads videos, one at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start the process and wait until it is ready. Raises DecoderStartError."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self.was_used = False
        self._was_interrupted = False
        try:
            self._process = _starter.submit(self._start, command).result()
        except OSError as error:
            self._log.close()
            raise DecoderStartError(f"a decoder cannot be started: {error}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno())
        try:
            self._channel.receive(_START_S)
        except (ChannelClosedError, ChannelTimeoutError, ProtocolError) as error:
            how = self._end_and_say_how()
            raise DecoderStartError(f"a decoder ended while it started ({how})") from error
        except BaseException:
            self.end()
            raise

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return start_child((*command, str(os.getpid())), self._log, bufsize=0)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether the process still runs and was not interrupted."""
        return not self._was_interrupted and self._process.poll() is None

    def read(
        self,
        path: str,
        reading: VideoReading,
        segmentation: Segmentation,
        timeout_s: float,
        wants_frames: Callable[[str], bool],
        news: threading.Condition | None = None,
        *,
        is_image: bool = False,
    ) -> FileContent:
        """Read one video. Before decoding, ask ``wants_frames`` with the file's SHA-256.

        ``timeout_s`` limits the time for decoding, and for silence while the file is hashed,
        seconds. Of a long video, a stream without frames is returned, which notifies ``news``;
        :meth:`fill` then reads the frames. ``is_image``: whether the file is an image.

        Raises VideoError for a video that cannot be read; the process may have crashed or hung
        on it. Afterwards, :meth:`is_alive` tells whether the process can read another video.
        Raises WentAwayError if another decoder must read this video.
        """
        with self._blaming(path, timeout_s):
            request = {
                "path": path,
                "reading": reading.to_dict(),
                "segmentation": segmentation.text,
                "is_image": is_image,
            }
            return self._read(request, path, reading, timeout_s, wants_frames, news)

    def fill(self, stream: FrameStream, path: str, reading: VideoReading, timeout_s: float) -> None:
        """Read the frames of a long video into its stream, or until that is closed.

        ``timeout_s`` limits the silence of the decoder, not the time that the stream is full.
        Raises VideoError as :meth:`read` does.
        """
        with self._blaming(path, timeout_s):
            receiver = BlockReceiver(self._channel, reading, stream.duration_s)
            while True:
                answer = self._channel.receive(timeout_s)
                _raise_if_failed(answer)
                if "decoding" in answer:
                    continue
                if "ended" in answer:
                    warnings = tuple(map(str, answer["warnings"]))
                    stream.complete(warnings, check_gaps(answer["gaps"]))
                    return
                if not stream.put(receiver.block(answer, timeout_s)):
                    self.end()  # it would go on for hours
                    return

    @contextlib.contextmanager
    def _blaming(self, path: str, timeout_s: float) -> Iterator[None]:
        """Turn what the process does wrong into an error of the video that it reads."""
        try:
            yield
        except ChannelTimeoutError as error:
            self.end()
            raise VideoReadError(
                f"{path}: was not read within {timeout_s:g} s and was given up; "
                "a longer --timeout may help"
            ) from error
        except (ProtocolError, KeyError, TypeError, ValueError) as error:
            self.end()
            said = " ".join(str(error).split())[:200]
            raise VideoReadError(f"{path}: the decoder answered with {said}") from error
        except ChannelClosedError as error:
            how = self._end_and_say_how()
            raise VideoReadError(f"{path}: the decoder ended while it read it ({how})") from error
        except BaseException as error:
            # A decoder that reported the error itself is ready for the next video.
            if not isinstance(error, (VideoReadError, WentAwayError)):
                self.end()
            raise
        finally:
            forget_log(self._log)

    def _read(
        self,
        request: dict[str, Any],
        path: str,
        reading: VideoReading,
        timeout_s: float,
        wants_frames: Callable[[str], bool],
        news: threading.Condition | None,
    ) -> FileContent:
        try:
            self._channel.send(request)
            answer = self._channel.receive(timeout_s)
        except ChannelClosedError:
            # The decoder has not opened the file yet: a crash here is not the video's doing.
            raise WentAwayError(self._end_and_say_how(), was_new=not self.was_used) from None
        self.was_used = True
        while "hashing" in answer:
            answer = self._channel.receive(timeout_s)
        _raise_if_failed(answer)
        content_sha256 = str(answer["content_sha256"])
        size_bytes, modified_ns = int(answer["size_bytes"]), int(answer["modified_ns"])
        wanted = wants_frames(content_sha256)
        self._channel.send({"decode": wanted})
        frames = self._receive_frames(reading, timeout_s, news) if wanted else None
        return FileContent(path, size_bytes, modified_ns, content_sha256, frames)

    def _receive_frames(
        self, reading: VideoReading, timeout_s: float, news: threading.Condition | None
    ) -> VideoFrames | FrameStream:
        answer = self._channel.receive(timeout_s)
        while "decoding" in answer:
            answer = self._channel.receive(timeout_s)
        _raise_if_failed(answer)
        if "long" in answer:
            duration_s = float(answer["duration_s"])
            if not 0 < duration_s < MAX_DURATION_S:
                raise ProtocolError("a duration that is no time")
            return FrameStream(duration_s, news)
        count, size = int(answer["count"]), reading.image_size
        most = reading.sampling.max_frames
        times, numbers = answer["times_s"], answer["frame_numbers"]
        if not 1 <= count <= most or not count == len(times) == len(numbers):
            raise ProtocolError(f"{count} frames, expected 1 to {most} with their times")
        duration_s, frame_rate = float(answer["duration_s"]), float(answer["frame_rate"])
        if not np.isfinite([*times, duration_s, frame_rate]).all():
            raise ProtocolError("times that are no numbers")
        sampled_by = answer["sampled_by"]
        if sampled_by not in get_args(SampledBy):
            raise ProtocolError("no known way of sampling")
        return VideoFrames(
            frames=self._channel.receive_frames((count, size, size, 3), timeout_s),
            times_s=np.array(times, np.float64),
            frame_numbers=np.array(numbers, np.int64),
            duration_s=duration_s,
            frame_rate=frame_rate,
            sampled_by=sampled_by,
            warnings=tuple(map(str, answer["warnings"])),
        )

    def end(self) -> None:
        """Kill the process and release its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()

    def interrupt(self) -> None:
        """Kill the process. The thread that waits for its answer then calls :meth:`end`."""
        self._was_interrupted = True
        self._process.kill()

    def forget(self) -> None:
        """Release the pipes after a fork, and leave the process to the parent."""
        self._process.returncode = 0
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()

    def _end_and_say_how(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)  # it closed its pipes, so it ends soon
        status = self._process.poll()
        how = describe_end(status, self._log)
        self.end()
        return how


class DecoderShelf:
    """Idle decoders, kept because starting one takes half a second."""

    def __init__(self) -> None:
        self._idle: list[DecoderProcess] = []
        self._lock = threading.Lock()

    def take(self) -> DecoderProcess | None:
        """Return an idle decoder, None if there is none."""
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.is_alive():
                    return process
                process.end()
        return None

    def put_back(self, process: DecoderProcess) -> None:
        """Keep a decoder that has answered its last request."""
        with self._lock:
            self._idle.append(process)

    def close(self) -> None:
        """End all idle decoders."""
        with self._lock:
            while self._idle:
                self._idle.pop().end()

    def after_fork(self) -> None:
        """Forget the decoders in a forked process; they belong to its parent."""
        for process in self._idle:
            process.forget()
        self._idle = []
        self._lock = threading.Lock()


def _raise_if_failed(answer: dict[str, Any]) -> None:
    if "error" in answer:
        kind = FileChangedError if answer.get("changed") else VideoReadError
        raise kind(str(answer["error"]))


def _new_starter() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="start-decoder")


_starter = _new_starter()
"""Thread that starts decoders. A decoder ends when the thread that started it ends."""
shelf = DecoderShelf()
"""Idle decoders of this process, shared by all pools."""


def _after_fork() -> None:
    global _starter
    _starter = _new_starter()
    shelf.after_fork()


atexit.register(shelf.close)
os.register_at_fork(after_in_child=_after_fork)
