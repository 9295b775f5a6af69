"""Tables, texts and progress bars for people. Progress goes to standard error."""

from __future__ import annotations

import codecs
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from xclip_deploy.runtime.manifest import Manifest, ParityRecord
    from xclip_deploy.runtime.progress import Progress, ProgressFunction
    from xclip_deploy.runtime.retriever import Retriever


MAX_LINE = 1000
"""Longest line of a message, in characters."""


def say(*lines: str, err: bool = False) -> None:
    """Print lines for people, escaped, each of 1,000 characters at most.

    Everything that the command line prints goes through this function, ``print_table``,
    ``print_fields`` or ``print_json``, which escape. ``err``: whether to take standard error.
    """
    from xclip_deploy.runtime.presentation import printable

    _echo("\n".join(shortened(printable(line), MAX_LINE) for line in lines), err=err)


def print_fields(rows: Iterable[tuple[str, str]], width: int) -> None:
    """Print a line for each name and value, escaped. ``width``: columns of the names."""
    from xclip_deploy.runtime.presentation import printable

    for name, value in rows:
        _echo(f"{printable(name) + ':':<{width}}{printable(value)}")


def print_json(content: object) -> None:
    """Print ``content`` as JSON on standard output."""
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
    _echo(_json_text(content, ascii_only=not encoding.startswith("utf")))


def _echo(text: str, *, err: bool = False) -> None:
    # Without a file, click would write UTF-8 to an ASCII stream.
    click.echo(text, file=sys.stderr if err else sys.stdout)


def _json_text(content: object, *, ascii_only: bool = False) -> str:
    from xclip_deploy.runtime.presentation import UNPRINTABLE

    text = json.dumps(content, indent=2, ensure_ascii=ascii_only)
    # The only newlines are those of the indentation.
    return "\n".join(
        UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n")
    )


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as JSON, whole or not at all. Raises InvalidArgumentError."""
    from xclip_deploy.errors import InvalidArgumentError
    from xclip_deploy.runtime.files import replace_text

    try:
        replace_text(path, _json_text(content) + "\n")
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be written: {error.strerror}") from error


def warn_of_cuts(retriever: Retriever, what: str, texts: Sequence[str]) -> None:
    """Say on standard error which texts are longer than the model reads. ``what``: names one."""
    max_words = retriever.model.config.max_words
    for text, cut in zip(texts, retriever.model.count_cut(texts), strict=True):
        if cut:
            # Without the start and end token, which nobody typed.
            say(
                f"warning: {what} {' '.join(text.split())[:40]!r}… is longer than the "
                f"{max_words - 2} tokens that the model reads; its last {cut} were not read",
                err=True,
            )


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    """Print a table on standard output. ``right``: columns that align to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from xclip_deploy.runtime.presentation import printable

    # A file or pipe has no width to fit, so nothing is cut there.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, header in enumerate(headers):
        justify = "right" if number in right else "left"
        table.add_column(header, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        # Text takes brackets and colons literally; a str could hold markup and emoji.
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def name_of(video_id: str) -> str:
    """Return an id for people: a path below the current directory, relative to it."""
    try:
        return str(Path(video_id).relative_to(Path.cwd()))
    except ValueError:
        return video_id


def shortened(text: str, width: int) -> str:
    """Return a text in at most ``width`` columns of a terminal, cut in the middle."""
    if len(text) <= width // 2:  # no character takes more than two columns
        return text
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    start, end = text[: (width - 1) // 2], text[len(text) - width // 2 :]
    while cell_len(f"{start}…{end}") > width:  # some characters take two columns
        start, end = (start[:-1], end) if cell_len(start) > cell_len(end) else (start, end[1:])
    return f"{start}…{end}"


def print_parity(records: Sequence[ParityRecord]) -> None:
    """Print how far each output of each graph is from PyTorch.

    The column "allowed" bounds the largest error of embeddings, and the RMS error of scores.
    """
    rows = [
        (
            record.precision.value,
            record.graph.value,
            record.tensor,
            "" if record.min_cosine is None else f"{record.min_cosine:.7f}",
            f"{record.max_abs_error:.1e}",
            "" if record.rms_error is None else f"{record.rms_error:.1e}",
            f"{record.tolerance:.1e}",
            "ok" if record.passed else "FAILED",
        )
        for record in records
    ]
    headers = ("precision", "graph", "output", "min cosine", "max error", "RMS", "allowed", "")
    print_table(headers, rows, right=(3, 4, 5, 6))
    rounded = dict.fromkeys(
        record.precision.value for record in records if record.method.value == "rounded"
    )
    if rounded:
        say(
            f"{', '.join(rounded)}: ONNX Runtime cannot run these graphs; they were computed in "
            "FP32, with each result rounded to the precision"
        )


def print_graph_sizes(manifest: Manifest) -> None:
    """Print the size of each graph in each precision, with its external weights.

    The halves of ``video_encoder`` share its weights and have no lines of their own.
    """
    rows = []
    for graph in next(iter(manifest.graphs.values())):
        whole = manifest.graph_bytes(graph, next(iter(manifest.graphs)))
        cells = []
        for precision in manifest.graphs:
            size = manifest.graph_bytes(graph, precision)
            share = f"{size / whole:.0%}"
            # A scorer computes in FP32 in every precision, so its size hardly differs.
            note = "" if share == "100%" else f" ({share})"
            cells.append((f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB") + note)
        rows.append((graph.value, *cells))
    headers = ("size of", *(precision.value for precision in manifest.graphs))
    print_table(headers, rows, right=range(1, len(headers)))


@contextmanager
def step_progress() -> Iterator[ProgressFunction]:
    """Show progress over named steps, as exports and builds report them.

    A terminal shows a bar. Other outputs get a line for each finished step, with its seconds.
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
    started_s = time.monotonic()
    running = ""

    def write(progress: Progress) -> None:
        nonlocal started_s, running
        now_s = time.monotonic()
        if running:
            place = f"[{progress.done}/{progress.total}]"
            say(f"{place} {running}: {now_s - started_s:.1f} s", err=True)
        started_s, running = now_s, progress.note

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
