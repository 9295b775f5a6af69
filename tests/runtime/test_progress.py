"""Rates, time left, and what is printed where there is no terminal."""

from __future__ import annotations

import re

import pytest

from xclip_deploy.runtime.progress import (
    Pace,
    Progress,
    ProgressLines,
    progress_function,
    video_progress,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pace_forgets_how_fast_it_was() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.describe(10) == ""
    for second in range(1, 11):
        clock.now = 100.0 + second
        pace.note(10 * second)
    assert pace.describe(72_000) == "10.0 videos/s, 2:00:00 left"
    for second in range(11, 60):
        clock.now = 100.0 + second
        pace.note(100 + second - 10)
    assert pace.describe(90) == "1.0 videos/s, 1:30 left"
    assert pace.describe(0) == "1.0 videos/s"


def test_many_notes_are_few() -> None:
    clock = Clock()
    pace = Pace(clock)
    for n in range(10_000):
        clock.now += 0.001
        pace.note(n + 1)
    assert len(pace._noted) < 150
    assert pace.describe(0) == "1000.0 videos/s"


def test_lines_now_and_then(capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = ProgressLines(clock)
    for n in range(1, 26):
        clock.now += 1
        lines.report(Progress("videos", n, 30, failed=n // 10))
    lines.finish()
    lines.finish()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "indexing 10/30 videos, 1.0 videos/s, 0:20 left, 1 failed",
        "indexing 20/30 videos, 1.0 videos/s, 0:10 left, 2 failed",
        "indexing 25/30 videos, 1.0 videos/s, 0:05 left, 2 failed",
    ]


def test_a_bar_on_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with video_progress() as report:
        for done in range(1, 4):
            report(Progress("videos", done, 3, failed=1))
    printed = capfd.readouterr()
    assert printed.out == ""
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed.err)
    assert "3/3 videos" in shown
    assert "1 failed" in shown


def test_what_a_caller_wants_to_be_told(capfd: pytest.CaptureFixture[str]) -> None:
    step = Progress("videos", 2, 3)
    told: list[Progress] = []
    for wanted in (False, told.append, True):
        with progress_function(wanted) as report:
            report(step)
    assert told == [step]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("indexing 2/3 videos, ")


def test_without_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)  # as under pythonw
    with progress_function(True) as report:
        report(Progress("videos", 2, 3))


@pytest.mark.parametrize("is_terminal", [False, True])
def test_nothing_to_do_draws_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    with video_progress():
        pass
    assert capfd.readouterr().err == ""
