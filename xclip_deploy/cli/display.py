"""Tables and progress for people. Progress goes to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from xclip_deploy.runtime.manifest import ParityRecord


def print_json(content: object) -> None:
    """Print ``content`` as JSON for a program."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    """Print a table on standard output. ``right``: columns that align to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Into a file or pipe there is no width to fit: nothing is cut there.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, header in enumerate(headers):
        justify = "right" if number in right else "left"
        table.add_column(header, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        # As Text, in which brackets are no markup and colons no emoji.
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def print_parity(records: Sequence[ParityRecord]) -> None:
    """Print how far each output of each graph is from PyTorch."""
    rows = [
        (
            record.precision.value,
            record.graph.value,
            record.tensor,
            "" if record.min_cosine is None else f"{record.min_cosine:.7f}",
            f"{record.max_abs_error:.1e}",
            f"{record.tolerance:.1e}",
            "ok" if record.passed else "FAILED",
        )
        for record in records
    ]
    headers = ("precision", "graph", "output", "min cosine", "max error", "allowed", "")
    print_table(headers, rows, right=(3, 4, 5))


@contextmanager
def step_progress() -> Iterator[Callable[[int, int, str], None]]:
    """Progress over named steps, as exports and builds report them.

    A bar on a terminal; elsewhere a line for each finished step, with its seconds.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        columns = (BarColumn(), MofNCompleteColumn(), Elapsed(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("starting", total=None)

            def draw(done: int, total: int, label: str) -> None:
                bar.update(task, completed=done, total=total, description=label)

            yield draw
        return
    started_s = time.monotonic()
    running = ""

    def write(done: int, total: int, label: str) -> None:
        nonlocal started_s, running
        now_s = time.monotonic()
        if running:
            click.echo(f"[{done}/{total}] {running}: {now_s - started_s:.1f} s", err=True)
        started_s, running = now_s, label

    yield write
