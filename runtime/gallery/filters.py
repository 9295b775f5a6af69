"""Filters over metadata: ``duration_s < 30 and source = 'cam1'``.

The language is a subset of SQL's conditions. This module parses it, not the database. So every
store gives the same answers, and no filter makes a database crash or run for hours::

    condition   column, compared by = <> < <= > >= with a value or another column
                column [not] in (value, ...)
                column [not] between value and value
                column [not] like 'pattern'     % any text, _ one character; ilike: any case
                column is [not] null
                column                          of truth values; also true, false
    joined by   not, and, or, in this order, and parentheses
    value       'text' ('' inside for a quotation mark), 12, 1.5e3, true, false
    column      name, in any case; "name" or `name` where it is also a word of the language
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from xclip_deploy.errors import InvalidArgumentError
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
from xclip_deploy.runtime.gallery.records import TYPE_NAMES, MetadataValue

MAX_FILTER_CHARACTERS = 65_536
MAX_CONDITIONS = 1000
_MAX_DEPTH = 12
"""Deepest nesting of parentheses; LanceDB's own limit is 50 levels."""
OWN_COLUMNS: Mapping[str, type] = {
    "id": str,
    "fingerprint": str,
    "duration_s": float,
    "num_frames": int,
    "_segment": int,
    "_num_segments": int,
    "_start_s": float,
    "_end_s": float,
}
"""Columns of every gallery that a filter can name."""
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')
    |(?P<quoted>"[^"]+"|`[^`]+`)
    |(?P<number>-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w))
    |(?P<word>[A-Za-z_]\w*)
    |(?P<sign><=|>=|<>|!=|==|[=<>(),])
    |(?P<end>$))""",
    re.VERBOSE | re.ASCII,
)
_COMPARISONS = {"=": "=", "==": "=", "<>": "<>", "!=": "<>"}
_COMPARISONS |= {sign: sign for sign in ("<", "<=", ">", ">=")}
_WORDS = frozenset(
    {"and", "between", "false", "ilike", "in", "is", "like", "not", "null", "or", "true"}
)
_ESCAPED = re.compile(r"[^\\]|\\[\\%_]")


def filter_error(where: object, reason: str) -> InvalidArgumentError:
    """Make the error for a filter that cannot be used."""
    return InvalidArgumentError(
        f"the filter {where!r:.200} is not understood ({reason:.300}); "
        "expected an expression such as: duration_s < 30 and source = 'cam1'"
    )


def parse_filter(where: str, metadata: Mapping[str, type]) -> Condition:
    """Parse a filter over the gallery's own columns and those of ``metadata``.

    Raises InvalidArgumentError.
    """
    if not isinstance(where, str):
        raise filter_error(where, f"it is a {type(where).__name__}, not a text")
    if len(where) > MAX_FILTER_CHARACTERS:
        raise filter_error(where, f"more than {MAX_FILTER_CHARACTERS} characters")
    if where.encode(errors="replace").decode() != where:
        raise filter_error(where, "not UTF-8 text")
    return _Parser(where, {**OWN_COLUMNS, **metadata}).parse()


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int


class _Parser:
    """A recursive-descent parser with one method for each rule of the language."""

    def __init__(self, where: str, columns: Mapping[str, type]) -> None:
        self._where = where
        self._columns = {name.lower(): Column(name, kind) for name, kind in columns.items()}
        self._num_conditions = 0
        self._depth = 0
        self._start = 0
        self._next = self._read()

    def parse(self) -> Condition:
        condition = self._any()
        if self._next.kind != "end":
            raise self._unexpected("and, or, or the end")
        return condition

    # -- tokens ----------------------------------------------------------------------------

    def _read(self) -> _Token:
        found = _TOKEN.match(self._where, self._start)
        if found is None:
            rest = self._where[self._start :].lstrip(" \t\n\r\f\v")
            reason = "a quotation mark is not closed" if rest[0] in "'\"`" else "no such sign"
            raise filter_error(self._where, f"{reason}: {rest[:20]!r}")
        assert found.lastgroup is not None
        self._start = found.end()
        kind, text = found.lastgroup, found[found.lastgroup]
        return _Token(kind, text.lower() if kind == "word" else text, found.start(kind))

    def _take(self) -> _Token:
        token, self._next = self._next, self._read()
        return token

    def _accept(self, *texts: str) -> str | None:
        """Consume and return the next word or sign if it is one of ``texts``."""
        if self._next.kind in ("word", "sign") and self._next.text in texts:
            return self._take().text
        return None

    def _expect(self, text: str) -> None:
        if self._accept(text) is None:
            raise self._unexpected(text)

    def _unexpected(self, expected: str) -> InvalidArgumentError:
        found = self._where[self._next.start :][:20]
        shown = repr(found) if found else "the end"
        return filter_error(self._where, f"expected {expected}, found {shown}")

    # -- rules -----------------------------------------------------------------------------

    def _any(self) -> Condition:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise filter_error(self._where, f"nested deeper than {_MAX_DEPTH}")
        condition = self._joined("or", lambda: self._joined("and", self._negated))
        self._depth -= 1
        return condition

    def _joined(self, word: str, rule: Callable[[], Condition]) -> Condition:
        parts = [rule()]
        while self._accept(word):
            parts.append(rule())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _negated(self) -> Condition:
        is_negated = False
        while self._accept("not"):
            is_negated = not is_negated
        if self._accept("("):
            condition = self._any()
            self._expect(")")
        else:
            condition = self._condition()
        return Not(condition) if is_negated else condition

    def _condition(self) -> Condition:
        self._num_conditions += 1
        if self._num_conditions > MAX_CONDITIONS:
            raise filter_error(self._where, f"more than {MAX_CONDITIONS} conditions")
        left = self._operand()
        if self._next.kind == "sign" and self._next.text in _COMPARISONS:
            sign = _COMPARISONS[self._take().text]
            return self._compared(left, sign, self._operand())
        if not isinstance(left, Column):
            if isinstance(left, bool):
                return Constant(left)
            raise self._unexpected("= < > <= >= or <>")
        if self._accept("is"):
            is_negated = self._accept("not") is not None
            self._expect("null")
            return Not(IsNull(left)) if is_negated else IsNull(left)
        is_negated = self._accept("not") is not None
        condition = self._predicate(left)
        if condition is None:
            if is_negated or left.kind is not bool:
                raise self._unexpected("= < > <= >= <> in, between, like or is null")
            return IsTrue(left)
        return Not(condition) if is_negated else condition

    def _predicate(self, column: Column) -> Condition | None:
        if self._accept("in"):
            self._expect("(")
            values = [self._value()]
            while self._accept(","):
                values.append(self._value())
            self._expect(")")
            for value in values:
                self._check_kinds(column, value)
            return Membership(column, tuple(values))
        if self._accept("between"):
            low = self._operand()
            self._expect("and")
            high = self._operand()
            parts = (self._compared(column, ">=", low), self._compared(column, "<=", high))
            return Joined("and", parts)
        if word := self._accept("like", "ilike"):
            pattern = self._value()
            if column.kind is not str or not isinstance(pattern, str):
                raise filter_error(self._where, f"{word} compares a column of texts with a text")
            if _ESCAPED.sub("", pattern):
                reason = "in a pattern, \\ escapes %, _ or \\ and nothing else"
                raise filter_error(self._where, reason)
            return Like(column, pattern, word == "ilike")
        return None

    def _compared(self, left: Operand, sign: str, right: Operand) -> Condition:
        if not isinstance(left, Column):
            if not isinstance(right, Column):
                raise filter_error(self._where, f"{left!r} {sign} {right!r} names no column")
            left, right = right, left
            sign = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(sign, sign)
        self._check_kinds(left, right)
        if left.kind is bool and sign not in ("=", "<>"):
            raise filter_error(self._where, f"{left.name} holds truth values, which have no order")
        return Comparison(left, sign, right)

    def _check_kinds(self, column: Column, other: Operand) -> None:
        kind = other.kind if isinstance(other, Column) else type(other)
        if kind is not column.kind and not {kind, column.kind} <= {int, float}:
            shown = other.name if isinstance(other, Column) else repr(other)
            raise filter_error(
                self._where, f"{column.name} holds {TYPE_NAMES[column.kind]}, not {shown:.60}"
            )

    def _operand(self) -> Operand:
        token = self._next
        if token.kind == "word" and token.text in ("true", "false"):
            return self._value()
        if token.kind in ("text", "number"):
            return self._value()
        if token.kind == "quoted":
            name = self._take().text[1:-1]
        elif token.kind == "word" and token.text not in _WORDS:
            name = self._take().text
        else:
            raise self._unexpected("a column or value")
        column = self._columns.get(name.lower())
        if column is None:
            names = [column.name for column in self._columns.values()]
            known = ", ".join(sorted(name for name in names if not name.startswith("_")))
            raise filter_error(self._where, f"no column {name!r:.70}; there are {known}")
        return column

    def _value(self) -> MetadataValue:
        if word := self._accept("true", "false"):
            return word == "true"
        token = self._next
        if token.kind == "text":
            return self._take().text[1:-1].replace("''", "'")
        if token.kind != "number":
            raise self._unexpected("a value")
        text = self._take().text
        number = int(text) if re.fullmatch(r"-?\d{1,20}", text) else float(text)
        if not math.isfinite(number) or (isinstance(number, int) and abs(number) >= 1 << 63):
            raise filter_error(self._where, f"{text:.40} is no number of 64 bits")
        return number


def names_in(where: str) -> set[str]:
    """Return every name that a filter may use as a column, in lower case, texts left out.

    What cannot be parsed ends the search: :func:`parse_filter` refuses such a filter.
    """
    found, start = set(), 0
    while (token := _TOKEN.match(where, start)) is not None and token.lastgroup != "end":
        if token.lastgroup == "word":
            found.add(token["word"].lower())
        elif token.lastgroup == "quoted":
            found.add(token["quoted"][1:-1].lower())
        start = token.end()
    return found
