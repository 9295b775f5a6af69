"""Python child processes: start them, and say how one ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from xclip_deploy.errors import InvalidArgumentError

PYTHON_VARIABLE = "XCLIP_DEPLOY_PYTHON"
"""Environment variable with the path of the interpreter for child processes."""
_LOG_BYTES = 1 << 16
_PYTHON_NAME = re.compile(r"\.?(python|pypy)[\d.]*[a-z]*(-wrapped|-dbg)?(\.exe)?", re.IGNORECASE)


def python_command(module: str) -> tuple[str, ...]:
    """Return the command that runs a module with this Python. Raises as :func:`find_python`."""
    return (find_python(), "-m", module)


def find_python() -> str:
    """Return the path of the interpreter that runs child processes.

    The first of these counts: ``XCLIP_DEPLOY_PYTHON``; ``sys.executable``, if it is a Python; a
    Python of this version in ``sys.prefix`` or ``sys.base_prefix``. ``sys.executable`` is empty
    or another program where a program embeds Python, as uWSGI does.

    Raises InvalidArgumentError if the variable names no program, or no interpreter is found.
    """
    chosen = os.environ.get(PYTHON_VARIABLE)
    if chosen:
        if not _is_program(chosen):
            raise InvalidArgumentError(
                f"{PYTHON_VARIABLE} is {chosen}; expected the path of a Python interpreter"
            )
        return str(Path(chosen).absolute())  # children run in another directory
    running = sys.executable or ""
    if _PYTHON_NAME.fullmatch(Path(running).name) and _is_program(running):
        return running
    major, minor = sys.version_info[:2]
    names = (f"python{major}.{minor}{sys.abiflags}", f"python{major}.{minor}", f"python{major}")
    folders = dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix))
    for folder in folders:
        for name in (*names, "python"):
            program = str(Path(folder, "bin", name))
            if _is_program(program):
                return program
    raise InvalidArgumentError(
        f"no Python interpreter is in {Path(sys.prefix, 'bin')} and sys.executable is "
        f"{sys.executable!r}; set {PYTHON_VARIABLE} to the path of Python {major}.{minor}"
    )


def _is_program(path: str) -> bool:
    return Path(path).is_file() and os.access(path, os.X_OK)


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


def forget_log(log: IO[bytes]) -> None:
    """Empty the log of a running child, so that it holds what the next task says alone."""
    if log.closed:
        return
    # Both processes share the file offset, so the child writes at the start again.
    descriptor = log.fileno()
    if os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)


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
