"""The ledger of jobs, and what it keeps of a crash."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service.jobs import ledger as ledgers
from xclip_deploy.service.jobs.ledger import Ledger
from xclip_deploy.service.jobs.records import JobRequest
from xclip_deploy.wire import AddOptions

REQUEST = JobRequest(options=AddOptions(), paths=["a"])


def test_a_ledger_of_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    ledger = Ledger(path)
    first = ledger.first_event
    job = ledger.add("a", "index", "a", REQUEST, first + 1, 1.0)
    ledger.save(replace(job, state="running", num_starts=1, last_event=first + 5))
    ledger.close()  # without a word about the job
    ledger = Ledger(path)
    (found,) = ledger.unfinished()
    assert (found.state, found.num_starts, found.num_lost) == ("waiting", 1, 1)
    assert found.request == REQUEST
    # Numbers of events never repeat, whatever was told and not written.
    assert ledger.first_event > first + 2**31
    ledger.close()


def test_old_jobs_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "KEPT_JOBS", 3)
    ledger = Ledger(tmp_path / "jobs.sqlite")
    for n in range(6):
        job = ledger.add(str(n), "index", "a", REQUEST, n, 1000.0)
        if n != 1:
            ledger.save(replace(job, state="done", ended_s=1000.0 + n))
    ledger.prune(2000.0)
    jobs, total = ledger.newest(10, 0)
    assert [job.id for job in jobs] == ["5", "4", "3", "1"]  # one has not ended
    assert total == 4
    ledger.prune(1004.5 + ledgers.KEPT_S)
    assert [job.id for job in ledger.newest(10, 0)[0]] == ["5", "1"]
    ledger.close()


def test_a_ledger_that_cannot_be_used(tmp_path: Path) -> None:
    later = tmp_path / "later" / "jobs.sqlite"
    Ledger(later).close()
    with sqlite3.connect(later) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(InvalidArgumentError, match="version 99"):
        Ledger(later)
    damaged = tmp_path / "damaged" / "jobs.sqlite"
    damaged.parent.mkdir()
    damaged.write_bytes(b"no database" * 1000)
    with pytest.raises(InvalidArgumentError, match="to begin without its jobs, move it away"):
        Ledger(damaged)
    damaged.unlink()
    Ledger(damaged).close()  # the refused one holds no lock
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        Ledger(file / "jobs.sqlite")


def test_a_ledger_is_written_through(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "jobs.sqlite")
    connection = ledger._connection
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    ledger.close()
