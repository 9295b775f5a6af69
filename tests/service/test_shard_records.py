"""What a service reads of a gallery in shards: the same as of one gallery. No cluster runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import runner
from running_services import refusal_of
from starlette.testclient import TestClient

from xclip_deploy import Bundle, Gallery
from xclip_deploy.client.reading import results_of
from xclip_deploy.errors import GalleryError, GalleryNotFoundError, InvalidArgumentError, ShardError
from xclip_deploy.runtime.cluster import publish_shards, read_shards
from xclip_deploy.runtime.failures import FailedShard
from xclip_deploy.runtime.gallery.thumbnails import ThumbnailStore, thumbnail_key
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.service import ClusterSettings, ServiceSettings
from xclip_deploy.service.errors import Refusal, status_of
from xclip_deploy.service.health import Health
from xclip_deploy.service.media.files import MediaLookup
from xclip_deploy.service.metrics import ServiceMetrics
from xclip_deploy.service.naming import find_id, handle_of, videos_with_content
from xclip_deploy.service.records import VideoRecords
from xclip_deploy.service.results import results_to_json
from xclip_deploy.service.served import OneGallery
from xclip_deploy.service.served_shards import ShardGallery, ShardRecords
from xclip_deploy.wire import ResultsModel

LOST = FailedShard(1, "node-b", "no answer within 2 s")


@pytest.fixture(scope="module")
def whole(gallery_path: Path) -> Iterator[Gallery]:
    opened = Gallery.open(gallery_path)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def one(whole: Gallery) -> VideoRecords:
    return VideoRecords([whole.snapshot()], [whole.thumbnails])


@pytest.fixture(scope="module")
def shards(sharded_path: Path, bundle: Bundle) -> Iterator[ShardRecords]:
    opened = ShardRecords.open(sharded_path, read_shards(sharded_path), bundle.manifest)
    yield opened
    opened.close()


def ids_of(records: VideoRecords, where: str | None = None) -> list[str]:
    return [video.id for video in records.videos(records.first_rows(where))]


def test_shards_hold_what_one_gallery_holds(one: VideoRecords, shards: ShardRecords) -> None:
    assert (shards.num_videos, len(shards)) == (one.num_videos, len(one)) == (7, 11)
    assert len(shards.parts) == 2
    assert all(part.num_videos for part in shards.parts)
    ids = ids_of(one)
    # Videos follow their shards.
    assert ids_of(shards) == ids[::2] + ids[1::2]
    for where in ("caption = 'numbers'", "split = 'train'", "duration_s > 1e6"):
        assert sorted(ids_of(shards, where)) == sorted(ids_of(one, where))
    assert len(ids_of(shards, "split = 'train'")) == 4
    with pytest.raises(InvalidArgumentError, match="no column 'nowhere'"):
        shards.first_rows("nowhere = 1")


def test_records_and_features_come_in_the_order_asked(
    one: VideoRecords, shards: ShardRecords
) -> None:
    ids = ids_of(one)
    assert set(shards.find([*ids, "nobody"])) == set(ids)
    mixed = [ids[n] for n in (3, 0, 5, 2, 6, 1, 4)]
    found, expected = shards.segments(mixed), one.segments(mixed)
    rows = np.concatenate([found[each] for each in mixed])[::-1]
    same = np.concatenate([expected[each] for each in mixed])[::-1]
    assert shards.videos(rows) == one.videos(same)
    for name in ("video_features", "frame_features", "num_frames"):
        np.testing.assert_array_equal(
            getattr(shards.features(rows), name), getattr(one.features(same), name)
        )
    assert shards.videos(rows[:0]) == []
    assert len(shards.features(rows[:0])) == 0


def test_videos_are_found_by_every_name(one: VideoRecords, shards: ShardRecords) -> None:
    for video in one.videos(one.first_rows()):
        content = str(video.content_sha256)
        assert find_id(shards, handle_of(video)) == video.id
        assert find_id(shards, video.id, show_paths=True) == video.id
        assert [each.id for each in videos_with_content(shards, content)] == [video.id]
        assert set(shards.find_content([content])) == {content}
        assert shards.find_video(video.id) == video.id
    assert shards.find_video("numbers.mp4").endswith("/numbers.mp4")
    with pytest.raises(InvalidArgumentError, match="names 3 videos"):
        shards.find_video("0000.mp4")  # two of them in one shard
    for find in (shards.find_video, lambda name: find_id(shards, name)):
        with pytest.raises(GalleryError, match="no video"):
            find("nobody")


def test_media_and_thumbnails_are_those_of_the_shard(
    one: VideoRecords, shards: ShardRecords, sharded_path: Path
) -> None:
    lookup = MediaLookup(lambda: shards)
    folders = set()
    for video in one.videos(one.first_rows()):
        found = lookup.find(handle_of(video))
        assert found.files == video.files
        assert found.thumbnails is not None
        folders.add(found.thumbnails)
        assert video.content_sha256 is not None
        assert video.start_s is not None
        key = thumbnail_key(video.content_sha256, video.start_s)
        assert ThumbnailStore(found.thumbnails).get(key) is not None
    assert folders == {sharded_path / f"shard-{n:03d}" / "thumbnails" for n in range(2)}


def test_the_summary_is_that_of_one_gallery(whole: Gallery, shards: ShardRecords) -> None:
    found, expected = shards.stats().to_dict(), whole.stats().to_dict()
    sizes = [each.pop("size_bytes") for each in (found, expected)]
    assert all(size > 0 for size in sizes)
    for each in (found, expected):
        each.pop("uri")
    assert found == expected


def test_a_publication_opens_what_changed_and_leaves_the_old_records(
    sharded_path: Path, bundle: Bundle, tmp_path: Path
) -> None:
    place = tmp_path / "sharded"
    shutil.copytree(sharded_path, place)
    before = ShardRecords.open(place, read_shards(place), bundle.manifest)
    gone = before.videos(before.first_rows())[0].id
    shard = Gallery.open(place / "shard-000")
    shard.remove(gone)
    # What is not published is not seen.
    again = ShardRecords.open(place, read_shards(place), bundle.manifest, before)
    assert [a is b for a, b in zip(again.parts, before.parts, strict=True)] == [True, True]
    publish_shards(place)
    after = ShardRecords.open(place, read_shards(place), bundle.manifest, before)
    assert [a is b for a, b in zip(after.parts, before.parts, strict=True)] == [False, True]
    assert (before.num_videos, after.num_videos) == (7, 6)
    assert gone in ids_of(before)
    assert gone not in ids_of(after)
    shard.close()
    after.close()


def test_health_tells_of_shards_that_do_not_answer() -> None:
    health = Health()
    health.set_fault("model", None)
    health.set_lost_shards([LOST], 2, allow_partial=True)
    health.check()
    assert health.lost_shards == (LOST,)
    for lost, allow_partial in (([LOST], False), ([FailedShard(0, "node-a", "?"), LOST], True)):
        health.set_lost_shards(lost, 2, allow_partial=allow_partial)
        with pytest.raises(Refusal, match=r"of 2 shards, .*1 did not answer; shard \d on node-"):
            health.check()
    health.set_lost_shards([], 2, allow_partial=False)
    health.check()


def test_lost_shards_are_counted_for_every_search() -> None:
    metrics = ServiceMetrics()
    metrics.count_failed_shards([LOST], 3)
    metrics.count_failed_shards([LOST, FailedShard(0, "a", "b")], 1)
    metrics.count_failed_shards([], 5)
    text = metrics.text().decode()
    assert 'xclip_failed_shards_total{shard="1"} 4.0' in text
    assert 'xclip_failed_shards_total{shard="0"} 1.0' in text
    assert status_of(ShardError("lost", [LOST])) == 503


def test_results_without_a_shard_reach_the_client() -> None:
    results = SearchResults((), "exact", 0, 3, "few", answered_shards=(0, 2), failed_shards=(LOST,))
    model = ResultsModel(**json.loads(results_to_json(results, show_paths=False)))
    assert model.failed_shards[0].model_dump() == vars(LOST)
    found = results_of(model, lambda *_: None)  # type: ignore[arg-type]
    assert found.answered_shards == (0, 2)
    assert found.failed_shards == (LOST,)


def test_folders_to_add_from_are_refused_with_shards(
    sharded_path: Path, bundle_path: Path, tmp_path: Path
) -> None:
    settings = ServiceSettings(
        bundle_path, sharded_path, tmp_path, cluster=ClusterSettings(), roots=(tmp_path,)
    )
    with pytest.raises(InvalidArgumentError, match="only xclip-deploy index VIDEOS --gallery"):
        ShardGallery(settings, ClusterSettings())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--allow-partial"], "--allow-partial is for a gallery in shards; give --cluster too"),
        (["--timeout", "3"], "--timeout is for a gallery in shards; give --cluster too"),
        (["--replicas", "2"], "--replicas is for a gallery in shards; give --cluster too"),
        (["--cluster", "auto", "--resident-gallery", "yes"], "leave them out with --cluster"),
        (["--cluster", "auto", "--gallery-memory-gb", "1"], "leave them out with --cluster"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    capfd: pytest.CaptureFixture[str], bundle_path: Path, options: list[str], said: str
) -> None:
    outcome = runner(capfd)("serve", bundle_path, *options)
    assert outcome.status == 2
    assert said in outcome.err


def test_shards_without_a_cluster_are_refused(
    sharded_path: Path, bundle_path: Path, tmp_path: Path
) -> None:
    settings = ServiceSettings(bundle_path, sharded_path, tmp_path / "data")
    with pytest.raises(GalleryNotFoundError, match="give --cluster auto to xclip-deploy search"):
        OneGallery(settings)


def test_one_gallery_has_no_shards(api: TestClient) -> None:
    assert api.get("/health/ready").json() == {"status": "ready"}
    assert api.get("/api/v1/gallery").json()["num_shards"] is None
    found = api.post("/api/v1/search", json={"text": "red"}).json()
    assert (found["answered_shards"], found["failed_shards"]) == ([], [])
    assert refusal_of(api.post("/api/v1/search", json={"text": " "}), 422)
