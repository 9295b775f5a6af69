"""Videos that an older release read are kept, and said to be so."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

import lancedb
import pytest
from gallery_samples import DIM, FRAMES, MODEL, content_of, lance_store, sample

from xclip_deploy import Bundle, Retriever
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.gallery.commit_record import make_record, write_record
from xclip_deploy.runtime.gallery.lance_schema import make_schema, to_table
from xclip_deploy.runtime.indexing import warn_of_older_readings
from xclip_deploy.runtime.progress import ignore_progress
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


def test_a_gallery_without_the_column(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It was made before galleries recorded who read a video, and is whole all the same."""
    path = tmp_path / "gallery"
    schema = make_schema(MODEL, DIM, FRAMES)
    schema = schema.remove(schema.get_field_index("reading_version"))
    table = lancedb.connect(path).create_table("videos", schema=schema)
    table.add(to_table(*sample(["a", "b"]), schema))
    write_record(path, make_record(path, table.version, None))
    store = lance_store(path, create=False)
    before = content_of(store.snapshot())
    warn_of_older_readings(Gallery(store.model, store))
    (line,) = said(caplog)
    assert line.startswith("2 of 2 videos")
    videos, features = sample(["c"])
    new = videos[0].model_copy(update={"reading_version": READING_VERSION})
    store.put([new], features, replace=False)
    store = lance_store(path, create=False)
    found = content_of(store.snapshot())
    assert found.pop("c")[0] == new
    assert found == before
    assert store.verify(ignore_progress).is_whole
    assert store.snapshot().find(["a", "c"]).keys() == {"a", "c"}
    assert store.snapshot().count_older(READING_VERSION) == 2
    # Features that were added as such have no file to read again.
    store.put([new.model_copy(update={"id": "d", "content_sha256": None})], features, replace=False)
    assert store.snapshot().count_older(READING_VERSION + 1) == 3


def test_damage_is_left_to_the_searches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "gallery"
    lance_store(path).put(*sample(["a", "b"]), replace=False)
    for file in (path / "videos.lance" / "data").iterdir():
        file.unlink()
    store = lance_store(path, create=False)
    warn_of_older_readings(Gallery(store.model, store))
    assert said(caplog) == []
