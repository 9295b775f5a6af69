"""Translation of filters into LanceDB's SQL."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xclip_deploy.runtime.gallery.conditions import (
    Column,
    Comparison,
    Condition,
    Constant,
    IsNull,
    IsTrue,
    Joined,
    Like,
    Membership,
    Not,
    Operand,
)
from xclip_deploy.runtime.gallery.records import MetadataValue, Rows

_IN_A_ROW = 16
_MOST_RANGES = 64
"""Most ranges of rows in one condition; LanceDB looks up more rows faster in a list."""


def to_sql(condition: Condition) -> str:
    """Return the SQL of a condition, every part in parentheses and every name quoted."""
    if isinstance(condition, Joined):
        return _joined(condition.word, [to_sql(part) for part in condition.parts])
    if isinstance(condition, Not):
        return f"(not {to_sql(condition.part)})"
    if isinstance(condition, Constant):
        return str(condition.value).lower()
    name = f"`{condition.column.name}`"
    if isinstance(condition, IsTrue):
        return name
    if isinstance(condition, IsNull):
        return f"({name} is null)"
    if isinstance(condition, Like):
        word = "ilike" if condition.ignore_case else "like"
        return f"({name} {word} {quoted(condition.pattern)})"
    if isinstance(condition, Membership):
        kind = _common(condition.column, *condition.values)
        listed = ", ".join(_operand(value, kind) for value in condition.values)
        return f"({_operand(condition.column, kind)} in ({listed}))"
    assert isinstance(condition, Comparison)
    kind = _common(condition.column, condition.other)
    left, right = (_operand(side, kind) for side in (condition.column, condition.other))
    return f"({left} {condition.sign} {right})"


def outside(rows: Rows, condition: str | None) -> str:
    """Add to a condition's SQL that a row is none of ``rows``, which ascend.

    The rows of a video follow each other, so that few ranges name many rows.
    """
    ends = np.flatnonzero(np.diff(rows) != 1)
    firsts = rows[np.concatenate([[0], ends + 1])].tolist()
    lasts = rows[np.concatenate([ends, [len(rows) - 1]])].tolist()
    if len(firsts) > _MOST_RANGES:
        parts = [f"_rowid not in ({', '.join(map(str, rows.tolist()))})"]
    else:
        pairs = zip(firsts, lasts, strict=True)
        parts = [f"(_rowid < {first} or _rowid > {last})" for first, last in pairs]
    return _joined("and", [*parts, *([] if condition is None else [condition])])


def named_sql(paths: Sequence[str], name: str | None) -> str:
    """Return the condition for first segments with one of ``paths``, or with a file name.

    Names with a line feed can match too much.
    """
    parts = [f"array_has(paths, {quoted(path)})" for path in paths]
    if name is not None:
        ending = f"%/{escaped(name)}"
        lines = "concat(array_to_string(paths, '\n'), '\n')"  # a path on each
        parts += [f"id like {quoted(ending)}", f"{lines} like {quoted(ending + chr(10) + '%')}"]
    return f"_segment = 0 and ({' or '.join(parts)})"


def escaped(text: str) -> str:
    """Escape a text, so that as an SQL pattern it matches itself."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def quoted(value: str) -> str:
    """Quote a text as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def _joined(word: str, parts: Sequence[str]) -> str:
    # LanceDB nests each part of a row one level deeper than the last. Pairs would need more
    # parentheses than LanceDB reads. Groups of 16 avoid both limits.
    if len(parts) > _IN_A_ROW:
        size = -(-len(parts) // _IN_A_ROW)
        starts = range(0, len(parts), size)
        parts = [_joined(word, parts[start : start + size]) for start in starts]
    return parts[0] if len(parts) == 1 else "(" + f" {word} ".join(parts) + ")"


def _common(*operands: Operand) -> type:
    """Return the common type of operands: LanceDB does not compare int with float."""
    kinds = [side.kind if isinstance(side, Column) else type(side) for side in operands]
    return float if float in kinds else kinds[0]


def _operand(operand: Operand, kind: type) -> str:
    if not isinstance(operand, Column):
        return _literal(operand, kind)
    name = f"`{operand.name}`"
    return f"cast({name} as double)" if kind is float and operand.kind is int else name


def _literal(value: MetadataValue, kind: type) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    return repr(float(value)) if kind is float else str(value)
