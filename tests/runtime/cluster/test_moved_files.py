"""Files that move from one shard to another, and the choice of the shard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy import Bundle, Gallery, GalleryVideo, VideoFeatures
from xclip_deploy.runtime.cluster.routing import shard_of
from xclip_deploy.runtime.gallery import VideoFile
from xclip_deploy.runtime.indexing import Sources, SourceVideo, Task
from xclip_deploy.runtime.indexing.committing import clear_files, commit_files
from xclip_deploy.runtime.indexing.planning import KnownFiles, plan_files


@given(st.binary(min_size=32, max_size=32), st.integers(1, 1024))
def test_a_content_has_one_shard(content: bytes, count: int) -> None:
    assert 0 <= shard_of(content.hex(), count) < count
    # The key of a thumbnail begins with the content.
    assert shard_of(f"{content.hex()}-4000", count) == shard_of(content.hex(), count)


def test_contents_spread_over_the_shards() -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount([shard_of(rng.bytes(32).hex(), 8) for _ in range(8000)], minlength=8)
    assert counts.min() > 850
    assert counts.max() < 1150


@pytest.fixture
def shard(bundle: Bundle) -> Gallery:
    """One video in two files, and one in a file of its own."""
    config = bundle.manifest.model
    vector = np.zeros(config.embed_dim, np.float32)
    vector[0] = 1
    features = VideoFeatures(
        np.tile(vector, (2, 1)),
        np.tile(vector, (2, config.max_frames, 1)),
        np.full(2, 1, np.int32),
    )
    gallery = Gallery(bundle.manifest)
    files = (VideoFile(path="/a.mp4", size_bytes=1), VideoFile(path="/b.mp4", size_bytes=1))
    videos = [
        GalleryVideo(
            id="/a.mp4",
            path="/a.mp4",
            files=files,
            content_sha256="0" * 64,
            frame_times_s=(0.0,),
            metadata={"n": 1},
        ),
        GalleryVideo(id="/c.mp4", path="/c.mp4", content_sha256="1" * 64, frame_times_s=(0.0,)),
    ]
    gallery.add(videos, features)
    return gallery


def tasks_of(gallery: Gallery, *paths: str) -> list[Task]:
    """Return the files as tasks of a run that found them changed."""
    sources = Sources([SourceVideo(path) for path in paths])
    known = KnownFiles((), sources, prune=False)
    known.add(gallery.snapshot().listing(), 5)
    tasks = plan_files(sources, known, "replace").read
    assert all(entry.shard == 5 for task in tasks for entry in task.known)
    return tasks


def test_the_only_file_of_a_video_takes_it_along(shard: Gallery) -> None:
    clear_files(shard, tasks_of(shard, "/c.mp4"))
    assert [video.id for video in shard] == ["/a.mp4"]


def test_a_file_of_several_leaves_the_others(shard: Gallery) -> None:
    clear_files(shard, tasks_of(shard, "/a.mp4"))
    left = next(video for video in shard if video.id != "/c.mp4")
    assert [file.path for file in left.files] == ["/b.mp4"]
    assert (left.id, dict(left.metadata)) == ("/b.mp4", {"n": 1})


def test_an_id_that_was_given_away_is_free(shard: Gallery) -> None:
    (task,) = tasks_of(shard, "/d.mp4")
    task.source = replace(task.source, id="/c.mp4")
    clear_files(shard, [task])
    assert [video.id for video in shard] == ["/a.mp4"]


def test_what_did_not_move_stays(shard: Gallery, tmp_path: Path) -> None:
    clear_files(shard, tasks_of(shard, str(tmp_path / "new.mp4")))
    assert len(shard) == 2


def test_a_file_in_two_shards_stays_where_it_is_up_to_date(
    shard: Gallery, bundle: Bundle, tmp_path: Path
) -> None:
    """A run that is killed between two commits leaves the file in both, under one id."""
    path = tmp_path / "a.mp4"
    path.touch()
    status = path.stat()
    file = VideoFile(path=str(path), size_bytes=status.st_size, modified_ns=status.st_mtime_ns)
    shards = []
    for each in (file.model_copy(update={"modified_ns": 1}), file):
        gallery = Gallery(bundle.manifest)
        video = next(iter(shard)).model_copy(
            update={"id": str(path), "path": str(path), "files": (each,)}
        )
        snapshot = shard.snapshot()
        gallery.add([video], snapshot.features(np.array([0])))
        shards.append(gallery)
    sources = Sources([SourceVideo(str(path))])
    known = KnownFiles((), sources, prune=False)
    for number, gallery in enumerate(shards):
        known.add(gallery.snapshot().listing(), number)
    (item,) = plan_files(sources, known, "update").touched
    assert item.task.known[0].shard == 1
    (placed,) = commit_files(shards[1], [item]).placed
    assert (placed.what, placed.video_id) == ("unchanged", str(path))
    clear_files(shards[0], [item.task])
    assert [len(gallery) for gallery in shards] == [0, 1]
