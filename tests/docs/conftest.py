"""A folder for each page with what its commands expect, and a shell that runs its blocks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import shared_registry
from command_line import runner
from documented_inputs import MODEL, write_inputs
from page_runner import EXPORT, PageRunner

OncePerCode = Callable[[str, Iterable[Path], Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def documented_inputs(once_per_code: OncePerCode, clips: Path) -> Path:
    """A trained checkpoint, its exported bundle, and videos. Not to be changed.

    What the export printed is in ``export.txt``.
    """
    tests = Path(__file__).resolve().parents[1]
    sources = [
        MODEL,
        Path(__file__),
        clips / "sam2_dog.mp4",
        *(
            tests / "packages" / f"{name}.py"
            for name in ("documented_inputs", "page_runner", "shared_registry")
        ),
    ]

    def write(folder: Path) -> None:
        write_inputs(folder)
        for name in ("dog.mp4", "videos/dog.mp4"):
            shutil.copy(clips / "sam2_dog.mp4", folder / name)
        shutil.copy(folder / "tour.mkv", folder / "talk.mkv")
        command = [sys.executable, shared_registry.__file__, *EXPORT.split()[1:]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (folder / "export.txt").write_text(done.stdout, encoding="utf-8")

    return once_per_code("documented", sources, write)


@pytest.fixture
def page_runner(
    documented_inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[PageRunner]:
    """A runner in a folder of its own with the inputs."""
    folder = tmp_path / "page"
    # The product replaces files and never writes into them, so that links are copies.
    shutil.copytree(documented_inputs, folder, copy_function=os.link)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("XCLIP_DEPLOY_CACHE", "")
    with PageRunner(folder, runner(capfd), capfd, monkeypatch) as opened:
        yield opened
    shutil.rmtree(folder, ignore_errors=True)
