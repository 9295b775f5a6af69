"""Exports that tests keep between runs: what their key covers, and that runs get copies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kept_exports import export_or_copy, key_of

FOLDERS = ("runtime", "training", "export", "xclip_deploy")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of one module a folder, and an input beside it."""
    root = tmp_path / "clone"
    for name in FOLDERS:
        (root / name).mkdir(parents=True)
        (root / name / "module.py").write_text("x = 1\n")
    (tmp_path / "checkpoint.pt").write_bytes(b"weights")
    return root


@pytest.mark.parametrize("name", FOLDERS)
def test_the_key_changes_with_every_file(clone: Path, name: str) -> None:
    checkpoint = clone.parent / "checkpoint.pt"
    key = key_of([checkpoint], clone)
    assert key_of([checkpoint], clone) == key
    (clone / name / "module.pyc").write_bytes(b"compiled")
    assert key_of([checkpoint], clone) == key
    (clone / name / "module.py").write_text("x = 2\n")
    changed = key_of([checkpoint], clone)
    (clone / name / "module.py").rename(clone / name / "other.py")
    assert len({key, changed, key_of([checkpoint], clone)}) == 3


def test_the_key_changes_with_inputs(clone: Path) -> None:
    checkpoint = clone.parent / "checkpoint.pt"
    key = key_of([checkpoint], clone)
    checkpoint.write_bytes(b"other weights")
    assert key_of([checkpoint], clone) != key


@pytest.fixture
def fill(
    pytestconfig: pytest.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, bytes], Path]:
    """Fill a new folder as a run does whose export writes ``content``."""
    cache = pytest.Cache(tmp_path / "cache", pytestconfig, _ispytest=True)
    monkeypatch.setattr(pytestconfig, "cache", cache, raising=False)
    source = tmp_path / "checkpoint.pt"

    def run(weights: str, content: bytes) -> Path:
        source.write_text(weights)
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

        def export(path: Path) -> None:
            (path / "graph.onnx").write_bytes(content)

        export_or_copy(pytestconfig, "made", [source], export, folder)
        return folder / "graph.onnx"

    return run


def test_an_export_is_kept_and_its_copies_are_the_runs_own(
    fill: Callable[[str, bytes], Path],
) -> None:
    first = fill("one", b"first")
    assert first.read_bytes() == b"first"
    first.write_bytes(b"spoilt by a test")
    assert fill("one", b"not exported again").read_bytes() == b"first"
    assert fill("two", b"another").read_bytes() == b"another"


def test_an_export_that_fails_is_not_kept(
    fill: Callable[[str, bytes], Path], tmp_path: Path
) -> None:
    with pytest.raises(TypeError):
        fill("one", "no bytes")  # type: ignore[arg-type]
    assert fill("one", b"whole").read_bytes() == b"whole"


def test_the_newest_are_kept(fill: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    for number in range(5):
        fill(str(number), b"%d" % number)
    assert len(list((tmp_path / "cache").rglob("graph.onnx"))) == 3
    assert fill("4", b"again").read_bytes() == b"4"
    assert fill("0", b"again").read_bytes() == b"again"
