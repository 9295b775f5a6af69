"""Read comma-separated annotations with a header."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import read_text


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of a CSV file whose first row names the columns.

    Fields may be quoted with ``"``. Blank rows are passed over.

    Args:
        path: The file, in UTF-8.
        columns: Columns that must exist. The file may have others.

    Returns:
        For each row, the number of the line that ends it and its fields by column.

    Raises:
        AnnotationError: The file is unreadable, columns are missing or named twice, a row has
            more or fewer fields than the header, or quotes do not match.
    """
    # newline="" leaves line ends inside quoted fields to the parser.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        for fields in reader:
            if not fields:
                continue
            if not header:
                header = [name.strip() for name in fields]
                _check_header(path, header, columns)
            elif len(fields) != len(header):
                raise AnnotationError(
                    f"{path}:{reader.line_num}: {len(fields)} fields; expected {len(header)} "
                    f"({', '.join(header)}); a field with commas needs double quotes"
                )
            else:
                rows.append((reader.line_num, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise AnnotationError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error
    if not rows:
        raise AnnotationError(f"{path}: no rows below the header; expected at least one")
    return rows


def _check_header(path: Path, header: list[str], columns: tuple[str, ...]) -> None:
    expected = ", ".join(columns)
    missing = [name for name in columns if name not in header]
    if missing:
        raise AnnotationError(
            f"{path}: the columns are {', '.join(header)}; expected {expected} "
            "in the first row, separated by commas"
        )
    # Columns without a name are row indexes, as pandas writes them.
    repeated = [name for name in header if name and header.count(name) > 1]
    if repeated:
        raise AnnotationError(f"{path}: column {repeated[0]} occurs twice; expected it once")
