"""Videos that an older release read are kept, and said to be so."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

import pytest
from gallery_samples import DIM, FRAMES, lance_store, sample

from xclip_deploy import Bundle, Retriever
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryStore
from xclip_deploy.runtime.gallery.memory_store import MemoryStore
from xclip_deploy.runtime.indexing import warn_of_older_readings
from xclip_deploy.runtime.video import READING_VERSION


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged since the last call."""
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return lines


def make_older(gallery: Gallery, video_id: str, version: int | None) -> None:
    gallery.update([gallery.get(video_id).model_copy(update={"reading_version": version})])


@pytest.mark.parametrize("version", [None, READING_VERSION - 1])
def test_indexing_records_the_version(
    gallery: Gallery, index: Any, make: Any, version: int | None
) -> None:
    first, _second = make("a.mp4", 1), make("b.mp4", 2)
    index(first.parent)
    assert {video.reading_version for video in gallery} == {READING_VERSION}
    assert gallery.snapshot().count_older(READING_VERSION) == 0
    make_older(gallery, str(first), version)
    assert gallery.snapshot().count_older(READING_VERSION) == 1
    index(first.parent)
    assert gallery.snapshot().count_older(READING_VERSION) == 1, (
        "an unchanged file is not read again"
    )
    index(first.parent, on_duplicate="replace")
    assert gallery.snapshot().count_older(READING_VERSION) == 0


def test_a_retriever_says_it_once_and_how_to_mend_it(
    bundle: Bundle, make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "my gallery"
    video = make("a.mp4", 1)
    with Retriever(bundle, path, create=True) as retriever:
        retriever.add([video, make("b.mp4", 2)])
    said(caplog)
    with Retriever(bundle, path) as retriever:
        assert not [line for line in said(caplog) if "older release" in line]
        make_older(retriever.gallery, str(video), None)
    with Retriever(bundle, path) as retriever:
        retriever.search("a dog", 1)
        (line,) = [line for line in said(caplog) if "older release" in line]
        assert line.startswith("1 of 2 videos were read by an older release")
        assert f"--gallery {shlex.quote(str(path))} --on-duplicate replace" in line
        retriever.add(video, on_duplicate="replace")
    with Retriever(bundle, path):
        assert not [line for line in said(caplog) if "older release" in line]


@pytest.mark.parametrize("kind", ["memory", "lancedb"])
def test_videos_count_once_and_features_without_a_file_not_at_all(
    kind: str, tmp_path: Path
) -> None:
    store: GalleryStore = MemoryStore(DIM, FRAMES)
    if kind == "lancedb":
        store = lance_store(tmp_path / "gallery")
    (video,), features = sample(["a"])
    update = {"num_segments": 2, "reading_version": READING_VERSION}
    segments = [video.model_copy(update={"segment": n, **update}) for n in range(2)]
    store.put(segments, VideoFeatures.concatenate([features, features]), replace=False)
    store.put(*sample(["b"]), replace=False)
    bare = sample(["c"])[0][0].model_copy(update={"content_sha256": None})
    store.put([bare], features, replace=False)
    assert store.snapshot().count_older(READING_VERSION) == 1
    assert store.snapshot().count_older(READING_VERSION + 1) == 2


def test_damage_is_left_to_the_searches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "gallery"
    lance_store(path).put(*sample(["a", "b"]), replace=False)
    for file in (path / "videos.lance" / "data").iterdir():
        file.unlink()
    store = lance_store(path, create=False)
    warn_of_older_readings(Gallery(store.model, store))
    assert said(caplog) == []
