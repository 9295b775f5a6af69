"""``shards.json``: written whole, checked, and published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy import Bundle, Gallery
from xclip_deploy.errors import (
    GalleryError,
    GalleryIntegrityError,
    GalleryNotFoundError,
    MetadataError,
)
from xclip_deploy.runtime.cluster import (
    SHARDS_FILE,
    create_shards,
    publish_shards,
    read_shards,
    shard_states,
)


def test_a_publication_pins_versions(galleries: Any) -> None:
    before = read_shards(galleries.sharded)
    assert [shard.num_videos for shard in before.shards] == [20, 20, 20]
    assert before.num_videos == 60
    assert before.segmentation == "windows of 8.0 s every 4.0 s"
    shard = Gallery.open(galleries.sharded / "shard-001")
    shard.remove(shard.videos(limit=1)[0].id)
    shard.close()
    assert read_shards(galleries.sharded) == before
    after = publish_shards(galleries.sharded)
    assert after == read_shards(galleries.sharded)
    assert after.published == before.published + 1
    assert after.shards[1].version > before.shards[1].version
    assert after.num_videos == 59
    pinned = Gallery.open(galleries.sharded / "shard-001", version=before.shards[1].version)
    assert len(pinned) == 20


def test_filters_mean_the_same_in_every_shard(galleries: Any) -> None:
    shard = Gallery.open(galleries.sharded / "shard-002")
    video = shard.videos(limit=1)[0]
    shard.update([video.model_copy(update={"metadata": {**video.metadata, "camera": "a"}})])
    shard.close()
    publish_shards(galleries.sharded)
    counts = []
    for entry in read_shards(galleries.sharded).shards:
        opened = Gallery.open(galleries.sharded / entry.path, version=entry.version)
        counts.append(opened.count("camera = 'a'"))
    assert counts == [0, 0, 1]


def test_a_field_of_two_types_is_not_published(galleries: Any) -> None:
    before = read_shards(galleries.sharded)
    for number, value in ((0, "a"), (1, 7)):
        shard = Gallery.open(galleries.sharded / f"shard-{number:03d}")
        video = shard.videos(limit=1)[0]
        shard.update([video.model_copy(update={"metadata": {**video.metadata, "camera": value}})])
        shard.close()
    with pytest.raises(MetadataError, match="metadata field 'camera'"):
        publish_shards(galleries.sharded)
    assert read_shards(galleries.sharded) == before


def test_shards_are_made_once(bundle: Bundle, tmp_path: Path) -> None:
    made = create_shards(tmp_path / "G", bundle.manifest, 2)
    assert create_shards(tmp_path / "G", bundle.manifest, 2) == made
    with pytest.raises(GalleryError, match="has 2 shards, expected 3"):
        create_shards(tmp_path / "G", bundle.manifest, 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(GalleryNotFoundError, match="is no gallery in shards and not empty"):
        create_shards(tmp_path / "other", bundle.manifest, 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: {**content, "schema_version": 2},
        lambda content: {**content, "shards": []},
        lambda content: {**content, "more": 1},
        lambda content: {**content, "published": 0},
        lambda _content: [],
    ],
)
def test_a_damaged_file_is_refused(galleries: Any, damage: Any) -> None:
    file = galleries.sharded / SHARDS_FILE
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    with pytest.raises(GalleryIntegrityError, match=r"shards\.json is damaged"):
        read_shards(galleries.sharded)


def test_shards_are_no_ordinary_gallery(galleries: Any, bundle: Bundle) -> None:
    for create in (False, True):
        with pytest.raises(GalleryNotFoundError, match="is a gallery in shards"):
            Gallery.open(galleries.sharded, bundle.manifest, create=create)


def test_no_shards(tmp_path: Path) -> None:
    with pytest.raises(GalleryNotFoundError, match=r"shards\.json is missing"):
        read_shards(tmp_path)


def test_shards_without_a_cluster_are_not_served(galleries: Any) -> None:
    states = shard_states(galleries.sharded)
    assert [(state.number, state.replica, state.state) for state in states] == [
        (number, None, "not served") for number in range(3)
    ]
