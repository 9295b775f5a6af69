"""What a filter says, as a tree of conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from xclip_deploy.runtime.gallery.records import MetadataValue


@dataclass(frozen=True)
class Column:
    """A column of the gallery, in its own spelling."""

    name: str
    kind: type
    """bool, int, float or str."""


Operand: TypeAlias = Column | MetadataValue


@dataclass(frozen=True)
class Constant:
    """Always or never true."""

    value: bool


@dataclass(frozen=True)
class IsTrue:
    """A column of truth values."""

    column: Column


@dataclass(frozen=True)
class IsNull:
    """Whether a video has no such value."""

    column: Column


@dataclass(frozen=True)
class Comparison:
    """A column beside a value or another column of its kind; numbers are one kind."""

    column: Column
    sign: str
    """One of ``= <> < <= > >=``."""
    other: Operand


@dataclass(frozen=True)
class Membership:
    """Whether a column's value is one of several."""

    column: Column
    values: tuple[MetadataValue, ...]


@dataclass(frozen=True)
class Like:
    """Whether a text is as a pattern of SQL says, with backslashes before what is meant as is."""

    column: Column
    pattern: str
    ignore_case: bool


@dataclass(frozen=True)
class Not:
    """The contrary."""

    part: Condition


@dataclass(frozen=True)
class Joined:
    """Several conditions, two at least."""

    word: str
    """``and`` or ``or``."""
    parts: tuple[Condition, ...]


Condition: TypeAlias = "Constant | IsTrue | IsNull | Comparison | Membership | Like | Not | Joined"
"""True, false or, where a value is missing, neither; a filter lets through what it is true for."""
