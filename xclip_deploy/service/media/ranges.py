"""Byte ranges of HTTP (RFC 9110, section 14) and the conditions that go with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.IGNORECASE | re.ASCII)
_TAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass(frozen=True)
class ByteRange:
    """Bytes from ``start`` up to but without ``end``."""

    start: int
    end: int


class UnsatisfiableRangeError(Exception):
    """The range begins behind the end of the file."""


def range_of(headers: Mapping[str, str], etag: str, size: int) -> ByteRange | None:
    """Return the range that a request asks for; None for the whole file.

    Several ranges, other units and what cannot be understood give the whole file, as the
    standard allows. So does ``If-Range`` with any but this strong tag.

    Args:
        headers: Headers of the request, their names in lower case.
        etag: Tag of the file as it is, with its quotes.
        size: Bytes of the file.

    Raises:
        UnsatisfiableRangeError: the range has no byte of the file.
    """
    text = headers.get("range")
    if text is None or headers.get("if-range", etag).strip() != etag:
        return None
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        return None
    first, last = found.groups()
    if not first:
        if not last:
            return None
        # The last so many bytes; of an empty file there are none.
        start, end = max(size - int(last), 0), size
    else:
        start = int(first)
        end = min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= end:
        raise UnsatisfiableRangeError
    return ByteRange(start, end)


def is_known(headers: Mapping[str, str], etag: str) -> bool:
    """Return whether the client says by ``If-None-Match`` that it has this version."""
    text = headers.get("if-none-match")
    if text is None:
        return False
    strong = etag.removeprefix("W/")
    return text.strip() == "*" or any(
        tag.removeprefix("W/") == strong for tag in _TAG.findall(text)
    )
