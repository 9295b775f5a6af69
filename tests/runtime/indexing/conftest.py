"""Galleries, and indexing with an encoder that needs no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from indexing_stand_ins import index_files, manifest

from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.indexing import IndexReport

Index = Callable[..., IndexReport]


@pytest.fixture(params=["memory", "lancedb"])
def gallery(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Gallery]:
    if request.param == "memory":
        opened = Gallery(manifest())
    else:
        opened = Gallery.open(tmp_path / "gallery", manifest(), create=True)
    yield opened
    opened.close()


@pytest.fixture
def index(gallery: Gallery) -> Index:
    """Index paths into the gallery with two decoders."""

    def run(*paths: Path, **options: Any) -> IndexReport:
        settings = {"max_batch": 4, **options.pop("settings", {})}
        return index_files(gallery, *paths, settings=settings, **options)

    return run
