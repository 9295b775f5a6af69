"""Filters over metadata: an SQL expression, such as ``duration_s < 30 and source = 'cam1'``."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

import numpy as np

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.gallery.records import GalleryVideo
from xclip_deploy.runtime.gallery.store import Rows

MAX_FILTER_CHARACTERS = 65_536
# What is left once texts and quoted names are taken out.
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`")
_DOUBLE_QUOTED_TEXTS = 1013
"""SQLITE_DBCONFIG_DQS_DML, which Python has a name for since 3.12."""
_STEPS = 50_000_000
"""Most steps of SQLite's machine that one filter may take: seconds."""


def check_filter(where: str) -> str:
    """Refuse what is no single expression. Raises InvalidArgumentError."""
    if not isinstance(where, str) or not where.strip():
        raise InvalidArgumentError(f"the filter is {where!r}; expected an expression such as a < 3")
    if len(where) > MAX_FILTER_CHARACTERS:
        raise InvalidArgumentError(
            f"the filter has {len(where)} characters, expected at most {MAX_FILTER_CHARACTERS}"
        )
    rest = _QUOTED.sub("", where)
    for sign in (";", "--", "/*"):
        if sign in rest:
            # Databases read up to these and drop the rest, which somebody meant.
            raise filter_error(where, f"{sign} is no part of an expression")
    if "\0" in where or rest.count("'") or rest.count('"') or rest.count("`"):
        raise filter_error(where, "a quotation mark is not closed")
    return where


def filter_error(where: str, reason: object) -> InvalidArgumentError:
    """What is raised for a filter that cannot be used."""
    return InvalidArgumentError(
        f"the filter {where!r:.200} is not understood ({' '.join(str(reason).split())[:300]}); "
        "expected an SQL expression such as: duration_s < 30 and source = 'cam1'"
    )


class FilterTable:
    """Videos as rows of an in-memory SQLite table, for galleries without a database."""

    def __init__(self, videos: Sequence[GalleryVideo]) -> None:
        fields = sorted({name for video in videos for name in video.metadata})
        columns = ["id", "duration_s", "fingerprint", "num_frames", *fields]
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        # STRICT would refuse to compare; the types were checked when the videos were added.
        self._connection.execute(f"create table videos ({', '.join(map(_quoted, columns))})")
        marks = ", ".join("?" for _ in columns)
        self._connection.executemany(
            f"insert into videos values ({marks})",  # noqa: S608  # marks are question marks
            (
                (
                    video.id,
                    video.duration_s,
                    video.fingerprint,
                    len(video.frame_times_s),
                    *(video.metadata.get(name) for name in fields),
                )
                for video in videos
            ),
        )
        self._connection.commit()
        # An unknown name in double quotes would be taken for a text, and match nothing.
        if hasattr(self._connection, "setconfig"):
            self._connection.setconfig(_DOUBLE_QUOTED_TEXTS, False)
        self._connection.set_authorizer(_authorize)

    def matching(self, where: str) -> Rows:
        """Places of the videos that the filter lets through. Raises InvalidArgumentError."""
        check_filter(where)
        steps = 0

        def count_steps() -> int:
            nonlocal steps
            steps += 1
            return int(steps > _STEPS // 100_000)

        self._connection.set_progress_handler(count_steps, 100_000)
        query = f"select rowid - 1 from videos where ({where}\n) order by rowid"  # noqa: S608
        try:
            found = self._connection.execute(query).fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise filter_error(where, error) from error
        return np.array([row for (row,) in found], np.int64)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _authorize(action: int, first: str | None, second: str | None, *_rest: object) -> int:
    # A filter reads this table and calls functions; it changes, attaches and configures nothing.
    del first
    if action == sqlite3.SQLITE_FUNCTION and second == "load_extension":
        return sqlite3.SQLITE_DENY
    allowed = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)
    return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY
