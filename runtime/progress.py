"""How long work tells how far it is, and bars that show it on standard error."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_RATE_OVER_S = 30.0
_LINE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a piece of long work is."""

    stage: str
    """What is being done or counted: ``videos``, ``captions``, ``exporting`` and the like."""
    done: int
    total: int | None
    """None where it is not known."""
    failed: int = 0
    """How many of the done ones failed."""
    note: str = ""
    """What is under way just now, for people."""


ProgressFunction = Callable[[Progress], None]
"""Called now and then by long work, in the thread that does it."""


def ignore_progress(progress: Progress) -> None:
    """Show nothing."""
    del progress


@contextmanager
def progress_function(wanted: bool | ProgressFunction) -> Iterator[ProgressFunction]:
    """Yield the function to call: the one given, one that draws for True, none for False."""
    if callable(wanted):
        yield wanted
    elif wanted:
        with video_progress() as draw:
            yield draw
    else:
        yield ignore_progress


@contextmanager
def video_progress() -> Iterator[ProgressFunction]:
    """Show videos done, failures, videos a second and time left.

    On a terminal as a bar, else as a line every ten seconds at most. Yields the function to
    call after every video.
    """
    if sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        lines = ProgressLines()
        yield lines.report
        lines.finish()


@contextmanager
def _bar() -> Iterator[ProgressFunction]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("indexing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("videos"),
        TextColumn("{task.fields[pace]}"),
        TextColumn("{task.fields[failed]} failed"),
    )
    bars = Bars(*columns, console=Console(stderr=True))
    tasks: list[TaskID] = []
    pace = Pace()

    def report(progress: Progress) -> None:
        if not tasks:  # with nothing to do, no bar appears
            bars.start()
            tasks.append(bars.add_task("indexing", failed=0, pace=""))
        pace.note(progress.done)
        bars.update(
            tasks[0],
            completed=progress.done,
            total=progress.total,
            failed=progress.failed,
            pace=pace.describe(_left(progress)),
        )

    try:
        yield report
    finally:
        if tasks:
            bars.stop()


class Pace:
    """How fast it went lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._noted: deque[tuple[float, int]] = deque([(clock(), 0)])

    def note(self, done: int) -> None:
        """Note how many are done now."""
        now = self._clock()
        # A hundred notes a second would say no more than ten.
        if len(self._noted) > 1 and now - self._noted[-2][0] < 0.1:
            self._noted.pop()
        self._noted.append((now, done))
        while len(self._noted) > 2 and now - self._noted[1][0] > _RATE_OVER_S:
            self._noted.popleft()

    def describe(self, left: int) -> str:
        """Say how many videos a second and, where some are left, how long those will take."""
        (start, before), (end, after) = self._noted[0], self._noted[-1]
        if end <= start or after <= before:
            return ""
        rate = (after - before) / (end - start)
        text = f"{rate:.1f} videos/s"
        if not left:
            return text
        seconds = round(left / rate)
        hours, minutes = seconds // 3600, seconds // 60 % 60
        return f"{text}, {hours}:{minutes:02d}:{seconds % 60:02d} left"


class ProgressLines:
    """Progress for log files."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pace = Pace(clock)
        self._last_s = clock()
        self._line = ""

    def report(self, progress: Progress) -> None:
        """Print how far it is, unless a line was printed a moment ago."""
        self._pace.note(progress.done)
        pace = self._pace.describe(_left(progress))
        of_all = "" if progress.total is None else f"/{progress.total}"
        self._line = f"indexing {progress.done}{of_all} videos, " + (f"{pace}, " if pace else "")
        self._line += f"{progress.failed} failed"
        if self._clock() - self._last_s >= _LINE_EVERY_S:
            self.finish()

    def finish(self) -> None:
        """Print the last line, if it was not printed yet."""
        if self._line:
            sys.stderr.write(self._line + "\n")
            sys.stderr.flush()
            self._line = ""
            self._last_s = self._clock()


def _left(progress: Progress) -> int:
    return 0 if progress.total is None else progress.total - progress.done
