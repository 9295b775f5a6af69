from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xclip_deploy.errors import AmbiguousVideoError, VideoNotFoundError
from xclip_deploy.runtime.datasets.video_files import VideoFiles, without_video_suffix

CLIP = "0001_American_Beauty_00.00.51.926-00.00.54.129"


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        (["a.mp4"], "a.mp4", "a.mp4"),
        (["a.mp4"], "a", "a.mp4"),
        (["deep/down/a.MP4"], "a", "deep/down/a.MP4"),
        (["a.mp4"], "a.mov", "a.mp4"),
        (["a.mov.mp4"], "a.mov", "a.mov.mp4"),
        ([f"film/{CLIP}.avi"], CLIP, f"film/{CLIP}.avi"),
        ([f"film/{CLIP}.avi"], f"film/{CLIP}", f"film/{CLIP}.avi"),
        # A full name wins over a stem, and a path over a name.
        (["a.mp4", "a.mov"], "a.mov", "a.mov"),
        (["a.mp4.mov", "a.mp4"], "a.mp4", "a.mp4"),
        (["sub/a.mp4", "a.mp4"], "a.mp4", "a.mp4"),
        (["sub/a.mp4", "a.mp4"], "sub/a.mp4", "sub/a.mp4"),
        # What is not there.
        (["a.mp4"], "b", None),
        (["a.mp4"], "A", None),
        (["a.txt"], "a", None),
        (["a.b.mp4"], "a", None),
        (["sub/a.mp4"], "other/a.mp4", None),
        ([], "a", None),
        # Dots in an id are not endings.
        (["x_00.00.51.926-00.00.54.avi"], "x_00.00.51.926-00.00.54.129", None),
    ],
)
def test_finding(disk: Any, files: list[str], name: str, expected: str | None) -> None:
    disk.add_videos(*files)
    found = VideoFiles(disk.videos).find([name])
    assert found == (None if expected is None else disk.videos / expected)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["a.mp4", "a.webm"], "a"),
        (["x/a.mp4", "y/a.mp4"], "a.mp4"),
        (["a.mov.mp4", "a.avi"], "a.mov"),
        (["a.mp4", "sub/a.webm"], "a.mov"),
    ],
)
def test_two_files_for_one_name(disk: Any, files: list[str], name: str) -> None:
    disk.add_videos(*files)
    with pytest.raises(AmbiguousVideoError) as caught:
        VideoFiles(disk.videos).find([name])
    for file in files:
        assert str(disk.videos / file) in str(caught.value)
    assert f"both match {name}; expected one file" in str(caught.value)


def test_links_to_one_file_are_that_file(disk: Any) -> None:
    disk.add_videos("all/a.mp4")
    (disk.videos / "train").mkdir()
    (disk.videos / "train" / "a.mp4").symlink_to(disk.videos / "all" / "a.mp4")
    assert VideoFiles(disk.videos).find(["a"]) == disk.videos / "all" / "a.mp4"


def test_other_names_are_as_good(disk: Any) -> None:
    disk.add_videos("v_a.mp4")
    assert VideoFiles(disk.videos).find(["a", "v_a"]) == disk.videos / "v_a.mp4"
    disk.add_videos("a.mkv")
    with pytest.raises(AmbiguousVideoError):
        VideoFiles(disk.videos).find(["a", "v_a"])


def test_only_a_whole_name_is_named(disk: Any) -> None:
    disk.add_videos("a.mp4")
    files = VideoFiles(disk.videos)
    assert files.named(["a.mp4"]) == disk.videos / "a.mp4"
    assert files.named(["a"]) is None
    assert files.count == 1


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(VideoNotFoundError, match="no such file or folder"):
        VideoFiles(tmp_path / "none")
    (tmp_path / "a.mp4").touch()
    with pytest.raises(VideoNotFoundError, match="is a file; expected a folder of videos"):
        VideoFiles(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.mp4", "a"), ("a.MOV", "a"), ("s/a.b.avi", "s/a.b"), ("a.129", "a.129"), ("a", "a")],
)
def test_only_endings_of_videos_are_stripped(name: str, expected: str) -> None:
    assert without_video_suffix(name) == expected
