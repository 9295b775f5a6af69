"""Reading JSON annotations, refusing what is not as it should be."""

from __future__ import annotations

import json
from pathlib import Path

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import read_lines, read_text


class _DuplicateKeyError(ValueError):
    """An object has a key twice, of which json would keep the last."""


def read_json(path: Path) -> object:
    """Read one JSON value.

    Raises:
        AnnotationError: unreadable, not UTF-8, not JSON, or an object has a key twice.
    """
    return _parse(read_text(path), str(path))


def read_json_lines(path: Path) -> list[tuple[int, dict[str, object]]]:
    """Read one JSON object a line, with the numbers of the lines; blank ones are passed over.

    Raises:
        AnnotationError: as ``read_json``, or a line is no object, or there is none.
    """
    objects = []
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        objects.append((number, expect_object(_parse(line, place), place)))
    if not objects:
        raise AnnotationError(f"{path}: no line holds anything; expected a JSON object a line")
    return objects


def expect_object(value: object, place: str) -> dict[str, object]:
    """Take a value for an object.

    Args:
        value: Parsed JSON.
        place: Where it stands, for messages.

    Raises:
        AnnotationError: it is something else.
    """
    if not isinstance(value, dict):
        raise AnnotationError(f"{place}: {_kind(value)}; expected an object")
    return value


def expect_list(value: object, place: str) -> list[object]:
    """Take a value for a list; as ``expect_object``."""
    if not isinstance(value, list):
        raise AnnotationError(f"{place}: {_kind(value)}; expected a list")
    return value


def expect_text(value: object, place: str) -> str:
    """Take a value for a text; as ``expect_object``."""
    if not isinstance(value, str):
        raise AnnotationError(f"{place}: {_kind(value)}; expected text")
    return value


def field(entry: dict[str, object], name: str, place: str) -> object:
    """Take a field of an object.

    Raises:
        AnnotationError: there is none of this name.
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
