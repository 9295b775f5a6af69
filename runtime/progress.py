"""Progress bars, on standard error so that standard output stays a program's."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int, int], None]
"""Called with videos done, videos in all, and how many of the done ones failed."""

_RATE_OVER_S = 30.0
_LINE_EVERY_S = 10.0


@contextmanager
def video_progress(total: int) -> Iterator[Report]:
    """Show videos done, failures, videos a second and time left.

    On a terminal as a bar, else as a line every ten seconds at most. Yields the function to
    call after every video.
    """
    if sys.stderr.isatty():
        with _bar(total) as report:
            yield report
    else:
        lines = ProgressLines()
        yield lines.report
        lines.finish()


@contextmanager
def _bar(total: int) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("indexing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("videos"),
        TextColumn("{task.fields[pace]}"),
        TextColumn("{task.fields[failed]} failed"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("indexing", total=total, failed=0, pace="")
        pace = Pace()

        def report(done: int, total: int, failed: int) -> None:
            pace.note(done)
            bar.update(
                task, completed=done, total=total, failed=failed, pace=pace.describe(total - done)
            )

        yield report


class Pace:
    """How fast it went lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._noted: deque[tuple[float, int]] = deque([(clock(), 0)])

    def note(self, done: int) -> None:
        """So many are done now."""
        now = self._clock()
        # A hundred notes a second would say no more than ten.
        if len(self._noted) > 1 and now - self._noted[-2][0] < 0.1:
            self._noted.pop()
        self._noted.append((now, done))
        while len(self._noted) > 2 and now - self._noted[1][0] > _RATE_OVER_S:
            self._noted.popleft()

    def describe(self, left: int) -> str:
        """Videos a second and, where some are left, the time that they will take."""
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

    def report(self, done: int, total: int, failed: int) -> None:
        """Print where it is, unless that was done a moment ago."""
        self._pace.note(done)
        pace = self._pace.describe(total - done)
        self._line = f"indexing {done}/{total} videos, " + (f"{pace}, " if pace else "")
        self._line += f"{failed} failed"
        if self._clock() - self._last_s >= _LINE_EVERY_S:
            self.finish()

    def finish(self) -> None:
        """Print what was not."""
        if self._line:
            sys.stderr.write(self._line + "\n")
            sys.stderr.flush()
            self._line = ""
            self._last_s = self._clock()
