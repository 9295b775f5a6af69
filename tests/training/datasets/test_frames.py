from __future__ import annotations

import json
import multiprocessing
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coloured_clips import write_clip

from xclip_deploy.errors import (
    DatasetError,
    InvalidArgumentError,
    MissingExtraError,
    TrainingError,
    VideoNotFoundError,
    VideoReadError,
)
from xclip_deploy.runtime.datasets import Split, SplitVideo
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.runtime.video import FrameSampling, VideoReading, read_frames, read_video
from xclip_deploy.training.datasets import frames as frames_module
from xclip_deploy.training.datasets.frame_cache import FrameCache
from xclip_deploy.training.datasets.frames import (
    FrameSource,
    ReadReport,
    UnreadableVideo,
    check_videos,
    without_unreadable,
)

SAMPLING = FrameSampling(max_frames=4)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Four videos of 2, 1, 3 and 1 captions; the second is no video, the fourth not there."""
    paths = [tmp_path / f"video{number}.mp4" for number in range(4)]
    write_clip(paths[0], 0)
    paths[1].write_text("no video")
    write_clip(paths[2], 2)
    return Split(
        name="made/train",
        videos=tuple(SplitVideo(path.stem, path) for path in paths),
        captions=tuple(f"caption {number}" for number in range(7)),
        video_of_caption=np.array([0, 0, 1, 2, 2, 2, 3], dtype=np.int64),
        missing=("gone",),
    )


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The videos that are decoded from now on, in this process."""
    paths: list[Path] = []

    def spy(path: Path, reading: VideoReading) -> Any:
        paths.append(path)
        return read_frames(path, reading)

    monkeypatch.setattr(frames_module, "read_frames", spy)
    return paths


@pytest.fixture
def cached(tmp_path: Path) -> FrameSource:
    return FrameSource(VideoReading(SAMPLING, 32), FrameCache(tmp_path / "cache", 10_000_000))


def test_frames_are_those_of_the_reader(split: Split, cached: FrameSource) -> None:
    expected = read_video(split.videos[0].path, SAMPLING, 32).frames
    assert expected.shape == (3, 32, 32, 3)
    for source in (FrameSource(VideoReading(SAMPLING, 32)), cached, cached):
        np.testing.assert_array_equal(source.read(split.videos[0]), expected)


def test_a_hit_is_identical_and_decodes_nothing(
    split: Split, cached: FrameSource, decoded: list[Path], clips: Path
) -> None:
    for video in (split.videos[0], SplitVideo("dog", clips / "sam2_dog.mp4")):
        first = cached.read(video)
        second = cached.read(video)
        assert decoded == [video.path]
        assert second.dtype == first.dtype
        np.testing.assert_array_equal(second, first)
        decoded.clear()


def test_a_hit_looks_at_nothing_but_the_files_state(split: Split, cached: FrameSource) -> None:
    video = split.videos[0]
    first = cached.read(video)
    status = video.path.stat()
    video.path.write_bytes(bytes(status.st_size))
    os.utime(video.path, ns=(0, status.st_mtime_ns))
    np.testing.assert_array_equal(cached.read(video), first)


def test_a_changed_video_is_decoded_again(
    split: Split, cached: FrameSource, decoded: list[Path]
) -> None:
    video = split.videos[0]
    first = cached.read(video)
    write_clip(video.path, 99)
    second = cached.read(video)
    assert decoded == [video.path] * 2
    assert (first != second).any()
    np.testing.assert_array_equal(second, read_video(video.path, SAMPLING, 32).frames)


def test_a_video_that_changes_while_it_is_read_is_not_kept(
    split: Split, cached: FrameSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_touch(path: Path, reading: VideoReading) -> Any:
        frames = read_frames(path, reading)
        os.utime(path, ns=(0, 12345))
        return frames

    assert cached.cache is not None
    monkeypatch.setattr(frames_module, "read_frames", read_and_touch)
    cached.read(split.videos[0])
    assert not [path for path in cached.cache.directory.rglob("*") if path.is_file()]


@pytest.mark.parametrize("has_cache", [False, True])
def test_the_end_of_a_video_is_kept_to(
    tmp_path: Path, cached: FrameSource, *, has_cache: bool
) -> None:
    source = cached if has_cache else FrameSource(VideoReading(SAMPLING, 32))
    path = write_clip(tmp_path / "video.mp4", 1, seconds=4)
    whole = source.read(SplitVideo("whole", path))
    cut = source.read(SplitVideo("cut", path, end_s=1.0))
    assert len(whole) == 4
    np.testing.assert_array_equal(cut, whole[:2])


def test_the_same_report_from_any_number_of_workers(split: Split, cached: FrameSource) -> None:
    progress: list[Progress] = []
    report = check_videos(split, cached, num_workers=2, on_progress=progress.append)
    counts = [(step.done, step.total, step.failed) for step in progress]
    assert counts == [(1, 4, 0), (2, 4, 1), (3, 4, 1), (4, 4, 2)]
    assert report.split == "made/train"
    assert report.num_videos == 5
    assert report.missing == ("gone",)
    assert [video.id for video in report.unreadable] == ["video1", "video3"]
    for video, reason in zip(
        report.unreadable, ("video1.mp4: ", "video3.mp4: no such file"), strict=True
    ):
        assert reason in video.reason
        assert "\n" not in video.reason
    assert report.unreadable_share == 0.5
    assert check_videos(split, FrameSource(VideoReading(SAMPLING, 32))) == report


def test_a_check_fills_the_cache_for_other_processes(
    split: Split, cached: FrameSource, decoded: list[Path]
) -> None:
    check_videos(split, cached, num_workers=1)
    for video in (split.videos[0], split.videos[2]):
        cached.read(video)
    assert decoded == []
    # A second check tries the bad ones again: they may have been mended.
    check_videos(split, cached)
    assert decoded == [split.videos[1].path, split.videos[3].path]


def test_the_split_without_unreadable_videos(split: Split) -> None:
    kept = without_unreadable(
        split, check_videos(split, FrameSource(VideoReading(SAMPLING, 32))), 0.5
    )
    assert [video.id for video in kept.videos] == ["video0", "video2"]
    assert kept.captions == tuple(f"caption {number}" for number in (0, 1, 3, 4, 5))
    assert kept.video_of_caption.tolist() == [0, 0, 1, 1, 1]
    assert kept.video_of_caption.dtype == np.int64
    assert (kept.name, kept.missing) == ("made/train", ("gone",))


def test_a_split_without_fault_stays(split: Split) -> None:
    assert without_unreadable(split, ReadReport("made/train", 5, ("gone",), ()), 0.0) is split


def test_too_many_unreadable_videos_are_refused(split: Split) -> None:
    report = check_videos(split, FrameSource(VideoReading(SAMPLING, 32)))
    with pytest.raises(
        DatasetError,
        match=r"made/train: of 4 videos 2 cannot be read \(50\.0%\), for example .*video1\.mp4: "
        r".*at most 49\.0% that cannot; .*max_unreadable_share",
    ) as caught:
        without_unreadable(split, report, 0.49)
    assert "\n" not in str(caught.value)
    bad = tuple(UnreadableVideo(video.id, video.path, "is bad") for video in split.videos)
    with pytest.raises(DatasetError, match="of 4 videos 4 cannot be read"):
        without_unreadable(split, replace(report, unreadable=bad), 1.0)


def test_wrong_arguments(split: Split) -> None:
    report = ReadReport("made/train", 5, ("gone",), ())
    with pytest.raises(InvalidArgumentError, match="the report is of other; expected made/train"):
        without_unreadable(split, replace(report, split="other"), 0.1)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidArgumentError, match="max_unreadable_share is"):
            without_unreadable(split, report, share)
    with pytest.raises(InvalidArgumentError, match="num_workers is -1"):
        check_videos(split, FrameSource(VideoReading(SAMPLING, 32)), num_workers=-1)


def test_the_report_on_disk(split: Split, tmp_path: Path) -> None:
    report = ReadReport(
        "made/train", 5, ("gone",), (UnreadableVideo("video1", Path("video1.mp4"), "is bad"),)
    )
    report.write(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == {
        "split": "made/train",
        "videos": 5,
        "missing": ["gone"],
        "unreadable": [{"id": "video1", "path": "video1.mp4", "reason": "is bad"}],
    }


def test_a_video_that_can_no_longer_be_read_is_named(split: Split, cached: FrameSource) -> None:
    cached.read(split.videos[0])
    split.videos[0].path.unlink()
    with pytest.raises(VideoNotFoundError, match=r"video0\.mp4: no such file"):
        cached.read(split.videos[0])
    with pytest.raises(VideoReadError, match=r"video1\.mp4"):
        cached.read(split.videos[1])


def test_a_reader_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(MissingExtraError, match="decord"):
        FrameSource(VideoReading(SAMPLING, 32, "decord"))


def test_a_worker_that_dies(split: Split) -> None:
    path = split.videos[0].path
    many = replace(split, videos=tuple(SplitVideo(str(number), path) for number in range(500)))

    others = set(multiprocessing.active_children())

    def kill_worker(_: Progress) -> None:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()

    source = FrameSource(VideoReading(SAMPLING, 32))
    with pytest.raises(TrainingError, match=r"video0\.mp4: a process that read this or one of"):
        check_videos(many, source, num_workers=1, on_progress=kill_worker)
