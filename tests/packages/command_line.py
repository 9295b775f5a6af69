"""The command line, called within the process of a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
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
