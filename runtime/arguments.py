"""Check arguments: every public function refuses a wrong one in one line.

Each check returns the value in the type that the code works with, or raises
InvalidArgumentError.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from os import PathLike, fsencode, fspath
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

import numpy as np

from xclip_deploy.errors import InvalidArgumentError

PathName: TypeAlias = str | PathLike[str]
Choice = TypeVar("Choice", bound=Enum)

_MAX_NAME_BYTES = 255
MAX_THREADS = 4096
"""Largest number of threads or processes. More would only take memory."""


def as_path(name: str, value: object) -> Path:
    """Accept a path: a text or ``os.PathLike``, not empty."""
    if not isinstance(value, (str, PathLike)):
        raise _wrong(name, value, "a path (str or os.PathLike)")
    text = fspath(value)
    if not isinstance(text, str):
        raise _wrong(name, value, "a path as text, not bytes")
    if not text or "\0" in text:
        # Path("") is the current folder. An empty text must not come to mean that.
        raise _wrong(name, value, "a path that is not empty and holds no zero byte")
    try:
        longest = max(len(part) for part in fsencode(text).split(b"/"))
    except UnicodeEncodeError as error:
        raise _wrong(name, value, "a path of characters") from error
    if longest > _MAX_NAME_BYTES:
        raise _wrong(name, value, f"a path whose names have {_MAX_NAME_BYTES} bytes at most")
    return Path(text)


def as_paths(name: str, value: object) -> list[Path]:
    """Accept one path, or several in any iterable."""
    if isinstance(value, (str, PathLike)):
        return [as_path(name, value)]
    return [as_path(name, each) for each in _members(name, value, "a path or several")]


def as_text(name: str, value: object) -> str:
    """Accept a text."""
    if not isinstance(value, str):
        raise _wrong(name, value, "a text (str)")
    return value


def as_texts(name: str, value: object) -> list[str]:
    """Accept several texts: any iterable except a text itself."""
    expected = "several texts, such as a list of str"
    return [as_text(name, each) for each in _members(name, value, expected)]


def as_sequence(name: str, value: object, what: str) -> Sequence[Any]:
    """Accept any iterable except a text, as a list. The message names its items ``what``."""
    return list(as_iterable(name, value, what))


def as_iterable(name: str, value: object, what: str) -> Iterable[Any]:
    """Accept any iterable except a text, without reading it. It may be too long to keep."""
    return _members(name, value, f"several {what}, such as a list")


def as_whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """Accept a whole number, NumPy's too, within bounds."""
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        expected = f"a whole number of at least {least}"
        raise _wrong(name, value, expected if most is None else f"{expected}, at most {most}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def as_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """Accept a finite number, NumPy's too, within bounds."""
    is_number = isinstance(value, (int, float, np.integer, np.floating))
    number = math.nan
    if is_number and not isinstance(value, bool):
        try:
            number = float(value)  # type: ignore[arg-type]
        except OverflowError:
            number = math.inf
    if not (math.isfinite(number) and least <= number <= most):
        bounds = [f"from {least:g}"] * (least > -math.inf) + [f"to {most:g}"] * (most < math.inf)
        raise _wrong(name, value, " ".join(["a finite number", *bounds]))
    return number


def as_truth(name: str, value: object) -> bool:
    """Accept True or False, NumPy's too."""
    if not isinstance(value, (bool, np.bool_)):
        raise _wrong(name, value, "True or False")
    return bool(value)


def as_choice(name: str, value: object, literal: Any) -> Any:  # noqa: ANN401 - a Literal
    """Accept one of the names of a ``Literal``."""
    names = get_args(literal)
    if not isinstance(value, str) or value not in names:
        raise _wrong(name, value, f"one of {', '.join(map(repr, names))}")
    return value


def as_instance(name: str, value: object, kind: type | tuple[type, ...], what: str) -> Any:  # noqa: ANN401
    """Accept an object of a class, which the message names ``what``."""
    if not isinstance(value, kind):
        raise _wrong(name, value, what)
    return value


def as_member(name: str, value: object, choices: type[Choice]) -> Choice:
    """Accept a member of an enumeration of texts, or its text."""
    if isinstance(value, str):
        for member in choices:
            if member.value == value:
                return member
    raise _wrong(name, value, f"one of {', '.join(repr(member.value) for member in choices)}")


def as_share(name: str, value: object) -> float:
    """Accept a number from 0 to 1."""
    return as_number(name, value, 0, 1)


def as_array(
    name: str,
    value: object,
    dtype: Any,  # noqa: ANN401 - a dtype or a kind of them, such as np.integer
    shape: tuple[int | None, ...],
    expected: str,
) -> None:
    """Check an array's type and shape. A None in ``shape`` allows any length."""
    is_fit = (
        isinstance(value, np.ndarray)
        and np.issubdtype(value.dtype, dtype)
        and value.ndim == len(shape)
        and all(wanted in (None, found) for wanted, found in zip(shape, value.shape, strict=True))
    )
    if not is_fit:
        raise _wrong(name, value, expected)


def as_callback(name: str, value: object) -> None:
    """Check a callback: a function or None."""
    if value is not None and not callable(value):
        raise _wrong(name, value, "a function or None")


def _members(name: str, value: object, expected: str) -> Iterable[Any]:
    """Accept an iterable that is no text, no bytes and no mapping."""
    is_array = isinstance(value, np.ndarray) and not value.ndim  # it has __iter__, which raises
    is_fit = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
    if is_array or not is_fit:
        raise _wrong(name, value, expected)
    return value  # type: ignore[return-value]


def _wrong(name: str, value: object, expected: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name} is {shown(value)}; expected {expected}")


def shown(value: object) -> str:
    """Show a value in a message: its type, and a short value as it is written."""
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {list(value.shape)}"
    if value is None:
        return "None"
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a stranger's __repr__
        text = ""
    kind = type(value).__name__
    return f"{text} ({kind})" if 0 < len(text) <= 80 and "\n" not in text else f"a {kind}"
