"""Tables that fit the terminal. A pipe or file gets every cell whole."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

_GAP = 2
"""Spaces between two columns."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    header: str
    right: bool = False
    """Whether cells align to the right, as numbers do."""
    least: int | None = None
    """Least width to which cells are cut, in the middle; None cuts nothing."""
    wide: bool = False
    """Whether only a wide table shows the column."""


def print_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, wide: bool = False
) -> None:
    """Print a table on standard output, every cell escaped.

    A column without a filled cell is left out. On a terminal, columns that may be cut give way
    until a line fits. ``wide``: whether to show the columns for wide tables too.
    """
    from xclip_deploy.runtime.presentation import printable

    shown = [
        number
        for number, column in enumerate(columns)
        if (wide or not column.wide) and any(row[number] for row in rows)
    ]
    cells = [[printable(row[number]) for number in shown] for row in rows]
    chosen = [columns[number] for number in shown]
    if not chosen:
        return
    widths = fitted_widths(chosen, cells, terminal_width())
    line = _line([column.header for column in chosen], chosen, widths)
    is_styled = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    echo(click.style(line, bold=True) if is_styled else line)
    echo(_rule() * (sum(widths) + _GAP * (len(widths) - 1)))
    for row in cells:
        echo(_line(row, chosen, widths))


def echo(text: str, *, err: bool = False) -> None:
    """Print a text that is escaped already. ``err``: whether to take standard error."""
    # Without a file, click would write UTF-8 to an ASCII stream.
    click.echo(text, file=sys.stderr if err else sys.stdout)


def fitted_widths(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None
) -> list[int]:
    """Return the width of each column, in columns of a terminal.

    ``width``: of the terminal; None cuts nothing. The widest column that may be cut gives way
    first.
    """
    from rich.cells import cell_len

    widths = [
        max(map(cell_len, (column.header, *(row[number] for row in rows))))
        for number, column in enumerate(columns)
    ]
    if width is None:
        return widths
    least = [
        have if column.least is None else min(have, max(column.least, cell_len(column.header)))
        for have, column in zip(widths, columns, strict=True)
    ]
    room = width - _GAP * (len(widths) - 1)
    while sum(widths) > room:
        number = max(range(len(widths)), key=lambda n: (widths[n] > least[n], widths[n]))
        if widths[number] <= least[number]:
            break  # the terminal is narrower than any choice
        widths[number] -= 1
    return widths


def terminal_width() -> int | None:
    """Return the columns of the terminal at standard output; None for a pipe or file.

    ``COLUMNS`` overrides what the terminal says.
    """
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


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


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    from rich.cells import cell_len

    parts = []
    for cell, column, width in zip(cells, columns, widths, strict=True):
        text = shortened(cell, width)
        space = " " * (width - cell_len(text))
        parts.append(space + text if column.right else text + space)
    return (" " * _GAP).join(parts).rstrip()


def _rule() -> str:
    """Return the character of a rule that the encoding of standard output has."""
    try:
        "─".encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "-"
    return "─"
