"""Services over clips of many codecs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from media_samples import CLIPS, SAMPLES, SECONDS, Media, OpenMedia, Own, opened
from numbered_movies import write_movie

from xclip_deploy import Retriever
from xclip_deploy.service import ServiceSettings
from xclip_deploy.service.media import MediaLibrary

NUM_OWN = 16
_OWN = count()


@pytest.fixture(scope="session")
def samples_path(once_per_run: Callable[..., Path], clips: Path) -> Path:
    """The folder of the samples. Not to be changed."""

    def fill(folder: Path) -> None:
        for name, options in SAMPLES.items():
            write_movie(folder / name, SECONDS, **options)
        for name in CLIPS:
            (folder / Path(name).name).write_bytes((clips / name).read_bytes())

    return once_per_run("media-samples", fill)


@pytest.fixture(scope="session")
def samples_gallery(
    once_per_run: Callable[..., Path], bundle_path: Path, samples_path: Path
) -> Path:
    """A gallery of the samples. Not to be changed."""

    def fill(folder: Path) -> None:
        with Retriever(bundle_path, folder / "gallery", create=True, device="cpu") as retriever:
            report = retriever.add([samples_path], workers=1, segment="4s")
            assert len(report.indexed) == len(SAMPLES) + len(CLIPS), report
            found = {Path(str(video.path)).name: video for video in retriever.gallery.videos()}
        handles = {name: video.content_sha256 for name, video in found.items()}
        (folder / "gallery" / "handles.json").write_text(json.dumps(handles))

    return once_per_run("media-gallery", fill) / "gallery"


@pytest.fixture(scope="session")
def media(settings_of: Callable[..., ServiceSettings], samples_gallery: Path) -> Iterator[Media]:
    """One service for tests that read."""
    with ExitStack() as stack:
        yield opened(stack, settings_of(gallery=samples_gallery, read_only=True))


@pytest.fixture
def open_media(media: Media, tmp_path: Path) -> Iterator[OpenMedia]:
    """Give the service another library with a data folder of its own, until the test's end.

    The keywords are those of :class:`MediaLibrary`, and ``data``.
    """
    service = media.service
    kept, made = service.media, count()

    def open_one(*, data: Path | None = None, **options: Any) -> Media:
        folder = data or tmp_path / f"data-{next(made)}"
        settings = replace(service.settings, data=folder)
        if service.media is not kept:
            service.media.close()
        service.media = MediaLibrary(settings, service.served, service.metrics, **options)
        return media

    yield open_one
    if service.media is not kept:
        service.media.close()
    service.media = kept


@pytest.fixture(scope="session")
def spoilt_media(
    settings_of: Callable[..., ServiceSettings],
    bundle_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Media]:
    """A service over movies of which each test spoils one; see ``own``."""
    folder = tmp_path_factory.mktemp("spoilt")
    for number in range(NUM_OWN):
        path = folder / f"{number}" / f"movie-{number}.mp4"
        path.parent.mkdir()
        write_movie(path, 4 + number / 10, sounds=[(0, 4)])
    gallery = folder / "gallery"
    with Retriever(bundle_path, gallery, create=True, device="cpu") as retriever:
        retriever.add([folder], workers=1, segment="4s", thumbnails=False)
    with ExitStack() as stack:
        yield opened(stack, settings_of(gallery=gallery))


@pytest.fixture
def own(spoilt_media: Media) -> Own:
    """A movie of the test's own, which it may spoil, in a folder without others."""
    name = f"movie-{next(_OWN)}.mp4"
    return Own(spoilt_media, name, spoilt_media.path(name))
