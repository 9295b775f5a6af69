"""Finding the interpreter for child processes, as in a program that embeds Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from indexing_stand_ins import READING

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.child_process import PYTHON_VARIABLE, find_python, python_command
from xclip_deploy.runtime.decoding import DecoderPool, FileContent


def runs_this_python(program: str) -> bool:
    code = "import sys; print(*sys.version_info[:2])"
    said = subprocess.run([program, "-c", code], capture_output=True, text=True, check=True).stdout
    return said.split() == list(map(str, sys.version_info[:2]))


@pytest.fixture(autouse=True)
def not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)


def test_the_running_interpreter_is_taken() -> None:
    assert python_command("a.b") == (sys.executable, "-m", "a.b")


@pytest.mark.parametrize("executable", [None, "", "/usr/bin/env", "/no/such/bin/python3"])
def test_another_program_that_embeds_python(
    executable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    found = find_python()
    assert Path(found).parent == Path(sys.prefix, "bin")
    assert runs_this_python(found)


def test_videos_are_read_under_another_program(
    make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("a.mp4", 0)  # type: ignore[operator]
    monkeypatch.setattr(sys, "executable", None)
    with DecoderPool[str](READING, workers=1) as pool:
        pool.submit("a", path)
        taken = pool.take()
    assert taken is not None
    assert isinstance(taken[1], FileContent)


def test_the_interpreter_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = tmp_path / "my-interpreter"
    chosen.symlink_to(sys.executable)
    monkeypatch.setenv(PYTHON_VARIABLE, str(chosen))
    assert find_python() == str(chosen)
    monkeypatch.setenv(PYTHON_VARIABLE, "")  # as if not set
    assert find_python() == sys.executable
    for wrong in (tmp_path / "gone", tmp_path):
        monkeypatch.setenv(PYTHON_VARIABLE, str(wrong))
        with pytest.raises(InvalidArgumentError, match=f"{PYTHON_VARIABLE} is {wrong}; expected"):
            DecoderPool[str](READING)


def test_no_interpreter_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/sbin/uwsgi")
    for name in ("prefix", "exec_prefix", "base_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, str(tmp_path))
    with pytest.raises(InvalidArgumentError, match=f"uwsgi'; set {PYTHON_VARIABLE} to the path"):
        find_python()
