"""``shards.json``: written whole, checked, and published."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gallery_samples import mounted

from xclip_deploy import Bundle, Gallery, Retriever, ShardedRetriever
from xclip_deploy.errors import (
    GalleryError,
    GalleryIntegrityError,
    GalleryModelError,
    GalleryNotFoundError,
    GalleryVersionError,
    MetadataError,
)
from xclip_deploy.runtime.cluster import (
    SHARDS_FILE,
    create_shards,
    is_sharded,
    publish_shards,
    read_shards,
    shard_states,
)
from xclip_deploy.runtime.cluster.publishing import sole_indexer


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
        lambda content: {**content, "schema_version": 0},
        lambda content: {**content, "shards": 2 * content["shards"][:1]},
        lambda content: {**content, "shards": [{**content["shards"][0], "path": "../other"}]},
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


def test_a_newer_file_is_not_called_damaged(galleries: Any) -> None:
    file = galleries.sharded / SHARDS_FILE
    content = {**json.loads(file.read_text()), "schema_version": 2, "more": 1}
    file.write_text(json.dumps(content))
    expected = "schema version 2, this release reads 1; run: pip install --upgrade xclip-deploy"
    with pytest.raises(GalleryVersionError, match=expected):
        read_shards(galleries.sharded)


def test_a_lost_shard_is_named(galleries: Any, bundle: Bundle) -> None:
    shutil.rmtree(galleries.sharded / "shard-001")
    expected = r"has lost shard 1 of 3: \S+/shard-001 is gone; restore it from a copy"
    for use in (
        lambda: publish_shards(galleries.sharded),
        lambda: create_shards(galleries.sharded, bundle.manifest, 3),
        lambda: shard_states(galleries.sharded, bundle.path, address="auto"),
        lambda: ShardedRetriever(bundle, galleries.sharded),
    ):
        with pytest.raises(GalleryIntegrityError, match=expected):
            use()
    states = [state.state for state in shard_states(galleries.sharded)]
    assert states == ["not served", "missing", "not served"]
    assert not (galleries.sharded / "shard-001").exists()


def test_a_shard_of_another_model_is_not_published(
    galleries: Any, bundle: Bundle, tmp_path: Path
) -> None:
    before = read_shards(galleries.sharded)
    shutil.rmtree(galleries.sharded / "shard-001")
    other = bundle.manifest.model_copy(update={"fingerprint": "0" * 64})
    Gallery.open(galleries.sharded / "shard-001", other, create=True).close()
    with pytest.raises(GalleryModelError, match="shard-001 holds features of model 000000000000…"):
        publish_shards(galleries.sharded)
    assert read_shards(galleries.sharded) == before


def test_publications_at_the_same_time_are_counted(galleries: Any) -> None:
    before = read_shards(galleries.sharded).published
    with ThreadPoolExecutor(4) as pool:
        numbers = [shards.published for shards in pool.map(publish_shards, [galleries.sharded] * 6)]
    assert sorted(numbers) == list(range(before + 1, before + 7))
    assert read_shards(galleries.sharded).published == before + 6


def test_one_process_indexes_at_a_time(galleries: Any) -> None:
    with sole_indexer(galleries.sharded):
        with (
            pytest.raises(GalleryError, match=rf"process {os.getpid()} on \S+ indexes into"),
            sole_indexer(galleries.sharded),
        ):
            pass
        # Others publish meanwhile.
        publish_shards(galleries.sharded)
    with sole_indexer(galleries.sharded):
        pass


def test_a_full_disk_keeps_what_was_published(bundle: Bundle, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        before = create_shards(tmp_path / "disk" / "G", bundle.manifest, 2)
        with suppress(OSError), (tmp_path / "disk" / "full").open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(GalleryError, match="the disk is full"):
            publish_shards(tmp_path / "disk" / "G")
        assert read_shards(tmp_path / "disk" / "G") == before


@pytest.mark.parametrize("uri", ["s3://bucket/G", "gs://bucket/G"])
def test_object_storage_is_refused(
    uri: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (
        lambda: is_sharded(uri),
        lambda: read_shards(uri),
        lambda: create_shards(uri, bundle.manifest, 2),
        lambda: publish_shards(uri),
        lambda: shard_states(uri),
        lambda: ShardedRetriever(bundle, uri),
    ):
        with pytest.raises(GalleryError, match=f"{uri} is a URI; expected a directory that all"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_file_uri_names_a_directory(galleries: Any, bundle: Bundle) -> None:
    uri = f"file://{galleries.sharded}"
    assert is_sharded(uri)
    assert read_shards(uri) == read_shards(galleries.sharded)
    assert len(publish_shards(uri).shards) == 3
    with pytest.raises(GalleryNotFoundError, match="is a gallery in shards"):
        Retriever(bundle, uri, device="cpu")


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
