"""Media processes: how they start, do one task within a time, and end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xclip_deploy import errors
from xclip_deploy.errors import VideoReadError, XclipDeployError
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
from xclip_deploy.service.errors import Refusal

_START_S = 120.0
"""Time limit for loading the libraries, for a busy machine with a cold disk."""
_MAX_PICTURE_BYTES = 1 << 28
_MAX_TASKS = 500
"""Tasks after which a process is replaced, should a library leak."""
_KINDS: dict[str, type[XclipDeployError]] = {
    kind.__name__: kind
    for kind in (
        errors.InvalidArgumentError,
        errors.MomentSourceError,
        errors.VideoNotFoundError,
        errors.VideoReadError,
    )
}


class IdleEndError(Exception):
    """The process ended by itself while it had nothing to do, so another must do the task."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a process answered to a task."""

    fields: dict[str, Any]
    content: bytes = b""
    """Bytes of a picture."""


def worker_command() -> tuple[str, ...]:
    """Return the command of a media process. Raises InvalidArgumentError without a Python."""
    return python_command("xclip_deploy.runtime.moments.worker")


class MediaProcess:
    """A child process that does one task at a time."""

    def __init__(
        self, starter: ThreadPoolExecutor, command: Sequence[str], memory_bytes: int
    ) -> None:
        """Start the process and wait until it is ready.

        Args:
            starter: One thread that lives as long as the process may: a process ends with the
                thread that started it.
            command: Command of the program; the limit of memory and the parent's id follow.
            memory_bytes: Most memory of the process.

        Raises:
            Refusal: the process does not start.
        """
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self._was_interrupted = False
        self._num_tasks = 0
        self.last_path = ""
        """File of the last task, whose index the process still knows."""
        whole = (*command, str(memory_bytes), str(os.getpid()))
        try:
            self._process: subprocess.Popen[bytes] = starter.submit(
                start_child, whole, self._log, bufsize=0
            ).result()
        except OSError as error:
            self._log.close()
            raise _not_started(error.strerror or str(error)) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno())
        try:
            self._channel.receive(_START_S)
        except (ChannelClosedError, ChannelTimeoutError, ProtocolError) as error:
            raise _not_started(self._end_and_say_how()) from error
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def can_go_on(self) -> bool:
        """Return whether the process can take another task."""
        is_alive = not self._was_interrupted and self._process.poll() is None
        return is_alive and self._num_tasks < _MAX_TASKS

    def ask(self, request: dict[str, Any], timeout_s: float) -> Answer:
        """Have a task done within a time, seconds.

        Raises:
            XclipDeployError: the error that the process reports; or VideoReadError, as the
                process crashed, hung, or answered with nonsense and was ended.
            IdleEndError: the process had ended before.
        """
        path = str(request["path"])
        name = Path(path).name
        self._num_tasks += 1
        try:
            self._channel.send(request)
            fields = self._channel.receive(timeout_s)
            if "error" in fields:
                raise _reported(fields, path)
            self.last_path = path
            return Answer(fields, self._content(fields, timeout_s))
        except ChannelTimeoutError as error:
            self.end()
            raise VideoReadError(
                f"{name}: was not read within {timeout_s:g} s and was given up; expected a "
                "shorter range, or a longer timeout of the service"
            ) from error
        except ChannelClosedError as error:
            was_interrupted = self._was_interrupted
            how, status = self._end_and_say_how(), self._process.returncode
            if status == 0 and not was_interrupted:
                raise IdleEndError from error
            raise VideoReadError(f"{name}: the process that read it ended ({how})") from error
        except (ProtocolError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, XclipDeployError):
                raise
            self.end()
            raise VideoReadError(f"{name}: the process that read it answered nonsense") from error
        finally:
            forget_log(self._log)

    def _content(self, fields: dict[str, Any], timeout_s: float) -> bytes:
        if "bytes" not in fields:
            return b""
        count = int(fields["bytes"])
        if not 1 <= count <= _MAX_PICTURE_BYTES:
            raise ProtocolError(f"a picture of {count} bytes")
        return self._channel.receive_frames((1, 1, 1, count), timeout_s).tobytes()

    def interrupt(self) -> None:
        """Kill the process. The thread that waits for its answer then gets an error."""
        self._was_interrupted = True
        self._process.kill()

    def end(self) -> None:
        """Kill the process and release its pipes."""
        self._was_interrupted = True
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()

    def _end_and_say_how(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)  # it closed its pipes, so it ends soon
        how = describe_end(self._process.poll(), self._log)
        self.end()
        return how


class Starter:
    """The thread that starts processes, and the processes that wait for a task."""

    def __init__(self, command: Sequence[str], memory_bytes: int) -> None:
        """Remember how processes are started."""
        self._command = tuple(command)
        self._memory_bytes = memory_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="start-media")
        self._idle: list[MediaProcess] = []
        self._lock = threading.Lock()

    def take(self, path: str) -> MediaProcess:
        """Return an idle process, best the one that has read ``path``, or start one.

        Raises Refusal if none starts.
        """
        with self._lock:
            self._drop_ended()
            known = [process for process in self._idle if process.last_path == path]
            if self._idle:
                process = known[0] if known else self._idle[0]
                self._idle.remove(process)
                return process
        return MediaProcess(self._thread, self._command, self._memory_bytes)

    def put_back(self, process: MediaProcess) -> None:
        """Keep a process for the next task if it can go on, and end it otherwise."""
        if process.can_go_on():
            with self._lock:
                self._idle.append(process)
        else:
            process.end()

    def pids(self) -> list[int]:
        """Return the ids of the processes that wait for a task."""
        with self._lock:
            return [process.pid for process in self._idle]

    def close(self) -> None:
        """End the idle processes and the thread."""
        with self._lock:
            while self._idle:
                self._idle.pop().end()
        self._thread.shutdown(wait=True)

    def _drop_ended(self) -> None:
        for process in [each for each in self._idle if not each.can_go_on()]:
            self._idle.remove(process)
            process.end()


def _reported(fields: dict[str, Any], path: str) -> XclipDeployError:
    """Return the error that a process reported, with the system's error as its cause."""
    kind = _KINDS.get(str(fields.get("kind")), VideoReadError)
    text = str(fields["error"])[:2000].replace(path, Path(path).name)
    found = kind(text)
    number = fields.get("errno")
    if isinstance(number, int):
        found.__cause__ = OSError(number, os.strerror(number))
    return found


def _not_started(why: str) -> Refusal:
    return Refusal(
        503,
        "WorkerUnavailable",
        f"a process for media does not start ({why[:300]}); try again later",
        retry_after_s=5,
    )
