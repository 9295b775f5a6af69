"""A gallery in LanceDB that is read, written, optimised and killed at once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from gallery_samples import DIM, NOTHING_IN_MEMORY, content_of, lance_store, rows_of, sample

from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.gallery.lance_store import LanceStore

PACKAGES = Path(__file__).parents[2] / "packages"
WRITER = f"""
import sys
sys.path.insert(0, {str(PACKAGES)!r})
from gallery_samples import lance_store, sample
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = lance_store(path)
print("begin", flush=True)
for n in range(count):
    # Two videos that belong together, a column of its own now and then, a replacement, a removal.
    new = sample([f"{{name}}-{{n}}", f"{{name}}-{{n}}-twin"], n, **{{f"{{name}}_{{n // 10}}": n}})
    store.put(*new, replace=False)
    print("put", n, flush=True)
    if n % 3 == 2:
        store.put(*sample([f"{{name}}-{{n}}", f"{{name}}-{{n}}-twin"], 1000 + n), replace=True)
        print("replaced", n, flush=True)
    if n % 5 == 4:
        store.remove([f"{{name}}-{{n - 1}}", f"{{name}}-{{n - 1}}-twin"])
        print("removed", n - 1, flush=True)
    if n % 7 == 6:
        store.optimize(lambda _what: None)
"""


def start_writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def check_what_was_reported(path: Path, name: str, lines: list[str]) -> None:
    """Everything reported is there; of what was under way, all or nothing."""
    content = content_of(lance_store(path, create=False).snapshot())
    done = {kind: {int(n) for k, n in map(str.split, lines) if k == kind} for kind in KINDS}
    put, last = done["put"], max(done["put"], default=-1)
    for n in range(last + 2):
        ids = [f"{name}-{n}", f"{name}-{n}-twin"]
        there = [name in content for name in ids]
        assert there[0] == there[1], f"half of {n}"
        if n in done["removed"]:
            assert there == [False] * 2
        elif n in put and n != last - 1:  # whose removal may be under way
            assert there == [True] * 2
        if all(there):
            seeds = {1000 + n} if n in done["replaced"] else {n, 1000 + n}
            found = {(content[name][0].content_sha256 or "").split("-")[0] for name in ids}
            assert len(found) == 1
            assert found <= {str(seed) for seed in seeds}
            features = sample(ids, int(found.pop()))[1]
            assert content[ids[0]][1].startswith(features.video_features[0].tobytes())
    ours = [known for known in content if known.startswith(f"{name}-")]
    assert all(int(known.split("-")[1]) <= last + 1 for known in ours)


KINDS = ("put", "replaced", "removed")


@pytest.mark.parametrize("kills", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_a_writer_that_is_killed(tmp_path: Path, kills: int) -> None:
    chance = random.Random(kills)
    for attempt in range(kills):
        path = tmp_path / f"gallery-{attempt}"
        with start_writer(path, "w", 10_000) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "begin\n"
            # Anywhere in a write, not only after one. The first time, several are reported.
            count = chance.randint(4 if attempt == 0 else 0, 8)
            lines = [writer.stdout.readline().strip() for _ in range(count)]
            time.sleep(chance.uniform(0.0, 0.2))
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.read().splitlines()
        check_what_was_reported(path, "w", lines)
        # Whoever comes next can write and tidy up.
        store = lance_store(path)
        before = len(store.snapshot())
        store.put(*sample(["next"]), replace=True)
        store.optimize(lambda _what: None)
        assert len(store.snapshot()) == before + 1
        assert len(content_of(store.snapshot())) == before + 1


def test_a_process_killed_while_it_makes_a_gallery(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    for delay_s in (0.0, 0.01):
        with start_writer(path, "w", 1) as writer:
            time.sleep(delay_s)
            while not path.exists() and writer.poll() is None:
                time.sleep(0.001)
            writer.send_signal(signal.SIGKILL)
        store = lance_store(path)
        store.put(*sample(["a"]), replace=True)
        assert "a" in content_of(store.snapshot())
        for file in sorted(path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        path.rmdir()


@pytest.mark.parametrize(
    ("our_writes", "their_writes"), [(10, 7), pytest.param(25, 12, marks=pytest.mark.slow)]
)
def test_two_processes_lose_nothing(tmp_path: Path, our_writes: int, their_writes: int) -> None:
    path = tmp_path / "gallery"
    ours = lance_store(path)
    with start_writer(path, "other", their_writes) as other:
        for n in range(our_writes):
            ours.put(*sample([f"ours-{n}"], 5, **{f"ours_{n}": n}), replace=False)
        assert other.stdout is not None
        lines = other.stdout.read().splitlines()
        assert other.wait(120) == 0
    check_what_was_reported(path, "other", lines[1:])
    ours.refresh()
    names = set(content_of(ours.snapshot()))
    ours_found = {name for name in names if name.startswith("ours")}
    assert ours_found == {f"ours-{n}" for n in range(our_writes)}
    # The other removes a pair after every five.
    assert len(names) == our_writes + 2 * their_writes - 2 * (their_writes // 5)


def test_what_others_write_is_seen_after_refresh(tmp_path: Path) -> None:
    one, two = lance_store(tmp_path / "gallery"), lance_store(tmp_path / "gallery")
    one.put(*sample(["a"]), replace=False)
    assert len(one.snapshot()) == 1  # at once
    assert len(two.snapshot()) == 0
    two.refresh()
    assert len(two.snapshot()) == 1
    kept = two.snapshot()
    two.refresh()
    assert two.snapshot() is kept  # what it has read stays in memory while nothing changed
    one.remove(["a"])
    # A write sees what came before it.
    two.put(*sample(["a"], 1), replace=False)
    assert {video.content_sha256 for video in two.snapshot().listing()} == {"1-a"}
    assert [video.content_sha256 for video in kept.listing()] == ["0-a"]


@pytest.mark.parametrize("writes", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_snapshots_are_read_while_others_write(tmp_path: Path, writes: int) -> None:
    store = lance_store(tmp_path / "gallery", NOTHING_IN_MEMORY)
    names = [f"v{n}" for n in range(20)]
    store.put(*sample(names), replace=False)
    snapshot = store.snapshot()
    expected = content_of(snapshot)
    query = np.ones((1, DIM), np.float16)
    nearest = snapshot.nearest(query, 5)[0].rows.tolist()
    stop = threading.Event()

    def read() -> int:
        times = 0
        while not stop.is_set() or times < 3:
            assert content_of(snapshot) == expected
            assert len(snapshot.matching("n < 10")) == 10
            assert snapshot.nearest(query, 5)[0].rows.tolist() == nearest
            assert list(rows_of(snapshot, names)) == list(rows_of(snapshot, names))
            times += 1
        return times

    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(read) for _ in range(2)]
        try:
            for n in range(writes):
                store.put(*sample([f"new{n}", f"v{n}"], 2 + n), replace=True)
                store.optimize(lambda _what: None)
            store.remove(names)
            store.optimize(lambda _what: None)
        finally:
            stop.set()
        assert min(job.result() for job in reading) >= 3
    assert {video.id for video in store.snapshot().listing()} == {f"new{n}" for n in range(writes)}


def test_old_versions_are_kept_as_long_as_was_said(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path, NOTHING_IN_MEMORY)
    for n in range(5):
        store.put(*sample([f"v{n}"], n), replace=False)
    snapshot = store.snapshot()
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    store.optimize(lambda _what: None)
    assert len(content_of(snapshot)) == 5
    time.sleep(0.01)
    store.optimize(lambda _what: None, timedelta(0))
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < size
    assert len(content_of(store.snapshot())) == 5
    with pytest.raises(GalleryError, match="damaged or missing"):
        content_of(snapshot)


def test_searches_go_on_during_a_write(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    ours = lance_store(path)
    ours.put(*sample(["a"]), replace=False)
    theirs = lance_store(path, create=False)
    began, ended = threading.Event(), threading.Event()

    def wait(store: LanceStore) -> None:
        with store.exclusive():
            began.set()
            assert ended.wait(30)

    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(wait, theirs)
        try:
            assert began.wait(30)
            # This one waits for the lock of the other, as it would for another process.
            putting = pool.submit(ours.put, *sample(["b"]), replace=False)
            time.sleep(0.2)
            assert not putting.done()
            ours.refresh()
            assert len(content_of(ours.snapshot())) == 1
        finally:
            ended.set()
        waiting.result()
        putting.result()
    assert len(ours.snapshot()) == 2


def test_no_step_of_a_change_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = lance_store(tmp_path / "gallery")
    store.put(*sample(["a"]), replace=False)
    seen = []
    original = LanceStore._add_columns

    def look(self: LanceStore, types: dict[str, type]) -> None:
        original(self, types)

        def search() -> int:
            store.refresh()
            snapshot = store.snapshot()
            with pytest.raises(ValueError, match="no column 'late'"):
                snapshot.matching("late = 1")
            return len(snapshot)

        with ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(search).result())

    monkeypatch.setattr(LanceStore, "_add_columns", look)
    store.put(*sample(["b"], 1, late=1), replace=False)
    assert seen == [1]
    assert len(store.snapshot().matching("late = 1")) == 1
