"""Decoders that crash, hang, talk nonsense and are killed; real processes throughout."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexing_stand_ins import READING, SAMPLING, SIZE

from xclip_deploy.errors import InvalidArgumentError, VideoError
from xclip_deploy.runtime.decoding import (
    DecoderPool,
    DecoderStartError,
    FileChangedError,
    FileContent,
)
from xclip_deploy.runtime.decoding.pool import STARTS
from xclip_deploy.runtime.decoding.process import shelf
from xclip_deploy.runtime.video import VideoFrames, read_video

Command = tuple[str, ...]


WantsFrames = Callable[[Path, str], bool]


@pytest.fixture(autouse=True)
def brief_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed starts follow one another at once. The pauses between them take 2 s in all."""
    monkeypatch.setattr("xclip_deploy.runtime.decoding.pool._PAUSE_S", 0.01)


def always(_path: Path, _content_sha256: str) -> bool:
    return True


def read_in_pool(
    pool: DecoderPool[Path], paths: Iterable[Path], wants_frames: WantsFrames = always
) -> Iterator[tuple[Path, VideoFrames | VideoError]]:
    """Read videos with as many in flight as the pool has room for, in the order of readiness."""
    waiting = deque(paths)
    while waiting or pool.in_flight:
        while waiting and pool.has_room():
            path = waiting.popleft()
            pool.submit(path, path, partial(wants_frames, path))
        taken = pool.take()
        assert taken is not None
        path, outcome = taken
        if isinstance(outcome, FileContent):
            assert isinstance(outcome.frames, VideoFrames)
            yield path, outcome.frames
        else:
            yield path, outcome


def read_all(
    pool: DecoderPool[Path], *paths: Path, wants_frames: WantsFrames = always
) -> dict[str, VideoFrames | VideoError]:
    return {path.name: outcome for path, outcome in read_in_pool(pool, paths, wants_frames)}


def same(found: VideoFrames | VideoError, path: Path) -> bool:
    expected = read_video(path, SAMPLING, SIZE)
    assert isinstance(found, VideoFrames)
    np.testing.assert_array_equal(found.frames, expected.frames)
    np.testing.assert_array_equal(found.times_s, expected.times_s)
    np.testing.assert_array_equal(found.frame_numbers, expected.frame_numbers)
    assert (found.duration_s, found.frame_rate) == (expected.duration_s, expected.frame_rate)
    return found.warnings == expected.warnings


def test_frames_are_those_of_read_video(clips: Path) -> None:
    paths = [
        clips / "intel_asl_walk.mkv",
        clips / "edge_cases" / "decord_corrupted.mp4",
        clips / "README.md",
        clips / "gone.mp4",
        clips,
    ]
    with DecoderPool[Path](READING, workers=2) as pool:
        found = read_all(pool, *paths)
    assert same(found["intel_asl_walk.mkv"], paths[0])
    assert same(found["decord_corrupted.mp4"], paths[1])
    for path in paths[2:]:
        with pytest.raises(VideoError) as caught:
            read_video(path, SAMPLING, SIZE)
        assert str(found[path.name]) == str(caught.value)


def test_a_crash_costs_that_video(make: Any, misbehaving: Command) -> None:
    names = ["a.mp4", "crash.mp4", "exit.mp4", "mistake.mp4", "memory.mp4", "many.mp4", "b.mp4"]
    paths = [make(name, n) for n, name in enumerate(names)]
    with DecoderPool[Path](READING, workers=1, command=misbehaving) as pool:
        found = {name: str(outcome) for name, outcome in read_all(pool, *paths).items()}
    crash = found["crash.mp4"]
    assert crash == (f"{paths[1]}: the decoder ended while it read it (SIGSEGV: about to crash)")
    assert "(exit status 3)" in found["exit.mp4"]
    assert found["mistake.mp4"].endswith("cannot be read: ValueError: a library's mistake")
    assert found["memory.mp4"].endswith("does not fit into memory")
    assert "frames, expected 1 to 3 with their times" in found["many.mp4"]
    assert "VideoFrames" in found["a.mp4"]
    assert "VideoFrames" in found["b.mp4"]
    assert all("\n" not in found[name] for name in names[1:-1])


def test_a_hang_costs_that_video(make: Any, misbehaving: Command) -> None:
    hang, good = make("hang.mp4", 0), [make(f"{n}.mp4", n) for n in range(1, 6)]
    start = time.monotonic()
    with DecoderPool[Path](READING, workers=2, timeout_s=2, command=misbehaving) as pool:
        outcomes = list(read_in_pool(pool, [hang, *good]))
    # The others were not held up: the one that hung comes last.
    assert outcomes[-1][0] == hang
    assert str(outcomes[-1][1]) == (
        f"{hang}: was not read within 2 s and was given up; a longer --timeout may help"
    )
    assert all(same(outcome, path) for path, outcome in outcomes[:-1] if isinstance(path, Path))
    assert time.monotonic() - start < 60


def test_what_a_library_prints_disturbs_nothing(make: Any, misbehaving: Command) -> None:
    noise, after = make("noise.mp4", 0), make("after.mp4", 1)
    with DecoderPool[Path](READING, workers=1, command=misbehaving) as pool:
        found = read_all(pool, noise, after)
    assert same(found["noise.mp4"], noise)
    assert same(found["after.mp4"], after)


def test_a_file_that_grows_is_a_failure(make: Any, misbehaving: Command) -> None:
    grow = make("grow.mp4", 0)
    with DecoderPool[Path](READING, workers=1, command=misbehaving) as pool:
        outcome = read_all(pool, grow)["grow.mp4"]
    assert isinstance(outcome, FileChangedError)
    assert "changed while it was read" in str(outcome)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit('no such module')", "exit status 1: no such module"),
        (r"import os; os.write(1, b'\xff' * 100); os._exit(0)", "exit status 0"),
    ],
)
def test_decoders_that_do_not_start_stop_the_run(make: Any, script: str, message: str) -> None:
    commands = {
        message: (sys.executable, "-c", script),
        "a decoder cannot be started": ("/no/such/program",),
    }
    for expected, command in commands.items():
        pool = DecoderPool[Path](READING, workers=1, command=command)
        with pool, pytest.raises(DecoderStartError, match=expected) as caught:
            read_all(pool, make("a.mp4", 0))
        assert str(caught.value).startswith(f"{STARTS} starts of a decoder in a row failed; ")


FALTERING = """
import os, pathlib, signal, sys
from xclip_deploy.runtime.decoding import worker
tokens = sorted(pathlib.Path(sys.argv[1]).iterdir())
if tokens and sys.argv[2] == "start":
    tokens[0].unlink()
    os.kill(os.getpid(), signal.SIGKILL)
if tokens:
    def die(*_):
        tokens[0].unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    worker._answer = die
sys.argv[1:] = sys.argv[3:]
worker.main()
"""


def faltering(tmp_path: Path, deaths: int, when: str) -> tuple[Command, Path]:
    """A decoder that is killed this many times, while it starts or as its first video comes."""
    script, tokens = tmp_path / "faltering.py", tmp_path / "tokens"
    script.write_text(FALTERING)
    tokens.mkdir()
    for number in range(deaths):
        (tokens / str(number)).touch()
    return (sys.executable, str(script), str(tokens), when), tokens


@pytest.mark.parametrize("when", ["start", "first video"])
@pytest.mark.parametrize("deaths", [1, STARTS - 1])
def test_a_decoder_that_is_killed_while_it_starts_is_replaced(
    make: Any, tmp_path: Path, deaths: int, when: str
) -> None:
    path = make("a.mp4", 0)
    command, tokens = faltering(tmp_path, deaths, when)
    with DecoderPool[Path](READING, workers=1, command=command) as pool:
        assert same(read_all(pool, path)["a.mp4"], path)
    assert not list(tokens.iterdir())


def test_several_kills_in_a_row_are_the_end(make: Any, tmp_path: Path) -> None:
    command, tokens = faltering(tmp_path, STARTS + 3, "start")
    pool = DecoderPool[Path](READING, workers=1, command=command)
    with pool, pytest.raises(DecoderStartError) as caught:
        read_all(pool, make("a.mp4", 0))
    assert str(caught.value) == (
        "4 starts of a decoder in a row failed; the last: a decoder ended while it started "
        "(SIGKILL, as when memory runs out)"
    )
    assert len(list(tokens.iterdir())) == 3


def test_decoders_that_go_away_before_they_read_cost_the_video(make: Any, tmp_path: Path) -> None:
    command, _ = faltering(tmp_path, STARTS + 3, "first video")
    with DecoderPool[Path](READING, workers=1, command=command) as pool:
        outcome = read_all(pool, make("a.mp4", 0))["a.mp4"]
    assert "4 new decoders in a row ended before they read it (SIGKILL" in str(outcome)


def test_a_decoder_that_answers_nonsense(make: Any) -> None:
    answers = r"""
import os, sys
say = lambda content: os.write(1, len(content).to_bytes(4, 'little') + content)
say(b'{"ready": 1}')
os.read(0, 65536)
say(%r)
os.read(0, 65536)
"""
    path = make("a.mp4", 0)
    huge = (1 << 31).to_bytes(4, "little")
    for content in (b"no json", b"[]", b"{}", b'{"content_sha256": "x"}', huge):
        script = answers % content
        if content == huge:
            script = script.replace("say(" + repr(huge), "os.write(1, " + repr(huge))
        command = (sys.executable, "-c", script)
        with DecoderPool[Path](READING, workers=1, command=command) as pool:
            outcome = read_all(pool, path)["a.mp4"]
        assert isinstance(outcome, VideoError)
        assert "the decoder answered with" in str(outcome), content


def test_the_real_decoder_killed_in_the_middle(make: Any) -> None:
    paths = [make(f"{n}.mp4", n) for n in range(3)]
    killed: list[int] = []

    def kill_once(path: Path, _content_sha256: str) -> bool:
        if path.name == "1.mp4" and not killed:
            (process,) = pool._running
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
        return True

    with DecoderPool[Path](READING, workers=1) as pool:
        found = read_all(pool, *paths, wants_frames=kill_once)
    assert "SIGKILL, as when memory runs out" in str(found["1.mp4"])
    assert same(found["0.mp4"], paths[0])
    assert same(found["2.mp4"], paths[2])


def test_decoders_are_used_again(make: Any) -> None:
    path = make("a.mp4", 0)

    def pid_of_decoder() -> int:
        pids: list[int] = []

        def note(_content_sha256: str) -> bool:
            pids.extend(process.pid for process in pool._running)
            return False

        with DecoderPool[Path](READING, workers=1) as pool:
            pool.submit(path, path, note)
            taken = pool.take()
        assert taken is not None
        assert isinstance(taken[1], FileContent)
        assert taken[1].frames is None
        return pids[0]

    shelf.close()
    first = pid_of_decoder()
    assert pid_of_decoder() == first
    # One that went away meanwhile is replaced, and no video pays for it.
    os.kill(first, signal.SIGKILL)
    assert pid_of_decoder() != first
    shelf.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_closing_does_not_wait_for_a_video(make: Any, misbehaving: Command) -> None:
    start = time.monotonic()
    with DecoderPool[Path](READING, workers=1, command=misbehaving) as pool:
        for path in (make("hang.mp4", 0), make("a.mp4", 0)):
            pool.submit(path, path)
        assert pool.take(1.0) is None
    assert time.monotonic() - start < 60
    with pytest.raises(InvalidArgumentError, match="closed"):
        pool.submit(path, path)


def test_there_is_room_for_the_window(make: Any) -> None:
    paths = [make(f"{n}.mp4", n) for n in range(12)]
    with DecoderPool[Path](READING, workers=2, window=3) as pool:
        for path in paths[:3]:
            assert pool.has_room()
            pool.submit(path, path)
        assert not pool.has_room()
        assert pool.has_room(beside=1)
        pool.submit(paths[3], paths[3])
        assert not pool.has_room(beside=1)
        # What is ready and not taken is in memory, too.
        time.sleep(0.5)
        assert not pool.has_room()
        assert len(list(read_in_pool(pool, paths[4:]))) == 12
        assert pool.has_room()


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"timeout_s": 0}, {"window": 0}])
def test_wrong_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="expected at least 1 each"):
        DecoderPool[Path](READING, **wrong)


def test_threads_read_side_by_side(make: Any) -> None:
    paths = [make(f"{n}.mp4", n) for n in range(4)]
    failures: list[Exception] = []

    def read() -> None:
        try:
            with DecoderPool[Path](READING, workers=1) as pool:
                assert all(same(outcome, path) for path, outcome in read_in_pool(pool, paths))
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
