"""Jobs and uploaded files in SQLite, written through to the disk before a client is told."""

from __future__ import annotations

import fcntl
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.jobs.records import Job, JobKind, JobRequest, UploadedFile
from xclip_deploy.wire import ReportModel
from xclip_deploy.wire.base import ErrorModel

SCHEMA = 1
KEPT_JOBS = 1000
"""Most ended jobs that are kept; the oldest are forgotten."""
KEPT_S = 90 * 86400.0
"""Longest time that an ended job is kept, seconds."""
_EVENTS = 1 << 32
"""Numbers of events for one start of the service."""
_TABLES = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    title TEXT NOT NULL,
    request TEXT NOT NULL,
    created_s REAL NOT NULL,
    state TEXT NOT NULL,
    started_s REAL,
    ended_s REAL,
    num_starts INTEGER NOT NULL DEFAULT 0,
    num_lost INTEGER NOT NULL DEFAULT 0,
    was_checked INTEGER NOT NULL DEFAULT 0,
    was_cancelled INTEGER NOT NULL DEFAULT 0,
    last_event INTEGER NOT NULL DEFAULT 0,
    report TEXT,
    error TEXT,
    videos TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE INDEX jobs_by_event ON jobs (last_event);
CREATE TABLE files (
    content_sha256 TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    is_indexed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE starts (count INTEGER NOT NULL);
INSERT INTO starts VALUES (0);
"""
_COLUMNS = (
    "number, id, kind, title, request, created_s, state, started_s, ended_s, num_starts, num_lost, "
    "was_checked, was_cancelled, last_event, report, error, videos"
)
_ENDED = "('done', 'failed', 'cancelled')"
_videos: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[str, ...])


class Ledger:
    """A small database of jobs and uploaded files. It is safe to use from several threads.

    Every change is one transaction, which is on the disk when the method returns.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the database.

        Raises:
            InvalidArgumentError: The file is damaged, cannot be written, or a later release made
                it; or another service uses it.
        """
        self._lock = threading.RLock()
        self._claim = _claim(path.with_suffix(".lock"))
        try:
            self._connection = sqlite3.connect(
                path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._open()
        except (sqlite3.Error, Refusal) as error:
            self._claim.close()
            raise InvalidArgumentError(
                f"{path}: the ledger of jobs cannot be used: {error}; expected a database of this "
                "release in a folder with room; to begin without its jobs, move it away"
            ) from error

    def _open(self) -> None:
        connection = self._connection
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise sqlite3.DatabaseError(f"it has version {version}, later than {SCHEMA}")
        if version == 0:
            connection.executescript(f"BEGIN;{_TABLES}PRAGMA user_version = {SCHEMA};COMMIT;")
        with self._changing() as change:
            change.execute("UPDATE starts SET count = count + 1")
            # The service that ran these ended without a word, or it would have put them back.
            change.execute(
                "UPDATE jobs SET state = 'waiting', num_lost = num_lost + 1 WHERE state = 'running'"
            )

    def close(self) -> None:
        """Close the database. Closing it twice does no harm."""
        with self._lock:
            self._connection.close()
            self._claim.close()

    @property
    def first_event(self) -> int:
        """A number above those of all events of earlier starts."""
        with self._lock:
            (count,) = self._connection.execute("SELECT count FROM starts").fetchone()
        return int(count) * _EVENTS

    # -- jobs -----------------------------------------------------------------------------

    def add(
        self,
        job_id: str,
        kind: JobKind,
        title: str,
        request: JobRequest,
        event: int,
        created_s: float,
    ) -> Job:
        """Add a job, with its uploaded files, at the end of the queue."""
        with self._changing() as change:
            for file in request.files:
                change.execute(
                    "INSERT OR IGNORE INTO files VALUES (?, ?, ?, 0)",
                    (file.content_sha256, file.name, file.size_bytes),
                )
            inserted = change.execute(
                "INSERT INTO jobs (id, kind, title, request, created_s, state, last_event) "
                "VALUES (?, ?, ?, ?, ?, 'waiting', ?)",
                (job_id, kind, title, request.model_dump_json(), created_s, event),
            )
            number = inserted.lastrowid
        assert number is not None
        return Job(number, job_id, kind, title, request, created_s, last_event=event)

    def save(self, job: Job) -> None:
        """Write the changed fields of a job."""
        with self._changing() as change:
            change.execute(
                "UPDATE jobs SET state = ?, started_s = ?, ended_s = ?, num_starts = ?, "
                "num_lost = ?, was_checked = ?, was_cancelled = ?, last_event = ?, report = ?, "
                "error = ?, videos = ? WHERE number = ?",
                (
                    job.state,
                    job.started_s,
                    job.ended_s,
                    job.num_starts,
                    job.num_lost,
                    job.was_checked,
                    job.was_cancelled,
                    job.last_event,
                    None if job.report is None else job.report.model_dump_json(),
                    None if job.error is None else job.error.model_dump_json(),
                    _videos.dump_json(job.videos).decode(),
                    job.number,
                ),
            )

    def get(self, job_id: str) -> Job | None:
        """Return a job, None if there is none."""
        found = self._jobs("WHERE id = ?", job_id)
        return found[0] if found else None

    def unfinished(self) -> list[Job]:
        """Return the jobs that have not ended, in the order of the queue."""
        return self._jobs(f"WHERE state NOT IN {_ENDED} ORDER BY number")

    def newest(self, limit: int, offset: int) -> tuple[list[Job], int]:
        """Return jobs, the newest first, and the number of all."""
        with self._lock:
            jobs = self._jobs("ORDER BY number DESC LIMIT ? OFFSET ?", limit, offset)
            (total,) = self._connection.execute("SELECT count(*) FROM jobs").fetchone()
        return jobs, int(total)

    def ended_since(self, event: int, limit: int) -> list[Job]:
        """Return ended jobs whose last event is later, in the order of their events."""
        return self._jobs(
            f"WHERE last_event > ? AND state IN {_ENDED} ORDER BY last_event LIMIT ?", event, limit
        )

    def prune(self, now_s: float | None = None) -> None:
        """Forget ended jobs that are too old or too many."""
        before_s = (time.time() if now_s is None else now_s) - KEPT_S
        with self._changing() as change:
            change.execute(
                f"DELETE FROM jobs WHERE state IN {_ENDED} AND (ended_s < ? OR number NOT IN "  # noqa: S608
                f"(SELECT number FROM jobs WHERE state IN {_ENDED} "
                "ORDER BY number DESC LIMIT ?))",
                (before_s, KEPT_JOBS),
            )

    # -- uploaded files ---------------------------------------------------------------------

    def files(self) -> dict[str, tuple[UploadedFile, bool]]:
        """Return the uploaded files by content, and whether the gallery got each."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT content_sha256, name, size_bytes, is_indexed FROM files"
            ).fetchall()
        return {sha: (UploadedFile(sha, name, size), bool(done)) for sha, name, size, done in rows}

    def keep_file(self, content_sha256: str) -> None:
        """Note that the gallery lists a file."""
        with self._changing() as change:
            change.execute(
                "UPDATE files SET is_indexed = 1 WHERE content_sha256 = ?", (content_sha256,)
            )

    def drop_file(self, content_sha256: str) -> None:
        """Note that a file is gone."""
        with self._changing() as change:
            change.execute("DELETE FROM files WHERE content_sha256 = ?", (content_sha256,))

    # -- how ------------------------------------------------------------------------------

    def _jobs(self, where: str, *values: object) -> list[Job]:
        with self._lock:
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM jobs {where}",  # noqa: S608
                values,
            ).fetchall()
        return [_job_of(row) for row in rows]

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction. Raises Refusal (507) on a full disk."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) and _is_full(error):
                    raise Refusal(
                        507, "NoRoom", "the service's disk is full; expected room, so free some"
                    ) from error
                raise


def _claim(path: Path) -> IO[bytes]:
    """Lock the folder against another service until the file is closed."""
    try:
        # Uploads, names and cuts are no business of the machine's other users.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise InvalidArgumentError(
            f"{path.parent}: cannot be written: {error.strerror or error}; expected a folder of "
            "the service's own"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise InvalidArgumentError(
            f"{path.parent}: another service uses this folder; expected one of its own: --data"
        ) from error
    return file


def _is_full(error: sqlite3.Error) -> bool:
    # SQLite calls a full disk SQLITE_FULL, and a full log an input or output error.
    return "full" in str(error) or "disk I/O" in str(error)


def _job_of(row: tuple[Any, ...]) -> Job:
    fields: dict[str, Any] = dict(zip(_COLUMNS.split(", "), row, strict=True))
    report, error = fields.pop("report"), fields.pop("error")
    return Job(
        request=JobRequest.model_validate_json(fields.pop("request")),
        was_checked=bool(fields.pop("was_checked")),
        was_cancelled=bool(fields.pop("was_cancelled")),
        report=None if report is None else ReportModel.model_validate_json(report),
        error=None if error is None else ErrorModel.model_validate_json(error),
        videos=_videos.validate_json(fields.pop("videos")),
        **fields,
    )
