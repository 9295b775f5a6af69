"""Progress for people, on standard error: what is done, and what is waited for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xclip_deploy.cli.display import say
from xclip_deploy.runtime.progress import WaitLine, ignore_progress, shrinking_text

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, TaskID
    from rich.table import Column

    from xclip_deploy.runtime.progress import Progress, ProgressFunction

_DESCRIPTION = "{task.description}"
_LINE_EVERY_S = 10.0
"""Seconds between two lines of progress in a log file."""


@contextmanager
def waiting(what: str) -> Iterator[WaitLine]:
    """Name what is waited for, such as "loading the model", on a terminal alone.

    The line appears once the wait is felt, and is erased at the end. Yields it, so that a block
    can name its next wait.
    """
    line = WaitLine()
    line.name(what)
    try:
        yield line
    finally:
        line.end()


class _Display:
    """The wait line, and the bars that replace it once there is something to count."""

    def __init__(self, what: str) -> None:
        """Name the first wait. ``what``: "loading PyTorch" and the like."""
        self._line = WaitLine()
        self._line.name(what)
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def wait(self, what: str) -> None:
        """Leave the bars as they are, and name a wait below them."""
        self._stop()
        self._line.name(what)

    def update(
        self,
        name: str,
        label: str,
        columns: Callable[[], Sequence[ProgressColumn]],
        completed: float,
        total: float | None,
        phase: str = "",
    ) -> None:
        """Show the bar ``name`` with rich's ``columns``. ``phase``: a field for one of them."""
        self._line.end()
        if self._bars is None:
            from rich.console import Console
            from rich.progress import Progress as Bars

            self._bars = Bars(*columns(), console=Console(stderr=True))
            self._bars.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(label, total=total, phase=phase)
        self._bars.update(
            self._tasks[name], description=label, completed=completed, total=total, phase=phase
        )

    def end(self) -> None:
        """Erase the line, and leave the bars as they are."""
        self._line.end()
        self._stop()

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()


@contextmanager
def step_progress(first: str) -> Iterator[ProgressFunction]:
    """Show progress over named steps, as exports report them. ``first``: what is waited for.

    A terminal shows a bar with the step under way. Other outputs get a line every ten seconds at
    most, so that short work says nothing there.
    """
    if not sys.stderr.isatty():
        told_s = time.monotonic()

        def write(progress: Progress) -> None:
            nonlocal told_s
            now_s = time.monotonic()
            is_running = progress.total is None or progress.done < progress.total
            if progress.note and is_running and now_s - told_s >= _LINE_EVERY_S:
                told_s = now_s
                say(f"[{progress.done + 1}/{progress.total}] {progress.note}", err=True)

        yield write
        return

    def columns() -> Sequence[ProgressColumn]:
        from rich.progress import BarColumn, MofNCompleteColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        counts = MofNCompleteColumn(table_column=_fixed())
        return BarColumn(), counts, Elapsed(table_column=_fixed()), shrinking_text(_DESCRIPTION)

    def draw(progress: Progress) -> None:
        display.update("", progress.note, columns, progress.done, progress.total)

    with _displayed(first) as display:
        yield draw


@contextmanager
def counting_progress(first: str) -> Iterator[ProgressFunction]:
    """Show a bar for each stage, such as videos and captions, on a terminal alone.

    ``first``: what is waited for until then.
    """
    if not sys.stderr.isatty():
        yield ignore_progress
        return

    def columns() -> Sequence[ProgressColumn]:
        from rich.progress import BarColumn, MofNCompleteColumn
        from rich.progress import TimeRemainingColumn as Remaining

        counts = MofNCompleteColumn(table_column=_fixed())
        return shrinking_text(_DESCRIPTION), BarColumn(), counts, Remaining(table_column=_fixed())

    def draw(progress: Progress) -> None:
        if progress.is_waiting:
            display.wait(progress.note)
            return
        label = f"{progress.stage:<8}"
        display.update(progress.stage, label, columns, progress.done, progress.total)

    with _displayed(first) as display:
        yield draw


@contextmanager
def engine_progress() -> Iterator[ProgressFunction]:
    """Show a bar for each engine on a terminal, and a line for each finished one elsewhere."""
    started_s = time.monotonic()
    if not sys.stderr.isatty():

        def write(step: Progress) -> None:
            nonlocal started_s
            if step.fraction == 1:
                now_s = time.monotonic()
                label = f"[{step.done + 1}/{step.total}] {step.step}"
                say(f"{label}: {now_s - started_s:.1f} s", err=True)
                started_s = now_s

        yield write
        return

    def columns() -> Sequence[ProgressColumn]:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        return (
            TextColumn(_DESCRIPTION),
            BarColumn(),
            TaskProgressColumn(table_column=_fixed()),
            Elapsed(table_column=_fixed()),
            shrinking_text("{task.fields[phase]}"),
        )

    def draw(step: Progress) -> None:
        if step.is_waiting:
            display.wait(step.note)
            return
        display.update(step.step, f"{step.step:<13}", columns, step.fraction, 1.0, step.note)

    with _displayed("loading TensorRT") as display:
        yield draw


@contextmanager
def _displayed(first: str) -> Iterator[_Display]:
    display = _Display(first)
    try:
        yield display
    finally:
        display.end()


def _fixed() -> Column:
    """Return a column of rich's that keeps its width."""
    from rich.table import Column

    return Column(no_wrap=True)
