"""The syntax tree of a filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from xclip_deploy.runtime.gallery.records import MetadataValue


@dataclass(frozen=True)
class Column:
    """A column of the gallery, in its own spelling."""

    name: str
    kind: type
    """Type of its values: bool, int, float or str."""


Operand: TypeAlias = Column | MetadataValue


@dataclass(frozen=True)
class Constant:
    """A condition that is always or never true."""

    value: bool


@dataclass(frozen=True)
class IsTrue:
    """A column of truth values, as a condition."""

    column: Column


@dataclass(frozen=True)
class IsNull:
    """A test that a video has no value in a column."""

    column: Column


@dataclass(frozen=True)
class Comparison:
    """A comparison of a column with a value or another column; ints compare with floats."""

    column: Column
    sign: str
    """Operator: one of ``= <> < <= > >=``."""
    other: Operand


@dataclass(frozen=True)
class Membership:
    """A test that a column's value is one of several."""

    column: Column
    values: tuple[MetadataValue, ...]


@dataclass(frozen=True)
class Like:
    """A match of a text against an SQL pattern; a backslash escapes ``%``, ``_`` and itself."""

    column: Column
    pattern: str
    ignore_case: bool


@dataclass(frozen=True)
class Not:
    """A negation."""

    part: Condition


@dataclass(frozen=True)
class Joined:
    """Two or more conditions, joined by one word."""

    word: str
    """``and`` or ``or``."""
    parts: tuple[Condition, ...]


Condition: TypeAlias = "Constant | IsTrue | IsNull | Comparison | Membership | Like | Not | Joined"
"""A condition is true, false or, for a missing value, null. Videos match if it is true."""
