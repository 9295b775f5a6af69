"""Cuts from files that are gone, changed or damaged, and to places that cannot be written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered_movies import decode, number_in, write_movie

from xclip_deploy.errors import (
    InvalidArgumentError,
    MomentSourceError,
    VideoError,
    VideoNotFoundError,
    VideoReadError,
)
from xclip_deploy.runtime.gallery import VideoFile
from xclip_deploy.runtime.moments import cut, frame_at, frames_between, source

MODES = ("exact", "copy")


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    return write_movie(folder / "movie.mp4", seconds=6, sounds=[(0, 6)])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "m.mp4"


def record(path: Path) -> VideoFile:
    status = path.stat()
    return VideoFile(path=str(path), size_bytes=status.st_size, modified_ns=status.st_mtime_ns)


def test_a_file_that_is_as_it_was(movie: Path, out: Path) -> None:
    assert cut(movie, 1, 2, out, expected=record(movie)).has_sound
    assert number_in(frame_at(movie, 1, expected=record(movie))) == 10


@pytest.mark.parametrize("kind", ["gone", "touched", "replaced"])
def test_a_file_that_is_not_the_one_indexed(movie: Path, out: Path, kind: str) -> None:
    expected = record(movie)
    if kind == "gone":
        movie.unlink()
    elif kind == "touched":
        os.utime(movie, ns=(0, 1))
    else:
        movie.write_bytes(movie.read_bytes() + b"\0")
    calls: list[Any] = [
        lambda: cut(movie, 1, 2, out, expected=expected),
        lambda: cut(movie, 1, 2, out, expected=expected, mode="copy"),
        lambda: frame_at(movie, 1, expected=expected),
        lambda: frames_between(movie, 1, 2, expected=expected),
    ]
    for call in calls:
        with pytest.raises(MomentSourceError, match="xclip-deploy index") as raised:
            call()
        assert isinstance(raised.value, VideoError)
        assert "\n" not in str(raised.value)
    assert list(out.parent.iterdir()) == []


def test_a_file_that_changes_while_it_is_read(
    movie: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = source.MomentSource.shown

    def grow(self: Any, *arguments: Any) -> Iterator[Any]:
        yield from shown(self, *arguments)
        with movie.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(source.MomentSource, "shown", grow)
    with pytest.raises(MomentSourceError, match="changed while it was read"):
        cut(movie, 1, 2, out)
    assert list(out.parent.iterdir()) == []


def test_no_video(tmp_path: Path, out: Path) -> None:
    with pytest.raises(VideoNotFoundError):
        cut(tmp_path / "none.mp4", 0, 1, out)
    for name, content in {
        "empty.mp4": b"",
        "text.mp4": b"no video at all\n" * 100,
        "list.mp4": b"#EXTM3U\n#EXTINF:2,\n/etc/passwd\n",
        "concat.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        for mode in MODES:
            with pytest.raises(VideoReadError):
                cut(tmp_path / name, 0, 1, out, mode=mode)  # type: ignore[arg-type]
    with pytest.raises(VideoReadError, match="no regular file"):
        cut(tmp_path, 0, 1, out)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_is_there_stays(movie: Path, out: Path, mode: Any) -> None:
    out.write_bytes(b"mine")
    with pytest.raises(InvalidArgumentError, match="overwrite"):
        cut(movie, 1, 2, out, mode=mode)
    with pytest.raises(InvalidArgumentError, match="outside"):
        cut(movie, 10, 20, out, mode=mode, overwrite=True)
    assert out.read_bytes() == b"mine"
    cut(movie, 1, 2, out, mode=mode, overwrite=True)
    assert decode(out).numbers
    assert [each.name for each in out.parent.iterdir()] == [out.name]


def test_the_video_itself_is_no_target(movie: Path, tmp_path: Path) -> None:
    before = movie.read_bytes()
    link = tmp_path / "link.mp4"
    link.symlink_to(movie)
    for target in (movie, link):
        with pytest.raises(InvalidArgumentError, match="the video itself"):
            cut(movie, 1, 2, target, overwrite=True)
    assert movie.read_bytes() == before


@pytest.mark.parametrize("name", ["m", "m.gif", "m.mp3", "m.mp4.txt", "none/m.mp4"])
def test_targets_that_are_none(movie: Path, out: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        cut(movie, 1, 2, out.parent / name)
    if "/" not in name:
        assert ".mp4, .m4v, .mov, .mkv, .webm" in str(raised.value)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    "wrong", [{"mode": "fast"}, {"pad_s": -1}, {"pad_s": float("inf")}, {"overwrite": 1}]
)
def test_arguments_that_are_none(movie: Path, out: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        cut(movie, 1, 2, out, **wrong)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk(movie: Path, full_disk: Path, mode: Any, ending: str) -> None:
    with pytest.raises(InvalidArgumentError, match="No space left on device") as raised:
        cut(movie, 0, 6, full_disk / f"m{ending}", mode=mode)
    assert "cannot be written" in str(raised.value)
    assert list(full_disk.iterdir()) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_limit_of_file_sizes(movie: Path, out: Path, mode: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(InvalidArgumentError, match="cannot be written"):
            cut(movie, 0, 6, out, mode=mode)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(out.parent.iterdir()) == []


def damaged(path: Path, start: float, end: float) -> None:
    """Overwrite a part of a file, given in shares of its length."""
    content = bytearray(path.read_bytes())
    first, last = round(start * len(content)), round(end * len(content))
    content[first:last] = (
        np.random.default_rng(1).integers(0, 256, last - first, np.uint8).tobytes()
    )
    path.write_bytes(content)


def test_damage_in_the_middle(tmp_path: Path, out: Path) -> None:
    # In a transport stream, the sound does not lie at the end.
    path = write_movie(tmp_path / "v.ts", seconds=12, rate=25, sounds=(), options={"g": "25"})
    damaged(path, 0.45, 0.55)
    length = source.MomentSource(path).length_s
    assert length == pytest.approx(12, abs=0.1)
    before, after = cut(path, 1, 3, out), cut(path, 8, 10, out.with_name("n.mp4"))
    assert before.warnings == after.warnings == ()
    assert len(decode(before.path).numbers) == 50
    assert decode(after.path).numbers == list(range(200, 250))
    inside = cut(path, 4, 8, out.with_name("o.mp4"))
    assert inside.warnings == ("frames are missing from 0:05.3 to 0:06.6",)
    assert (inside.start_s, inside.end_s) == (4, 8)
    frames, times = frames_between(inside.path, 0, 4)
    assert len(frames) > 50
    # What survives is at its time.
    for number, time in ((110, 0.4), (195, 3.8)):
        assert number_in(frame_at(inside.path, time + 0.01)) == number
    assert (np.diff(times) > 0).all()
    assert frame_at(path, 5.9).shape == (96, 96, 3)


def test_a_truncated_file(tmp_path: Path, out: Path) -> None:
    path = write_movie(tmp_path / "v.mkv", seconds=12, sounds=())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    length = source.MomentSource(path).length_s
    assert 4 < length < 11
    done = cut(path, 2, 4, out)
    assert decode(done.path).numbers == list(range(20, 40))
    assert any("truncated" in each for each in done.warnings)
    with pytest.raises(InvalidArgumentError, match="outside the video"):
        cut(path, 11, 12, out.with_name("n.mp4"))


def test_edit_lists(clips: Path, tmp_path: Path) -> None:
    path = clips / "conditions/tail_trimmed_by_edit_list.mp4"
    assert source.MomentSource(path).length_s == pytest.approx(3, abs=0.05)
    done = cut(path, 1, 3, tmp_path / "m.mp4")
    assert source.MomentSource(done.path).length_s == pytest.approx(2, abs=0.05)
    with pytest.raises(InvalidArgumentError, match="outside"):
        cut(path, 2, 5, tmp_path / "n.mp4")
    copied = cut(path, 1, 3, tmp_path / "c.mp4", mode="copy")
    assert source.MomentSource(copied.path).length_s == pytest.approx(
        copied.end_s - copied.start_s, abs=0.05
    )
