"""Every kind of store, for what all must do alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gallery_samples import (
    DIM,
    FRAMES,
    NOTHING_IN_MEMORY,
    entries,
    lance_store,
    sample,
)

from xclip_deploy import Bundle
from xclip_deploy.runtime.gallery import Gallery, GalleryStore, Snapshot
from xclip_deploy.runtime.gallery.memory_store import MemoryStore
from xclip_deploy.runtime.manifest import Manifest

KINDS: dict[str, Callable[[Path], GalleryStore]] = {
    "memory": lambda _path: MemoryStore(DIM, FRAMES),
    "lancedb": lance_store,
    "lancedb-on-disk": lambda path: lance_store(path, NOTHING_IN_MEMORY),
}


@pytest.fixture(params=list(KINDS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> GalleryStore:
    """An empty one."""
    return KINDS[request.param](tmp_path / "gallery")


@pytest.fixture(scope="module", params=list(KINDS))
def two_videos(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Snapshot:
    """A gallery of two videos with the fields ``n``, ``source`` and ``is_day``."""
    store = KINDS[request.param](tmp_path_factory.mktemp("two") / "gallery")
    store.put(*sample(["a", "b"], source="x", is_day=True), replace=False)
    return store.snapshot()


@pytest.fixture
def manifest(bundle: Bundle) -> Manifest:
    return bundle.manifest


@pytest.fixture(params=["memory", "lancedb"])
def gallery(request: pytest.FixtureRequest, manifest: Manifest, tmp_path: Path) -> Gallery:
    """Holds a, b and c."""
    if request.param == "memory":
        gallery = Gallery(manifest)
    else:
        gallery = Gallery.open(tmp_path / "gallery", manifest, create=True)
    gallery.add(*entries(manifest, ["a", "b", "c"]))
    return gallery
