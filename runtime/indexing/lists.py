"""Read lists of videos: text, CSV and JSON Lines."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from xclip_deploy.errors import InvalidArgumentError, MetadataError
from xclip_deploy.runtime.files import require_regular_file
from xclip_deploy.runtime.gallery.records import MetadataValue, check_metadata
from xclip_deploy.runtime.indexing.records import SourceVideo

_FILE_COLUMNS = ("file", "path")
# Leading zeros and plus signs belong to codes, such as 007, which stay text.
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_TRUTH = {"true": True, "false": False}


def read_list(path: Path) -> Iterator[tuple[int, SourceVideo]]:
    """Yield the videos that a list names, each with its line, counted from 1.

    Raises InvalidArgumentError, with file and line, for a malformed list.
    """
    readers = {".txt": _read_text, ".csv": _read_csv, ".jsonl": _read_json_lines}
    with _reading(path):
        require_regular_file(path, "a list of videos")
        yield from readers[path.suffix.lower()](path)


def _read_text(path: Path) -> Iterator[tuple[int, SourceVideo]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line, text in enumerate(file, start=1):
            # Only line ends are stripped: a name can begin or end with a space.
            name = text.rstrip("\r\n")
            if name.strip() and not name.startswith("#"):
                yield line, SourceVideo(_located(path, line, name))


def _read_csv(path: Path) -> Iterator[tuple[int, SourceVideo]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, None)
            columns = _columns(path, header or [])
            cells: list[tuple[int, list[str]]] = []
            for row in rows:
                if not row:  # a blank line
                    continue
                if len(row) != len(columns):
                    _refuse(path, rows.line_num, f"{len(row)} cells", f"{len(columns)}")
                cells.append((rows.line_num, row))
        except csv.Error as error:
            _refuse(path, rows.line_num, str(error), "CSV as RFC 4180 has it")
    file_column = next(n for n, name in enumerate(columns) if name in _FILE_COLUMNS)
    id_column = columns.index("id") if "id" in columns else None
    fields = {n: name for n, name in enumerate(columns) if n not in (file_column, id_column)}
    kinds = {n: _kind_of([row[n] for _, row in cells]) for n in fields}
    for line, row in cells:
        metadata = {name: _typed(row[n], kinds[n]) for n, name in fields.items() if row[n] != ""}
        name = None if id_column is None else row[id_column] or None
        yield line, _source(path, line, row[file_column], name, metadata if fields else None)


def _columns(path: Path, header: list[str]) -> list[str]:
    columns = [name.strip() for name in header]
    if sum(name in _FILE_COLUMNS for name in columns) != 1:
        _refuse(path, 1, f"the columns {', '.join(columns) or 'none'}", "one named file or path")
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        _refuse(path, 1, f"two columns named {twice[0]!r}", "each once")
    return columns


def _read_json_lines(path: Path) -> Iterator[tuple[int, SourceVideo]]:
    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                content = json.loads(text, parse_constant=refuse_constant)
            except (ValueError, RecursionError) as error:
                _refuse(path, line, str(error), "a JSON object")
            names = [
                name for name in _FILE_COLUMNS if isinstance(content, dict) and name in content
            ]
            if len(names) != 1 or not isinstance(content[names[0]], str):
                _refuse(path, line, f"{text.strip()[:80]!r}", "an object with a text file or path")
            name = content.get("id")
            if name is not None and not isinstance(name, str):
                _refuse(path, line, f"the id {name!r}", "a text")
            fields = {key: value for key, value in content.items() if key not in ("id", names[0])}
            metadata = {key: value for key, value in fields.items() if value is not None}
            yield line, _source(path, line, content[names[0]], name, metadata if fields else None)


def _source(
    path: Path,
    line: int,
    file: str,
    name: str | None,
    metadata: Mapping[str, Any] | None,
) -> SourceVideo:
    try:
        check_metadata(metadata or {})
        (name or "").encode()
    except (MetadataError, UnicodeEncodeError) as error:
        raise InvalidArgumentError(f"{path} line {line}: {error}") from error
    return SourceVideo(_located(path, line, file), name, metadata)


def _located(path: Path, line: int, name: str) -> str:
    if not name:
        _refuse(path, line, "no file name", "one")
    if "\0" in name:
        _refuse(path, line, f"the file name {name!r}", "one without a zero byte")
    located = path.parent / name
    return str(located.resolve() if ".." in located.parts else located)


def _kind_of(cells: list[str]) -> type:
    """Return the type that all cells of a column have, apart from empty ones."""
    given = [cell for cell in cells if cell != ""]
    if all(cell.lower() in _TRUTH for cell in given):
        return bool
    if all(_INTEGER.fullmatch(cell) for cell in given):
        return int
    # A number too large for a float would become infinity.
    if all(_NUMBER.fullmatch(cell) and abs(float(cell)) < float("inf") for cell in given):
        return float
    return str


def _typed(cell: str, kind: type) -> MetadataValue:
    if kind is bool:
        return _TRUTH[cell.lower()]
    typed: MetadataValue = kind(cell)
    return typed


def _refuse(path: Path, line: int, found: str, expected: str) -> NoReturn:
    raise InvalidArgumentError(f"{path} line {line}: found {found}, expected {expected}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        line = _line_of_bad_text(path)
        raise InvalidArgumentError(
            f"{path} line {line}: found bytes that are no UTF-8 text; save the list as UTF-8"
        ) from error
    except OSError as error:
        raise InvalidArgumentError(
            f"{path} cannot be read: {error.strerror}; expected a list of videos"
        ) from error


def _line_of_bad_text(path: Path) -> int:
    with path.open("rb") as file:
        for line, content in enumerate(file, start=1):
            if not _is_text(content):
                return line
    return 1


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
