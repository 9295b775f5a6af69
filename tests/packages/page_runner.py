"""Run the blocks of a page in order, in one folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from command_line import Outcome
from documentation import REPOSITORY, Block, commands_of

EXPORT = "xclip-deploy export ckpt.pt"
"""The command that takes half a minute, and so runs once for all pages."""
_ADDRESS = "127.0.0.1:8000"
"""The service's address on the pages. The one in tests has a free port."""


class PageRunner:
    """Runs commands in this process, Python in one namespace, and services beside them."""

    def __init__(
        self,
        folder: Path,
        command_line: Callable[..., Outcome],
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.folder = folder
        self._command_line = command_line
        self._capfd = capfd
        self._monkeypatch = monkeypatch
        self._names: dict[str, Any] = {"__name__": "__page__"}
        self._services: list[subprocess.Popen[str]] = []
        self._address = _ADDRESS

    def __enter__(self) -> PageRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for value in self._names.values():
            if hasattr(value, "close") and not isinstance(value, type):
                value.close()
        for service in self._services:
            service.terminate()
            service.communicate(timeout=60)

    def run(self, block: Block) -> list[tuple[str, str]]:
        """Run a block; return its shown and its printed outputs, where ``/home/you`` is here."""
        if block.language == "python":
            outputs = [("", self._python(block))]
        else:
            outputs = [(shown, self.command(command)) for command, shown in commands_of(block)]
        here = str(self.folder)
        return [(shown, printed.replace(here, "/home/you")) for shown, printed in outputs]

    def _python(self, block: Block) -> str:
        self._capfd.readouterr()
        text = block.text.replace(_ADDRESS, self._address)
        source = "\n" * block.line + text
        exec(compile(source, str(block.page), "exec"), self._names)
        return self._capfd.readouterr().out

    def command(self, command: str) -> str:
        """Run one command; return what it prints on standard output."""
        command = command.replace(_ADDRESS, self._address)
        words = shlex.split(command, comments=True)
        if words[0] == "export" and "=" in words[1]:
            self._monkeypatch.setenv(*words[1].split("=", 1))
            return ""
        if " ".join(words) == EXPORT:
            return (self.folder / "export.txt").read_text(encoding="utf-8")
        if words[:2] == ["xclip-deploy", "serve"]:
            return self._serve(words[1:])
        is_plain = not set(command.partition(" #")[0]) & set("|>;&$")
        if words[0] == "xclip-deploy" and is_plain:
            outcome = self._command_line(*words[1:])
            assert outcome.status == 0, f"{command}\n{outcome.err}"
            return outcome.out
        return self._shell(command)

    def _shell(self, command: str) -> str:
        """Run what is no plain command of ours, with this environment's programs first."""
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            env={**os.environ, "PATH": path, "EXAMPLES": str(REPOSITORY / "examples")},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return done.stdout

    def _serve(self, words: list[str]) -> str:
        code = "from xclip_deploy.cli import main; main()"
        command = [sys.executable, "-c", code, *words, "--port", "0"]
        with (self.folder / "service.log").open("w", encoding="utf-8") as log:
            service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self._services.append(service)
        assert service.stdout is not None
        lines = [service.stdout.readline(), service.stdout.readline()]
        address = re.search(r"127\.0\.0\.1:\d+", lines[0])
        assert address, (self.folder / "service.log").read_text(encoding="utf-8")
        self._address = address[0]
        return "".join(lines).replace(address[0], _ADDRESS)
