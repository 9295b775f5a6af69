"""Long videos as several rows of a gallery, in memory and in LanceDB alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gallery_samples import DIM, FRAMES, MODEL, lance_store, rows_of, sample, sample_features

from xclip_deploy.errors import (
    DuplicateIdError,
    GallerySegmentationError,
    InvalidArgumentError,
)
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import FeatureModel, Gallery, GalleryStore, GalleryVideo
from xclip_deploy.runtime.gallery.checksums import Part
from xclip_deploy.runtime.gallery.rewriting import rescue_gallery
from xclip_deploy.runtime.indexing.adding import choose_segmentation
from xclip_deploy.runtime.indexing.edit import GalleryEdit
from xclip_deploy.runtime.video import FrameSampling, VideoReading
from xclip_deploy.runtime.video.segmentation import Segmentation

WINDOWS = Segmentation("windows", 8.0, 4.0)


def long_video(
    name: str, count: int, seed: int = 0, segmentation: Segmentation = WINDOWS
) -> tuple[list[GalleryVideo], VideoFeatures]:
    (video,), _ = sample([name], seed)
    rows = [
        video.model_copy(
            update={
                "segment": n,
                "num_segments": count,
                "start_s": 4.0 * n,
                "end_s": 4.0 * n + 8,
                "frame_times_s": (4.0 * n, 4.0 * n + 1),
                "segmentation": segmentation.text,
            }
        )
        for n in range(count)
    ]
    return rows, sample_features(count, np.random.default_rng(seed))


def put(store: GalleryStore, *parts: tuple[Sequence[GalleryVideo], VideoFeatures]) -> None:
    videos = [video for some, _ in parts for video in some]
    store.put(videos, VideoFeatures.concatenate([each for _, each in parts]), replace=True)


def starts(store: GalleryStore, name: str) -> list[float | None]:
    snapshot = store.snapshot()
    found = snapshot.segments([name])
    return [video.start_s for video in snapshot.videos(found[name])] if found else []


def test_a_long_video_is_several_rows(store: GalleryStore) -> None:
    videos, features = long_video("b", 3)
    put(store, sample(["a"]), (videos, features), sample(["c"], 1))
    snapshot = store.snapshot()
    assert (len(snapshot), snapshot.num_videos, snapshot.segmentation) == (5, 3, WINDOWS.text)
    rows = snapshot.segments(["b", "none"])["b"]
    assert snapshot.videos(rows) == videos
    np.testing.assert_array_equal(snapshot.features(rows).video_features, features.video_features)
    assert snapshot.find(["b"]) == {"b": rows[0]}
    assert snapshot.find_content(["0-b"]) == {"0-b": rows[0]}
    assert [(video.id, video.segment) for video in snapshot.listing()] == [
        ("a", 0),
        ("b", 0),
        ("c", 0),
    ]
    groups = snapshot.groups()
    assert groups is not None
    numbers = dict(zip(["a", "b", "c"], groups.of(rows_of(snapshot, ["a", "b", "c"])), strict=True))
    assert len(groups) == len(set(numbers.values())) == 3
    assert groups.of(rows).tolist() == [numbers["b"]] * 3
    assert groups.firsts[numbers["b"]] == rows[0]
    assert groups.first_rows(rows[::-1]).tolist() == [rows[0]]
    assert snapshot.matching("_start_s >= 8").tolist() == [rows[2]]
    assert snapshot.matching("id = 'b' and _segment < 2").tolist() == rows[:2].tolist()


def test_short_videos_have_no_groups(store: GalleryStore) -> None:
    put(store, sample(["a", "b"]))
    assert (store.snapshot().groups(), store.snapshot().segmentation) == (None, None)
    put(store, long_video("c", 1))
    assert (store.snapshot().groups(), store.snapshot().num_videos) == (None, 3)


def test_a_replaced_video_loses_all_its_segments(store: GalleryStore) -> None:
    put(store, long_video("a", 5), long_video("b", 2))
    before = store.snapshot()
    put(store, long_video("a", 2, seed=1))
    assert (starts(store, "a"), starts(store, "b")) == ([0, 4], [0, 4])
    assert len(store.snapshot()) == 4
    assert len(before.segments(["a"])["a"]) == 5
    put(store, sample(["a"], 3))
    assert starts(store, "a") == [None]
    assert store.remove(["b", "none"]) == 1
    assert starts(store, "b") == []
    assert store.snapshot().num_videos == 1


def test_one_commit_replaces_all_segments(tmp_path: Path) -> None:
    """A process that is killed leaves the old segments or the new ones, never both."""
    store = lance_store(tmp_path / "gallery")
    put(store, long_video("a", 5))
    version = store._committed.version
    put(store, long_video("a", 2, seed=1))
    assert store._committed.version == version + 1


@pytest.fixture
def gallery(store: GalleryStore) -> Gallery:
    return Gallery(FeatureModel(MODEL, DIM, FRAMES), store)


def test_a_gallery_counts_videos(gallery: Gallery) -> None:
    gallery.add(*sample(["a"]))
    gallery.add(*long_video("b", 3))
    assert (len(gallery), gallery.count(), gallery.count("_start_s > 3")) == (2, 2, 1)
    assert [video.id for video in gallery] == ["a", "b"]
    assert [video.id for video in gallery.videos(limit=1, offset=1)] == ["b"]
    assert gallery.get("b").segment == 0
    assert [video.start_s for video in gallery.segments("b")] == [0, 4, 8]
    stats = gallery.stats()
    assert (stats.num_videos, stats.num_segments, stats.num_files) == (2, 4, 2)
    assert stats.segmentation == WINDOWS.text
    assert gallery.remove(where="_start_s > 7") == 1
    assert [video.id for video in gallery] == ["a"]


def test_all_segments_get_a_new_record(gallery: Gallery) -> None:
    gallery.add(*long_video("b", 3))
    for given in (gallery.get("b"), sample(["b"])[0][0]):  # one that knows of no segments, too
        gallery.update([given.model_copy(update={"metadata": {"n": 9}, "duration_s": 20.0})])
        found = gallery.segments("b")
        assert [(v.metadata, v.duration_s, v.start_s, v.num_segments) for v in found] == [
            ({"n": 9}, 20.0, start, 3) for start in (0, 4, 8)
        ]


def test_all_segments_come_at_once(gallery: Gallery) -> None:
    videos, features = long_video("b", 3)
    with pytest.raises(InvalidArgumentError, match=r"'b' comes with 2 of its 3 segments"):
        gallery.add(videos[:2], features[:2])
    with pytest.raises(DuplicateIdError, match="given to two videos"):
        gallery.add([*videos[:2], videos[1]], features)
    odd = videos[1].model_copy(update={"duration_s": 99.0})
    with pytest.raises(InvalidArgumentError, match=r"segment . of video 'b' differs"):
        gallery.add([videos[0], odd, videos[2]], features)
    assert len(gallery) == 0


def test_a_gallery_has_one_segmentation(gallery: Gallery) -> None:
    gallery.add(*sample(["a"]))  # features without a policy leave the choice open
    assert gallery.segmentation is None
    gallery.add(*long_video("b", 3))
    assert gallery.segmentation == WINDOWS
    other = Segmentation("windows", 6.0, 6.0)
    with pytest.raises(GallerySegmentationError, match=r"NEW_GALLERY --segment 6s --stride 6s"):
        gallery.add(*long_video("c", 2, segmentation=other))
    with pytest.raises(GallerySegmentationError, match=r"not whole videos; .* --segment whole"):
        gallery.check_segmentation(Segmentation.whole())
    gallery.add(*sample(["d"]))
    assert len(gallery) == 3


def test_windows_that_were_moved_to_cuts_are_another_policy(gallery: Gallery) -> None:
    old = Segmentation.from_text("shots of 6.0 s every 3.0 s")
    new = Segmentation("shots", 6, 3)
    assert old != new
    assert Segmentation.from_text(old.text) == old
    assert Segmentation.from_text(new.text) == new
    gallery.add(*long_video("b", 3, segmentation=old))
    assert gallery.segmentation == old
    with pytest.raises(GallerySegmentationError, match=r"NEW_GALLERY --segment shots --stride 3s"):
        gallery.check_segmentation(new)
    reading = VideoReading(FrameSampling(max_frames=6), 48)
    with pytest.raises(GallerySegmentationError, match=r"holds shots of 6.0 s .* each shot in"):
        choose_segmentation(gallery, reading, None, None)


def test_a_copy_has_all_segments(gallery: Gallery, tmp_path: Path) -> None:
    gallery.add(*long_video("b", 3))
    gallery.save(tmp_path / "copy")
    copy = Gallery.open(tmp_path / "copy")
    assert copy.segments("b") == gallery.segments("b")


def test_damage_names_the_segment(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    store = lance_store(path)
    put(store, sample(["a"]))
    videos, features = long_video("b", 3)
    put(store, (videos, features))
    row = features.frame_features[1].tobytes()
    (file,) = (f for f in (path / "videos.lance" / "data").rglob("*") if row in f.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.index(row)] ^= 4
    file.write_bytes(content)
    found = lance_store(path, create=False).verify(lambda _progress: None)
    assert found.damaged_videos == ("b, segment 1",)
    rescue = rescue_gallery(path, tmp_path / "rescued")
    assert (rescue.num_videos, rescue.lost) == (2, ("b, segment 1",))
    rescued = Gallery.open(tmp_path / "rescued")
    kept = rescued.segments("b")
    assert [(v.segment, v.num_segments, v.start_s) for v in kept] == [(0, 2, 0), (1, 2, 8)]
    np.testing.assert_array_equal(
        rescued.snapshot().features(rescued.snapshot().segments(["b"])["b"]).frame_features,
        features.frame_features[[0, 2]],
    )
    # So the next run reads the file again, whatever its size and time.
    assert {(video.content_sha256, video.files[0].size_bytes) for video in kept} == {(None, None)}


def test_a_rescued_video_without_its_first_segment_is_whole_again(tmp_path: Path) -> None:
    """It is found, listed and written like any other, until its file is read again."""
    path = tmp_path / "gallery"
    videos, features = long_video("b", 3)
    put(lance_store(path), (videos, features))
    row = features.frame_features[0].tobytes()
    (file,) = (f for f in (path / "videos.lance" / "data").rglob("*") if row in f.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.index(row)] ^= 4
    file.write_bytes(content)
    assert rescue_gallery(path, tmp_path / "rescued").lost == ("b",)
    rescued = Gallery.open(tmp_path / "rescued")
    assert [video.start_s for video in rescued.segments("b")] == [4, 8]
    assert [video.id for video in rescued.snapshot().listing()] == ["b"]
    rescued.update([rescued.get("b").model_copy(update={"metadata": {"n": 5}})])
    edit = GalleryEdit(rescued, ["b"])
    edit.set_metadata("b", {"n": 6})
    edit.write()
    assert [video.metadata for video in rescued.segments("b")] == [{"n": 6}] * 2


def test_damaged_places_are_never_a_wrong_group(tmp_path: Path) -> None:
    """Part of a row that tells which video it belongs to has a checksum of its own."""
    store = lance_store(tmp_path / "gallery")
    put(store, long_video("b", 3))
    table = store._table.to_arrow()
    assert Part.SEGMENT.value in table.column_names
    assert len(set(table[Part.SEGMENT.value].to_pylist())) == 3


def test_groups_know_the_place_of_every_row(store: GalleryStore) -> None:
    backwards, features = long_video("b", 5)
    put(store, sample(["a"]), (backwards[::-1], features), long_video("c", 3))
    snapshot = store.snapshot()
    groups = snapshot.groups()
    assert groups is not None
    assert len(groups) == 3
    rows = snapshot.segments(["b"])["b"]
    (number,) = set(groups.of(rows).tolist())
    assert groups.rows_of(number).tolist() == rows.tolist()
    places = groups.places(rows)
    assert groups.segments[places].tolist() == [0, 1, 2, 3, 4]
    assert np.diff(groups.ranks[places]).tolist() == [1, 1, 1, 1]
    assert groups.start_s[places].tolist() == [0, 4, 8, 12, 16]
    assert groups.end_s[places].tolist() == [8, 12, 16, 20, 24]
    assert snapshot.frame_times(rows[[3, 1]]) == [(12.0, 13.0), (4.0, 5.0)]
    first = groups.places(rows_of(snapshot, ["a"]))
    assert np.isnan(groups.start_s[first]).all()
    assert np.isnan(groups.end_s[first]).all()


@pytest.mark.parametrize("where", [None, "n >= 2"])
@pytest.mark.parametrize("step", [1, 2])
def test_nearest_leaves_rows_out(store: GalleryStore, where: str | None, step: int) -> None:
    """``step`` 2 names single rows, more than there are ranges in one condition."""
    names = [f"v{n}" for n in range(200)]
    store.put(*sample(names), replace=False)
    snapshot = store.snapshot()
    query = np.random.default_rng(1).standard_normal((1, DIM)).astype(np.float16)
    rows = rows_of(snapshot, names)
    (whole,) = snapshot.nearest(query, 200, where)
    without = rows[3:150:step]
    (near,) = snapshot.nearest(query, 200, where, without)
    expected = [row for row in whole.rows.tolist() if row not in set(without.tolist())]
    assert near.rows.tolist() == expected
    (few,) = snapshot.nearest(query, 7, where, without)
    assert few.rows.tolist() == expected[:7]
    (same,) = snapshot.nearest(query, 200, where, rows[:0])
    assert same.rows.tolist() == whole.rows.tolist()
    assert not len(snapshot.nearest(query, 5, where, np.sort(rows))[0].rows)
