from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xclip_deploy.errors import (
    InvalidArgumentError,
    VideoError,
    VideoNotFoundError,
    VideoReadError,
)
from xclip_deploy.runtime import video as video_package
from xclip_deploy.runtime.video import (
    FrameSampling,
    VideoFrames,
    VideoReading,
    find_videos,
    pyav_reader,
    read_video,
    read_videos,
)

SAMPLING = FrameSampling(max_frames=8)


# One video


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(VideoNotFoundError, match="no such file"):
        read_video(tmp_path / "none.mp4", SAMPLING, 64)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoReadError, match="is empty"):
        read_video(tmp_path / "empty.mp4", SAMPLING, 64)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match="is a folder"):
        read_video(tmp_path, SAMPLING, 64)


def test_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoReadError, match="no regular file"):
        read_video(tmp_path / "pipe.mp4", SAMPLING, 64)


def test_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> VideoFrames:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pyav_reader, "read_with_pyav", refuse)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    with pytest.raises(VideoReadError, match="cannot be read: Permission denied"):
        read_video(tmp_path / "clip.mp4", SAMPLING, 64)


def test_text_path(clips: Path) -> None:
    assert read_video(str(clips / "mdn_frog.webm"), SAMPLING, 32).frames.shape == (8, 32, 32, 3)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="expected one of 'pyav', 'decord'"):
        read_video(tmp_path, SAMPLING, 64, reader="opencv")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="image_size is 0"):
        read_video(tmp_path, SAMPLING, 0)


# Many videos


def test_order_and_errors(tmp_path: Path, clips: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video at all")
    paths = [
        clips / "sam2_dog.mp4",
        bad,
        clips / "edge_cases" / "torchcodec_h265.mp4",
        tmp_path / "missing.mp4",
        clips / "intel_asl_walk.mkv",
    ]
    results = list(read_videos(paths, VideoReading(SAMPLING, 48), num_threads=2))
    assert [path for path, _ in results] == paths
    kinds = [type(result) for _, result in results]
    assert kinds == [VideoFrames, VideoReadError, VideoFrames, VideoNotFoundError, VideoFrames]
    assert isinstance(results[0][1], VideoFrames)
    alone = read_video(paths[0], SAMPLING, 48)
    assert np.array_equal(results[0][1].frames, alone.frames)


class SlowReader:
    """Stands in for reading; counts what is in flight."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.started: list[str] = []
        self.running = self.most_running = 0

    def __call__(self, path: Path, *_: Any) -> VideoFrames:
        with self.lock:
            self.started.append(path.name)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        time.sleep(0.01)
        with self.lock:
            self.running -= 1
        one = np.zeros(1)
        return VideoFrames(np.zeros((1, 8, 8, 3), np.uint8), one, one.astype(np.int64), 1.0, 1.0)


@pytest.fixture
def slow_reader(monkeypatch: pytest.MonkeyPatch) -> SlowReader:
    reader = SlowReader()
    monkeypatch.setattr(pyav_reader, "read_with_pyav", reader)
    return reader


@pytest.fixture
def many_files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number:02}.mp4" for number in range(30)]
    for path in paths:
        path.write_bytes(b"x")
    return paths


def test_reading_ahead_is_bounded(slow_reader: SlowReader, many_files: list[Path]) -> None:
    asked: list[Path] = []

    def endless() -> Iterator[Path]:
        for path in itertools.cycle(many_files):
            asked.append(path)
            yield path

    results = read_videos(endless(), VideoReading(SAMPLING, 8), num_threads=3, prefetch=5)
    assert asked == []
    for taken in range(1, 9):
        next(results)
        assert len(asked) <= taken + 5
    time.sleep(0.1)
    assert len(slow_reader.started) <= 8 + 5
    assert slow_reader.most_running <= 3
    results.close()  # type: ignore[attr-defined]


def test_closing_cancels(slow_reader: SlowReader, many_files: list[Path]) -> None:
    results = read_videos(many_files, VideoReading(SAMPLING, 8), num_threads=1, prefetch=20)
    next(results)
    results.close()  # type: ignore[attr-defined]
    count = len(slow_reader.started)
    assert count < 10
    assert slow_reader.running == 0
    time.sleep(0.05)
    assert len(slow_reader.started) == count
    assert not [t for t in threading.enumerate() if t.name.startswith("read-video")]


def test_error_in_the_list_of_paths_comes_through(
    slow_reader: SlowReader, many_files: list[Path]
) -> None:
    def broken() -> Iterator[Path]:
        yield many_files[0]
        raise RuntimeError("the list broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        list(read_videos(broken(), VideoReading(SAMPLING, 8), num_threads=1))


def test_bugs_are_not_taken_for_bad_videos(
    many_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> VideoFrames:
        raise TypeError("a bug")

    monkeypatch.setattr(pyav_reader, "read_with_pyav", fail)
    with pytest.raises(TypeError, match="a bug"):
        list(read_videos(many_files, VideoReading(SAMPLING, 8)))


def test_the_record_of_how_videos_are_read() -> None:
    reading = VideoReading(FrameSampling(frames_per_second=0.1, max_frames=8), 48, "decord")
    assert VideoReading.from_dict(json.loads(json.dumps(reading.to_dict()))) == reading
    assert reading.until(None) is reading
    cut = reading.until(2.5)
    assert (cut.image_size, cut.reader) == (48, "decord")
    assert cut.sampling == FrameSampling(frames_per_second=0.1, max_frames=8, end_s=2.5)
    with pytest.raises(InvalidArgumentError, match=r"image_size is 0 .*expected .*at least 1"):
        VideoReading(SAMPLING, 0)
    with pytest.raises(
        InvalidArgumentError, match=r"reader is 'vhs' .*expected one of 'pyav', 'decord'"
    ):
        VideoReading(SAMPLING, 8, "vhs")  # type: ignore[arg-type]


def test_no_videos() -> None:
    assert list(read_videos([], VideoReading(SAMPLING, 8))) == []


@pytest.mark.parametrize("numbers", [{"num_threads": 0}, {"prefetch": 0}])
def test_impossible_numbers_are_refused_at_once(numbers: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="expected at least 1 each"):
        read_videos([], VideoReading(SAMPLING, 8), **numbers)


# Folders


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b.MP4", "a.webm", "notes.txt", ".hidden.mp4")))
    touch(tmp_path / "sub" / "deep" / "c.mkv", tmp_path / ".cache" / "d.mp4")
    touch(tmp_path / "asub" / "z.mov")
    found = [path.relative_to(tmp_path).as_posix() for path in find_videos([tmp_path])]
    assert found == ["a.webm", "b.MP4", "asub/z.mov", "sub/deep/c.mkv"]


def test_named_files_are_kept_whatever_their_ending(tmp_path: Path) -> None:
    touch(tmp_path / "clip.bin", tmp_path / "folder" / "a.mp4")
    paths = [tmp_path / "clip.bin", tmp_path / "folder", tmp_path / "folder" / "a.mp4"]
    assert find_videos(map(str, paths)) == [paths[0], paths[2]]


def test_links_do_not_loop(tmp_path: Path) -> None:
    touch(tmp_path / "videos" / "a.mp4", tmp_path / "elsewhere" / "b.mp4")
    (tmp_path / "videos" / "loop").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "videos" / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    folder = tmp_path / "videos"
    assert find_videos([folder]) == [folder / "a.mp4", folder / "more" / "b.mp4"]


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(VideoNotFoundError, match="no such file or folder"):
        find_videos([tmp_path, tmp_path / "none"])


def test_empty_folder(tmp_path: Path) -> None:
    assert find_videos([tmp_path]) == []


# The package


def test_all_names_exist() -> None:
    for name in video_package.__all__:
        assert hasattr(video_package, name)


def test_import_loads_no_video_library() -> None:
    code = (
        "import sys, xclip_deploy.runtime.video\n"
        "print([name for name in ('av', 'PIL', 'decord', 'torch') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_result_is_an_error_or_frames(tmp_path: Path) -> None:
    ((_, result),) = read_videos([tmp_path / "none.mp4"], VideoReading(SAMPLING, 8))
    assert isinstance(result, VideoError)
