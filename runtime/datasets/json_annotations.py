"""Read JSON annotations and refuse malformed ones."""

from __future__ import annotations

import json
from pathlib import Path

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import read_lines, read_text


class _DuplicateKeyError(ValueError):
    """Error of an object that has a key twice; json alone would keep the last one."""


def read_json(path: Path) -> object:
    """Read one JSON value.

    Raises:
        AnnotationError: The file is unreadable, no UTF-8 or no JSON, or an object has a key
            twice.
    """
    return _parse(read_text(path), str(path))


def read_json_lines(path: Path) -> list[tuple[int, dict[str, object]]]:
    """Read one JSON object a line, with its line number. Blank lines are passed over.

    Raises:
        AnnotationError: ``read_json`` refuses the file, a line is no object, or all are blank.
    """
    objects = []
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        objects.append((number, expect_object(_parse(line, place), place)))
    if not objects:
        raise AnnotationError(f"{path}: no line holds anything; expected a JSON object a line")
    return objects


def expect_object(value: object, place: str) -> dict[str, object]:
    """Return a value that must be an object.

    Args:
        value: Parsed JSON.
        place: Its place in the file. Messages name it.

    Raises:
        AnnotationError: The value is no object.
    """
    if not isinstance(value, dict):
        raise AnnotationError(f"{place}: {_kind(value)}; expected an object")
    return value


def expect_list(value: object, place: str) -> list[object]:
    """Return a value that must be a list. Arguments and errors as ``expect_object``."""
    if not isinstance(value, list):
        raise AnnotationError(f"{place}: {_kind(value)}; expected a list")
    return value


def expect_text(value: object, place: str) -> str:
    """Return a value that must be text. Arguments and errors as ``expect_object``."""
    if not isinstance(value, str):
        raise AnnotationError(f"{place}: {_kind(value)}; expected text")
    return value


def field(entry: dict[str, object], name: str, place: str) -> object:
    """Return a field of an object.

    Raises:
        AnnotationError: The object has no field of this name.
    """
    if name not in entry:
        found = ", ".join(list(entry)[:10]) or "nothing"
        raise AnnotationError(f"{place}: holds {found}; expected {name!r}")
    return entry[name]


def _parse(text: str, place: str) -> object:
    try:
        value: object = json.loads(text, object_pairs_hook=_unique_keys)
    except _DuplicateKeyError as error:
        raise AnnotationError(f"{place}: {error}; expected each key once") from error
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        raise AnnotationError(
            f"{place}: not valid JSON: {error.msg}{line}, column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:  # absurd numbers, absurd nesting
        raise AnnotationError(f"{place}: not usable JSON: {error}") from error
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entry: dict[str, object] = {}
    for key, value in pairs:
        if key in entry:
            raise _DuplicateKeyError(f"key {key!r} occurs twice in one object")
        entry[key] = value
    return entry


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return "null" if value is None else kinds.get(type(value), "a number")
