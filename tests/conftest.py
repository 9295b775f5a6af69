"""What tests of every part share: one real bundle, golden numbers, real clips."""

from __future__ import annotations

import fcntl
import gc
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from kept_exports import export_or_copy

from xclip_deploy import Bundle, Retriever

# The time of one example says nothing on a machine that does other work. The second profile is for
# a search at length: python3 dev.py test --hypothesis-profile thorough
settings.register_profile("xclip-deploy", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("xclip-deploy")

TESTS = Path(__file__).resolve().parent
OncePerRun = Callable[[str, Callable[[Path], object]], Path]
OncePerCode = Callable[[str, Iterable[Path], Callable[[Path], object]], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes the golden pictures anew."""
    parser.addoption(
        "--regenerate-pictures", action="store_true", help="Write the golden pictures anew."
    )


def pytest_configure() -> None:
    """Let tests see records from INFO on.

    pytest's ``log_level`` sets it anew three times a test, and each time logging forgets which of
    its hundreds of loggers are on.
    """
    logging.getLogger().setLevel(logging.INFO)


def pytest_collection_finish() -> None:
    """Look for garbage less often: tests and libraries, which it would visit, are no garbage."""
    gc.set_threshold(10_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need an export come first, so that they begin on one worker.

    pytest-xdist gives each a run of neighbours: else both workers would wait for one export.
    """
    items.sort(key=lambda item: "once_per_run" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def checkpoint_path() -> Path:
    """A checkpoint as the authors' training writes it, of small dimensions."""
    return TESTS / "golden" / "xclip_tiny" / "pytorch_model.bin"


@pytest.fixture(scope="session")
def once_per_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> OncePerRun:
    """Give the folder of a name, which the first to ask fills. Not to be changed.

    Workers of pytest-xdist share it: one takes the lock and fills, the others wait. An export
    takes half a minute, so that this saves more than it costs. The folder moves once filled.
    """
    base = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        base = base.parent
    base = base / "once-per-run"
    base.mkdir(exist_ok=True)

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        path = base / name
        with (base / f"{name}.lock").open("w") as lock:
            # Freed by the system should a worker die, so that no other waits for ever.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                unfinished = base / f"{name}.partial"
                shutil.rmtree(unfinished, ignore_errors=True)  # of one that failed
                unfinished.mkdir()
                fill(unfinished)
                unfinished.rename(path)
        return path

    return folder


@pytest.fixture(scope="session")
def once_per_code(request: pytest.FixtureRequest, once_per_run: OncePerRun) -> OncePerCode:
    """Give the folder of a name, as ``once_per_run``; later runs of the same code copy it.

    See ``kept_exports``. The second argument names files besides the package's that it depends on.
    """

    def folder(name: str, sources: Iterable[Path], fill: Callable[[Path], object]) -> Path:
        return once_per_run(name, partial(export_or_copy, request.config, name, sources, fill))

    return folder


@pytest.fixture(scope="session")
def bundle_path(once_per_code: OncePerCode, checkpoint_path: Path) -> Path:
    """The bundle of that checkpoint, by the README's command. Not to be changed.

    What the command printed is beside it, in ``export.txt``.
    """

    def export(folder: Path) -> None:
        program = Path(sys.executable).with_name("xclip-deploy")
        command: list[str | Path] = [program, "export", checkpoint_path]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (folder / "export.txt").write_text(done.stdout, encoding="utf-8")

    return once_per_code("golden", [checkpoint_path, Path(__file__)], export) / "xclip-bundle"


@pytest.fixture(scope="session")
def worker_id(request: pytest.FixtureRequest) -> str:
    """``gw0`` and so on under pytest-xdist, else ``master``; there without the plugin too."""
    worker_input: dict[str, str] = getattr(request.config, "workerinput", {})
    return worker_input.get("workerid", "master")


@pytest.fixture
def bundle_copy(bundle_path: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the bundle that a test may damage."""
    path = tmp_path / "bundle-copy"
    shutil.copytree(bundle_path, path)
    yield path
    # pytest keeps the folders of three runs; 26 MB a test would add up.
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Bundle:
    """The exported bundle, opened."""
    return Bundle.open(bundle_path)


@pytest.fixture(scope="session")
def golden() -> dict[str, npt.NDArray[Any]]:
    """Inputs and outputs of the authors' code for the checkpoint of ``bundle_path``."""
    with np.load(TESTS / "golden" / "xclip_tiny" / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips that the repository holds."""
    return TESTS / "clips"


@pytest.fixture
def retriever(bundle: Bundle) -> Iterator[Retriever]:
    """An empty retriever. On the CPU, so that results do not depend on the machine."""
    with Retriever(bundle, device="cpu") as opened:
        yield opened
