"""What tests of every part share: one real bundle, golden numbers, real clips."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

import xclip_deploy
from xclip_deploy import Bundle, Retriever

# The time of one example says nothing on a machine that does other work.
settings.register_profile("xclip-deploy", deadline=None)
settings.load_profile("xclip-deploy")

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def checkpoint_path() -> Path:
    """A checkpoint as the authors' training writes it, of small dimensions."""
    return TESTS / "golden" / "xclip_tiny" / "pytorch_model.bin"


@pytest.fixture(scope="session")
def bundle_path(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, checkpoint_path: Path
) -> Path:
    """The bundle of that checkpoint, exported once per test run. Not to be changed.

    Workers of pytest-xdist share it: the first to take the lock exports, the others wait.
    """
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent
    path = folder / "exported" / "xclip-bundle"
    path.parent.mkdir(exist_ok=True)
    with (path.parent / "lock").open("w") as lock:
        # Freed by the system should a worker die, so that no other waits for ever.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            xclip_deploy.export_bundle(checkpoint_path, path)
    return path


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
