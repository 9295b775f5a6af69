"""Services over the small bundle and a gallery of generated clips.

``api`` is one client of one service for the whole run: tests read from it, and leave its gallery
and its settings alone. ``open_service`` opens services of a test's own, each with a copy of the
gallery. ``live_address`` and ``open_live`` do the same over a real socket.

The service refuses strange hosts, so that a client of a test's own needs
``TestClient(app, base_url=BASE_URL)``, as in ``running_services``.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cluster_galleries import divide
from numbered_movies import write_movie
from running_services import BASE_URL, OpenLive, OpenService, served
from starlette.testclient import TestClient
from stored_uploads import SETTINGS

from xclip_deploy import Bundle, Retriever, SessionOptions
from xclip_deploy.runtime.indexing import IndexReport
from xclip_deploy.service import ServiceSettings, create_app
from xclip_deploy.service.jobs import queue, work
from xclip_deploy.training.datasets.generated import SplitSizes, make_videos

LONG_SECONDS = 40


@pytest.fixture(scope="session")
def videos_path(once_per_run: Callable[..., Path]) -> Path:
    """A folder of real clips: six of shapes, with captions, and a long one of numbered frames.

    ``shapes/captions.csv`` names ``train/0000.mp4`` and so on. ``numbers.mp4`` lasts 40 s at 10
    frames a second and has sound; ``number_in`` of ``numbered_movies`` reads its frames. Not to be
    changed.
    """

    def fill(folder: Path) -> None:
        make_videos(folder / "shapes", SplitSizes(train=4, val=1, test=1))
        write_movie(folder / "numbers.mp4", LONG_SECONDS, sounds=((0, LONG_SECONDS),))

    return once_per_run("service-videos", fill)


@pytest.fixture(scope="session")
def gallery_path(once_per_run: Callable[..., Path], bundle_path: Path, videos_path: Path) -> Path:
    """A gallery of those clips with the metadata ``caption`` and ``split``. Not to be changed."""

    def fill(folder: Path) -> None:
        with Retriever(bundle_path, folder / "gallery", create=True, device="cpu") as retriever:
            options: dict[str, Any] = {"workers": 1, "segment": "8s"}
            report = retriever.add([videos_path / "shapes" / "captions.csv"], **options)
            metadata = {"caption": "numbers", "split": "none"}
            more = retriever.add([videos_path / "numbers.mp4"], metadata=metadata, **options)
            assert len(report.indexed) == 6, report
            assert len(more.indexed) == 1, more

    return once_per_run("service-gallery", fill) / "gallery"


@pytest.fixture(scope="session")
def sharded_path(once_per_run: Callable[..., Path], bundle_path: Path, gallery_path: Path) -> Path:
    """The same gallery in two shards, each with the pictures of its own. Not to be changed."""

    def fill(folder: Path) -> None:
        divide(gallery_path, folder / "sharded", Bundle.open(bundle_path), 2)

    return once_per_run("service-shards", fill) / "sharded"


@pytest.fixture(scope="session")
def settings_of(
    tmp_path_factory: pytest.TempPathFactory, bundle_path: Path, gallery_path: Path
) -> Callable[..., ServiceSettings]:
    """Make settings of a service with its own copy of the gallery; keywords override them."""

    def settings(**changes: Any) -> ServiceSettings:
        folder = tmp_path_factory.mktemp("service")
        shutil.copytree(gallery_path, folder / "gallery")
        values: dict[str, Any] = {
            "bundle": bundle_path,
            "gallery": folder / "gallery",
            "data": folder / "data",
            "session": SessionOptions(device="cpu", threads=1),
            "workers": 1,
        }
        return ServiceSettings(**{**values, **changes})

    return settings


@pytest.fixture(scope="session")
def api(settings_of: Callable[..., ServiceSettings]) -> Iterator[TestClient]:
    """A client of a service in this process. Its gallery is not to be changed."""
    with TestClient(create_app(settings_of()), base_url=BASE_URL) as client:
        yield client


@pytest.fixture
def open_service(settings_of: Callable[..., ServiceSettings]) -> Iterator[OpenService]:
    """Open a service of a test's own; keywords are settings. ``headers``: those of every request.

    ``client.app.state.service`` is the :class:`Service`.
    """
    with ExitStack() as stack:

        def opened(*, headers: dict[str, str] | None = None, **changes: Any) -> TestClient:
            client = TestClient(
                create_app(settings_of(**changes)), base_url=BASE_URL, headers=headers
            )
            entered: TestClient = stack.enter_context(client)
            return entered

        yield opened


@pytest.fixture(scope="session")
def live_address(settings_of: Callable[..., ServiceSettings]) -> Iterator[str]:
    """The address of a real server in a thread. Its gallery is not to be changed."""
    with served(settings_of()) as address:
        yield address


@pytest.fixture
def open_live(settings_of: Callable[..., ServiceSettings]) -> Iterator[OpenLive]:
    """Start real servers of a test's own; keywords are settings. Gives the address."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(served(settings_of(**changes)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, videos_path: Path, clips: Path) -> Path:
    """A folder of clips that no gallery of the fixtures has, beside two that it has."""
    path = tmp_path_factory.mktemp("allowed")
    for name in ("mdn_frog.webm", "sam2_dog.mp4"):
        shutil.copy(clips / name, path)
    for name in ("0000.mp4", "0001.mp4"):
        shutil.copy(videos_path / "shapes" / "train" / name, path)
    return path


@pytest.fixture(scope="module")
def desk(settings_of: Callable[..., ServiceSettings], folder: Path) -> Iterator[TestClient]:
    """A service with that folder."""
    with TestClient(create_app(settings_of(roots=(folder,))), base_url=BASE_URL) as client:
        yield client


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Jobs wait, once they run, until the event is set. A job that is asked to stop goes on."""
    release = threading.Event()
    index_videos = work.index_videos

    def waiting(*words: Any) -> IndexReport:
        control: work.Control = words[5]
        while not release.wait(0.02):
            control.pulse()
        return index_videos(*words)

    monkeypatch.setattr(queue, "index_videos", waiting)
    yield release
    release.set()


@pytest.fixture(scope="module")
def shop(settings_of: Callable[..., ServiceSettings]) -> Iterator[TestClient]:
    """A service with small limits, for all tests that leave nothing behind."""
    with TestClient(create_app(settings_of(**SETTINGS)), base_url=BASE_URL) as client:
        yield client
