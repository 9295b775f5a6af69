"""Rates, time left, and what is printed where there is no terminal."""

from __future__ import annotations

import re
import time

import pytest

from xclip_deploy.runtime import progress as progress_module
from xclip_deploy.runtime.progress import (
    LOOKING,
    Pace,
    Progress,
    ProgressLines,
    WaitLine,
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


def test_counts_keep_their_room_beside_long_names(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    with video_progress() as report:
        report(Progress("videos", 1234, 5678, failed=12, note="a long name of a video " * 9))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().err)
    lines = re.split(r"[\r\n]+", shown.strip())
    assert all("1234/5678 videos" in line for line in lines)
    assert all("12 failed" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_wait_is_named_until_there_is_something_to_count(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(progress_module, "_PATIENCE_S", 0.01)
    shown = ""
    with video_progress() as report:
        report(Progress.waiting("videos", LOOKING))
        end_s = time.monotonic() + 20
        while LOOKING not in shown and time.monotonic() < end_s:
            shown += capfd.readouterr().err
        report(Progress.waiting("videos", "the next wait"))
        shown += capfd.readouterr().err
        assert f"{LOOKING} …" in shown
        assert shown.endswith("the next wait …\r")  # at once, as a line is shown already
        report(Progress("videos", 1, 3))
    assert capfd.readouterr().err.startswith("\r\x1b[2K")


def test_short_waits_and_pipes_show_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = WaitLine()
    monkeypatch.setattr(progress_module, "_PATIENCE_S", 0.0)
    line.name("into a pipe")
    time.sleep(0.05)
    line.end()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(progress_module, "_PATIENCE_S", 60.0)
    line.name("a short wait")
    line.end()
    line.end()
    lines = ProgressLines(lambda: 0.0)
    lines.report(Progress.waiting("videos", LOOKING))
    lines.finish()
    assert capfd.readouterr() == ("", "")
