"""Report the progress of long work, and show it on standard error."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xclip_deploy.runtime.presentation import printable, time_text

if TYPE_CHECKING:
    from rich.progress import TextColumn

_RATE_OVER_S = 30.0
_LINE_EVERY_S = 10.0
_PATIENCE_S = 0.3
"""Seconds that a wait may take before it is named."""


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a piece of long work."""

    stage: str
    """Name of the work or of what is counted, such as ``videos``, ``captions``, ``exporting``."""
    done: int
    total: int | None
    """Number of items in all, or None where it is not known."""
    failed: int = 0
    """Number of the done items that failed."""
    step: str = ""
    """Name of the step under way, such as a graph; empty if steps have no names."""
    fraction: float = 0.0
    """Fraction of that step, 0 to 1; 1 only once it is done."""
    note: str = ""
    """Item under way, or what a wait is for, for people."""

    @classmethod
    def waiting(cls, stage: str, what: str) -> Progress:
        """Make the state before the first item: ``what`` is waited for, such as a library."""
        return cls(stage, 0, None, note=what)

    @property
    def is_waiting(self) -> bool:
        """Whether no item can be done yet, for what ``note`` says."""
        return self.total is None and self.done == 0


LOOKING = "looking for videos"
READING_FIRST = "starting the decoders and reading the first videos"
"""What reading many videos waits for before the first is done."""
ProgressFunction = Callable[[Progress], None]
"""Function that long work calls now and then, in its own thread."""


def ignore_progress(progress: Progress) -> None:
    """Show nothing."""
    del progress


class WaitLine:
    """Line on a terminal that names what is waited for, and for how many seconds so far.

    Short waits show nothing. Where standard error is no terminal, all do.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._what = ""
        self._since_s = 0.0
        self._is_shown = False

    def name(self, what: str) -> None:
        """Name the wait that begins now, such as "loading the model"."""
        if sys.stderr is None or not sys.stderr.isatty():
            return
        with self._lock:
            self._what, self._since_s = what, time.monotonic()
            if self._is_shown:
                self._draw()
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._show, name="wait line", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Erase the line, until the next wait is named."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        if self._is_shown:
            self._is_shown = False
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()

    def _show(self) -> None:
        patience_s = _PATIENCE_S
        while not self._ended.wait(patience_s):
            patience_s = 1.0
            with self._lock:
                self._is_shown = True
                self._draw()

    def _draw(self) -> None:
        seconds = round(time.monotonic() - self._since_s)
        # The cursor stands at the start, so that a warning takes the place of the line.
        sys.stderr.write(f"\r\x1b[2K{self._what} …{f' {seconds} s' if seconds else ''}\r")
        sys.stderr.flush()


def shrinking_text(template: str) -> TextColumn:
    """Make a column of rich's progress that gives up room before the numbers beside it do."""
    from rich.progress import Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Shrinking(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(template.format(task=task), no_wrap=True, overflow="ellipsis")

    return Shrinking(template, table_column=Column())  # rich narrows columns that may wrap


@contextmanager
def progress_function(wanted: bool | ProgressFunction) -> Iterator[ProgressFunction]:
    """Yield the function to call: the given one, one that draws for True, an idle one for False.

    Without standard error, as under pythonw and in some services, nothing is drawn.
    """
    if callable(wanted):
        yield wanted
    elif wanted and sys.stderr is not None:
        with video_progress() as draw:
            yield draw
    else:
        yield ignore_progress


@contextmanager
def video_progress() -> Iterator[ProgressFunction]:
    """Show videos done, failures, videos a second and time left.

    A terminal gets a bar, any other output a line every ten seconds at most. Yields the
    function to call after every video.
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
    from rich.table import Column

    columns = (
        TextColumn("indexing"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("videos"),
        TextColumn("{task.fields[pace]}"),
        TextColumn("{task.fields[failed]} failed"),
        shrinking_text("{task.fields[note]}"),
    )
    bars = Bars(*columns, console=Console(stderr=True))
    tasks: list[TaskID] = []
    pace = Pace()
    line = WaitLine()

    def report(progress: Progress) -> None:
        if progress.is_waiting:
            line.name(progress.note)
            return
        line.end()
        pace.note(progress.done)
        state: dict[str, Any] = {
            "completed": progress.done,
            "total": progress.total,
            "failed": progress.failed,
            "pace": pace.describe(_left(progress)),
            "note": printable(progress.note),
        }
        if tasks:
            bars.update(tasks[0], **state)
        else:  # with nothing to do, no bar appears
            tasks.append(bars.add_task("indexing", **state))
            bars.start()

    try:
        yield report
    finally:
        line.end()
        if tasks:
            bars.stop()


class Pace:
    """Speed of the last 30 seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._noted: deque[tuple[float, int]] = deque([(clock(), 0)])

    def note(self, done: int) -> None:
        """Note the number of items done now."""
        now = self._clock()
        # Ten notes a second suffice.
        if len(self._noted) > 1 and now - self._noted[-2][0] < 0.1:
            self._noted.pop()
        self._noted.append((now, done))
        while len(self._noted) > 2 and now - self._noted[1][0] > _RATE_OVER_S:
            self._noted.popleft()

    def describe(self, left: int) -> str:
        """Describe the videos a second and, where some are left, the time for those."""
        (start, before), (end, after) = self._noted[0], self._noted[-1]
        if end <= start or after <= before:
            return ""
        rate = (after - before) / (end - start)
        text = f"{rate:.1f} videos/s"
        if not left:
            return text
        return f"{text}, {time_text(left / rate)} left"


class ProgressLines:
    """Progress as lines, for log files."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pace = Pace(clock)
        self._last_s = clock()
        self._line = ""

    def report(self, progress: Progress) -> None:
        """Print the progress, unless a line was printed in the last ten seconds."""
        if progress.is_waiting:
            return
        self._pace.note(progress.done)
        pace = self._pace.describe(_left(progress))
        of_all = "" if progress.total is None else f"/{progress.total}"
        self._line = f"indexing {progress.done}{of_all} videos, " + (f"{pace}, " if pace else "")
        self._line += f"{progress.failed} failed"
        if progress.note:
            self._line += f", {printable(progress.note)}"
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
