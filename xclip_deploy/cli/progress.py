"""Progress for people, on standard error: what is done, and what is waited for."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xclip_deploy.cli.display import say

if TYPE_CHECKING:
    from xclip_deploy.runtime.progress import Progress, ProgressFunction

_PATIENCE_S = 1.0
"""Seconds that a wait may take before it is named."""
_LINE_EVERY_S = 10.0
"""Seconds between two lines of progress in a log file."""


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Name what is waited for, such as "loading the model", if it takes more than a second.

    Only a terminal gets the line, which is erased at the end.
    """
    if not sys.stderr.isatty():
        yield
        return
    shown = threading.Event()

    def show() -> None:
        shown.set()
        sys.stderr.write(f"{what} …\r")
        sys.stderr.flush()

    timer = threading.Timer(_PATIENCE_S, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it may be writing
        if shown.is_set():
            sys.stderr.write("\x1b[2K\r")
            sys.stderr.flush()


@contextmanager
def step_progress() -> Iterator[ProgressFunction]:
    """Show progress over named steps, as exports report them.

    A terminal shows a bar with the step under way. Other outputs get a line every ten seconds at
    most, so that short work says nothing there.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.progress import TimeElapsedColumn as Elapsed

        columns = (BarColumn(), MofNCompleteColumn(), Elapsed(), TextColumn("{task.description}"))
        with Bars(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("starting", total=None)

            def draw(progress: Progress) -> None:
                bar.update(
                    task,
                    completed=progress.done,
                    total=progress.total,
                    description=progress.note,
                )

            yield draw
        return
    told_s = time.monotonic()

    def write(progress: Progress) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        is_running = progress.total is None or progress.done < progress.total
        if progress.note and is_running and now_s - told_s >= _LINE_EVERY_S:
            told_s = now_s
            say(f"[{progress.done + 1}/{progress.total}] {progress.note}", err=True)

    yield write


@contextmanager
def encoding_progress() -> Iterator[ProgressFunction]:
    """Show a bar for videos and one for captions on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        from xclip_deploy.runtime.progress import ignore_progress

        yield ignore_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks = {what: bars.add_task(what, total=None) for what in ("videos", "captions")}

        def draw(progress: Progress) -> None:
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total)

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
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.progress import TimeElapsedColumn as Elapsed

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        Elapsed(),
        TextColumn("{task.fields[phase]}", style="dim"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def draw(step: Progress) -> None:
            name = step.step
            if name not in tasks:
                tasks[name] = bars.add_task(f"{name:<13}", total=1.0, phase="")
            bars.update(tasks[name], completed=step.fraction, phase=step.note)

        yield draw
