"""Python child processes: start them, and say how one ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

_LOG_BYTES = 1 << 16


def python_command(module: str) -> tuple[str, ...]:
    """Return the command that runs a module with this Python."""
    return (sys.executable, "-m", module)


def start_child(
    command: tuple[str, ...],
    log: IO[bytes],
    **options: Any,  # noqa: ANN401 - those of Popen
) -> subprocess.Popen[Any]:
    """Start a process with pipes for its standard input and output.

    The child searches the same ``sys.path`` as this process, whatever directory this process
    was started in. It runs in a session of its own, so Ctrl-C reaches this process alone.

    ``log`` receives the child's standard error. ``options`` are passed to
    ``subprocess.Popen``. Raises OSError.
    """
    # An empty entry means the current directory; the child runs in another one.
    places = [place or str(Path.cwd()) for place in sys.path]
    return subprocess.Popen(  # noqa: S603 - this Python, and a module of ours
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
        # Python searches the current directory first, so it must hold no modules.
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        **options,
    )


def describe_end(status: int | None, log: IO[bytes]) -> str:
    """Say in one line how a process ended. ``log`` holds its standard error."""
    how = "it closed its pipes" if status is None else f"exit status {status}"
    if status is not None and status < 0:
        how = signal.Signals(-status).name
        if status == -signal.SIGKILL:
            how += ", as when memory runs out"
    log.seek(0)
    said = log.read(_LOG_BYTES).decode("utf-8", "replace").strip().splitlines()
    last = " ".join(said[-1].split())[:200] if said else ""
    return f"{how}: {last}" if last else how
