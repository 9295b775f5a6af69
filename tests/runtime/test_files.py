from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy.errors import AnnotationError, InvalidArgumentError
from xclip_deploy.runtime import files
from xclip_deploy.runtime.files import (
    replace_text,
    replaced_directory,
    replaced_file,
    require_regular_file,
)

NAMES = ("target", "odd [1] * ? name", "é 🎬", ".hidden")


@pytest.fixture(params=["renameat2", "two renames"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to swap directories; not every file system knows the first."""
    way: str = request.param
    if way == "two renames":
        monkeypatch.setattr(ctypes, "CDLL", no_library)
    return way


def no_library(*args: Any, **kwargs: Any) -> Any:
    raise OSError("as if the C library had no renameat2")


def fill(directory: Path, text: str) -> None:
    (directory / "sub").mkdir()
    (directory / "sub" / "file").write_text(text)


def content(directory: Path) -> str:
    return (directory / "sub" / "file").read_text()


def replace_with(target: Path, text: str) -> None:
    with replaced_directory(target) as directory:
        fill(directory, text)


def fail_with(target: Path, error: BaseException) -> None:
    with replaced_directory(target) as directory:
        fill(directory, "half")
        raise error


def write_file(file: Path, text: bytes) -> None:
    with replaced_file(file) as partial:
        partial.write_bytes(text)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# Directories


@pytest.mark.parametrize("name", NAMES)
def test_a_new_directory(tmp_path: Path, name: str) -> None:
    replace_with(tmp_path / name, "new")
    assert content(tmp_path / name) == "new"
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize("name", NAMES)
def test_an_old_directory_is_replaced(tmp_path: Path, exchange: str, name: str) -> None:
    target = tmp_path / name
    replace_with(target, "old")
    (target / "more").touch()
    replace_with(target, "new")
    assert content(target) == "new"
    assert names_in(target) == ["sub"]
    assert names_in(tmp_path) == [name]


def test_the_target_stands_until_the_end(tmp_path: Path, exchange: str) -> None:
    target = tmp_path / "target"
    replace_with(target, "old")
    with replaced_directory(target) as directory:
        fill(directory, "new")
        assert directory.parent == target.parent  # the same file system
        assert content(target) == "old"
    assert content(target) == "new"


def test_both_exchanges_are_really_taken(
    tmp_path: Path, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = []
    rename = Path.rename

    def spy(self: Path, target: Path) -> Path:
        renamed.append(self.name)
        return rename(self, target)

    replace_with(tmp_path / "target", "old")
    monkeypatch.setattr(Path, "rename", spy)
    replace_with(tmp_path / "target", "new")
    assert len(renamed) == {"renameat2": 0, "two renames": 3}[exchange]


def test_parents_are_made(tmp_path: Path) -> None:
    replace_with(tmp_path / "a" / "b" / "c", "new")
    assert content(tmp_path / "a" / "b" / "c") == "new"


def test_a_relative_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    replace_with(Path("target"), "old")
    replace_with(Path("target"), "new")
    assert content(tmp_path / "target") == "new"


def test_a_link_stays_a_link(tmp_path: Path, exchange: str) -> None:
    replace_with(tmp_path / "version-3", "old")
    (tmp_path / "current").symlink_to("version-3")
    replace_with(tmp_path / "current", "new")
    assert (tmp_path / "current").readlink() == Path("version-3")
    assert content(tmp_path / "version-3") == "new"
    assert names_in(tmp_path) == ["current", "version-3"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_with(tmp_path / "target", "new")
        write_file(tmp_path / "file", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("name", NAMES)
def test_after_an_exception_the_old_directory_stands(
    tmp_path: Path, error: BaseException, name: str
) -> None:
    target = tmp_path / name
    with pytest.raises(type(error)):
        fail_with(target, error)
    assert names_in(tmp_path) == []
    replace_with(target, "old")
    with pytest.raises(type(error)):
        fail_with(target, error)
    assert content(target) == "old"
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize("failing", [1, 2])
def test_an_exchange_that_fails_leaves_the_old_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The first or the second rename of the fallback."""
    target = tmp_path / "target"
    replace_with(target, "old")
    calls = []
    rename = Path.rename

    def fail_once(self: Path, new: Path) -> Path:
        calls.append(new)
        if len(calls) == failing:
            raise PermissionError("not allowed")
        return rename(self, new)

    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", no_library)
        patch.setattr(Path, "rename", fail_once)
        with pytest.raises(PermissionError):
            replace_with(target, "new")
    assert len(calls) >= failing
    assert content(target) == "old"
    assert names_in(tmp_path) == ["target"]


KILLED = """
import os, signal, sys
from pathlib import Path
from xclip_deploy.runtime import files

target, moment = Path(sys.argv[1]), sys.argv[2]
if moment == "between the renames":
    import ctypes

    def no_library(*args, **kwargs):
        raise OSError

    ctypes.CDLL = no_library
    rename = Path.rename

    def rename_and_die(self, new):
        rename(self, new)
        os.kill(os.getpid(), signal.SIGKILL)

    Path.rename = rename_and_die
with files.replaced_directory(target) as directory:
    (directory / "sub").mkdir()
    (directory / "sub" / "file").write_text("half")
    if moment == "while writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run_killed(target: Path, moment: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, target, moment], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_writer_leaves_the_old_directory(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    replace_with(target, "old")
    run_killed(target, "while writing")
    assert content(target) == "old"
    assert len(names_in(tmp_path)) == 2
    replace_with(target, "new")
    assert content(target) == "new"
    assert names_in(tmp_path) == [name]  # and its unfinished directory is gone


def test_a_killed_writer_of_a_new_directory_leaves_none(tmp_path: Path) -> None:
    target = tmp_path / "target"
    run_killed(target, "while writing")
    assert not target.exists()
    replace_with(target, "new")
    assert names_in(tmp_path) == ["target"]


def test_killed_between_the_two_renames_of_the_fallback(tmp_path: Path) -> None:
    """The one moment without a target: the old directory waits beside it for the next call."""
    target = tmp_path / "target"
    replace_with(target, "old")
    run_killed(target, "between the renames")
    assert not target.exists()
    with pytest.raises(ValueError, match="wrong"):
        fail_with(target, ValueError("wrong"))
    assert content(target) == "old"
    assert names_in(tmp_path) == ["target"]


def test_the_unfinished_directory_of_a_living_writer_stays(tmp_path: Path) -> None:
    target = tmp_path / "target"
    dead = tmp_path / f".target.partial-{'0' * 16}"
    foreign = tmp_path / ".target.partial-notes"
    neighbour = tmp_path / f".target2.partial-{'0' * 16}"
    for directory in (dead, foreign, neighbour):
        directory.mkdir()
    with replaced_directory(target) as outer:
        fill(outer, "outer")
        replace_with(target, "inner")  # as another thread or process might
        assert content(outer) == "outer"
    assert content(target) == "outer"
    assert names_in(tmp_path) == sorted([foreign.name, neighbour.name, "target"])


def test_a_writer_that_exchanges_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the fallback is between its renames, another writer begins."""
    target = tmp_path / "target"
    replace_with(target, "old")
    rename = Path.rename
    seen = []

    def look(self: Path, new: Path) -> Path:
        renamed = rename(self, new)
        if not target.exists():
            files._remove_abandoned(target)
            seen.append(target.exists())
        return renamed

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    monkeypatch.setattr(Path, "rename", look)
    replace_with(target, "new")
    assert seen == [False]
    assert content(target) == "new"
    assert names_in(tmp_path) == ["target"]


def test_several_threads_leave_one_whole_directory(tmp_path: Path) -> None:
    target = tmp_path / "target"
    replace_with(target, "first")
    texts = [str(number) * 1000 for number in range(8)]
    threads = [threading.Thread(target=replace_with, args=(target, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content(target) in texts
    assert names_in(tmp_path) == ["target"]


# Files


@pytest.mark.parametrize("name", NAMES)
def test_write_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    write_file(file, b"old")
    write_file(file, b"new\0\xff")
    assert file.read_bytes() == b"new\0\xff"
    assert names_in(tmp_path) == [name]


def test_a_file_that_cannot_be_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_file(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            write_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


def test_a_killed_writer_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_file(file, b"old")
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from xclip_deploy.runtime.files import replaced_file\n"
        "with replaced_file(Path(sys.argv[1])) as partial:\n"
        "    partial.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, file], check=False)
    assert done.returncode == -signal.SIGKILL
    assert file.read_bytes() == b"old"
    assert len(names_in(tmp_path)) == 2
    write_file(file, b"new")
    assert names_in(tmp_path) == ["file"]


def test_a_file_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "none" / "file", b"new")


def test_a_text_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    replace_text(file, "é 🎬\n")
    assert file.read_bytes() == "é 🎬\n".encode()
    with pytest.raises(UnicodeEncodeError):
        replace_text(file, "no text: \ud800")
    assert file.read_bytes() == "é 🎬\n".encode()
    assert names_in(tmp_path) == ["notes.txt"]


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to pipe").symlink_to("pipe")
    for name in ("file", "link"):
        require_regular_file(tmp_path / name, "a list")
    for name in ("pipe", "link to pipe"):
        with pytest.raises(InvalidArgumentError, match="no regular file but a pipe; expected a li"):
            require_regular_file(tmp_path / name, "a list")
    with pytest.raises(AnnotationError, match="is no regular file but a folder; expected a list"):
        require_regular_file(tmp_path, "a list", AnnotationError)
    for device in ("/dev/null", "/dev/zero"):
        with pytest.raises(InvalidArgumentError, match="is no regular file but a device"):
            require_regular_file(Path(device), "a list")
    with pytest.raises(FileNotFoundError):
        require_regular_file(tmp_path / "none", "a list")
