"""The command line, called within the process of a test or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a call printed, and its exit status."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]
"""Takes the arguments of one call."""


def runner(capfd: pytest.CaptureFixture[str], *command: str) -> Run:
    """Make a function that runs ``xclip-deploy``; ``command`` precedes its arguments."""

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([*command, *map(str, arguments)])
        printed = capfd.readouterr()
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, printed.out, printed.err)

    return call


def assert_one_line_error(outcome: Outcome, status: int, *parts: str) -> None:
    assert outcome.status == status, outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.endswith("\n")
    assert outcome.err.count("\n") == 1, "an error is one line"
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err


def on_a_terminal(*arguments: object, answer: str = "", columns: int = 80) -> tuple[int, str]:
    """Run the installed ``xclip-deploy`` on a terminal; return its status and what it shows."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"}
    program = Path(sys.executable).with_name("xclip-deploy")
    command = [str(program), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    screen = bytearray()

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                screen.extend(part)
        except OSError:  # the terminal is gone with the process
            pass

    reader = threading.Thread(target=read)
    reader.start()
    if answer:
        os.write(ours, f"{answer}\n".encode())
    status = process.wait(timeout=120)
    reader.join(timeout=120)
    os.close(ours)
    shown = screen.decode().replace("\r\n", "\n")
    # A line that names a wait is erased, and comes on slow machines alone.
    return status, re.sub(r"\r\x1b\[2K(?:[^\r\n]* …[^\r\n]*\r)?", "", shown)
