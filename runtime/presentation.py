"""Show results as one short line, and as a table in notebooks; show times."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from html import escape
from itertools import islice

import numpy as np

from xclip_deploy.errors import InvalidArgumentError

MAX_CHARACTERS = 200
"""Most characters of a line from :func:`brief`."""
MAX_ROWS = 100
"""Most rows of a table from :func:`html_table`."""
_MAX_VALUE = 60
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, marks that reorder text, line separators, and undecodable bytes of names."""

_TIME = re.compile(
    r"(?P<seconds>\d{1,9}(\.\d{1,9})?)\s*s?"
    r"|((?P<hours>\d{1,5}):(?=[0-5]\d:))?(?P<minutes>\d{1,5}):(?P<rest>[0-5]\d(\.\d{1,9})?)",
    re.ASCII,
)


def brief(value: object, **parts: object) -> str:
    """Describe a value in one line: the name of its class, and ``name=value`` for every part.

    Arrays are shown as dtype and shape, and long values are shortened. The line has at most 200
    characters.
    """
    line = ", ".join(f"{name}={_shown(part)}" for name, part in parts.items())
    name = type(value).__name__
    return f"{name}({cut(line, MAX_CHARACTERS - len(name) - 2)})"


def printable(text: str) -> str:
    r"""Return a text with escapes such as ``\x1b`` for characters that act instead of showing."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def listed(texts: Sequence[str], count: int = 3, limit: int = 250) -> str:
    """Join the first ``count`` texts, ``limit`` characters each, and count those left out."""
    more = f"; and {len(texts) - count} more" if len(texts) > count else ""
    return "; ".join(cut(text, limit) for text in texts[:count]) + more


def cut(text: str, limit: int = _MAX_VALUE) -> str:
    """Shorten a text to ``limit`` characters, an ellipsis in place of the rest."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun: ``1 video``, ``1,234 videos``.

    ``plural``: the noun for other counts than 1; empty adds an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def time_text(seconds: float | None, decimals: int = 0) -> str:
    """Return a time as ``m:ss`` or ``h:mm:ss``, with decimals of the second; empty for None.

    The time is rounded before it is split, so that 59.96 s with one decimal are ``1:00.0``.
    """
    if seconds is None:
        return ""
    scale = 10**decimals
    whole, fraction = divmod(round(seconds * scale), scale)
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    end = f".{fraction:0{decimals}}" if decimals else ""
    return f"{start}:{whole:02}{end}"


def parse_time(name: str, text: str) -> float:
    """Return the seconds of a time as people write it: ``72``, ``8s``, ``1:12`` or ``1:02:03.5``.

    ``name``: what the time is for, for errors. Raises InvalidArgumentError.
    """
    found = _TIME.fullmatch(text.strip().lower())
    if found is None:
        raise InvalidArgumentError(
            f"{name} is {text!r:.60}; expected a time such as 72, 8s, 1:12 or 1:02:03.5"
        )
    if found["seconds"] is not None:
        return float(found["seconds"])
    hours, minutes = int(found["hours"] or 0), int(found["minutes"])
    return 3600 * hours + 60 * minutes + float(found["rest"])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the known word nearest to a mistyped one, else ""."""
    nearest = get_close_matches(word, list(known), n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def html_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], count: int
) -> str:
    """Render a table for a notebook, every value escaped.

    ``rows`` are shown up to 100 of them. ``count`` is the number of all rows.
    """
    head = "".join(f"<th>{_cell(name)}</th>" for name in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>"
        for row in islice(rows, MAX_ROWS)
    )
    more = f"<p>and {count - MAX_ROWS} more</p>" if count > MAX_ROWS else ""
    return (
        f"<table><caption>{_cell(title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{more}"
    )


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    return escape(cut(printable(str(value)), MAX_CHARACTERS))


def _shown(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return cut(f"{{{', '.join(f'{name}: {_shown(each)}' for name, each in value.items())}}}")
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a stranger's __repr__
        text = f"<{type(value).__name__}>"
    return cut(" ".join(text.split()))
