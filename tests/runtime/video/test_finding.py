"""Which files of a folder are videos: by ending, else by content."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from xclip_deploy.errors import VideoError
from xclip_deploy.runtime.video import FrameSampling, find_videos, read_video
from xclip_deploy.runtime.video.finding import (
    OTHER_SUFFIXES,
    VIDEO_SUFFIXES,
    count_by_suffix,
    search_folder,
    suffix_of,
)

SAMPLING = FrameSampling(frames_per_second=1.0, max_frames=4)
PLAYLIST = "ffconcat version 1.0\nfile 'secret.mp4'\n"


def test_a_video_of_any_name_is_found_by_its_content(
    tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    clip = write_clip(tmp_path / "clip.mp4", 5)
    names = ("bare", "dot.", "x.insp", "y.dat", "z.ogg")
    for name in names:
        shutil.copy(clip, folder / name)
    (folder / "sound.ogg").write_bytes(b"OggS" + bytes(24) + b"\x01vorbis")
    (folder / "unknown.xyz").write_text("text")
    Image.new("RGB", (8, 8)).save(folder / "a.jpg")
    shutil.copy(clip, folder / "clip.mp4.part")
    assert [path.name for path in find_videos([folder])] == sorted(names)


def test_a_playlist_in_a_folder_fails_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text(PLAYLIST)
    (tmp_path / "b.unknown").write_text(PLAYLIST)
    (found,) = find_videos([tmp_path])
    with pytest.raises(VideoError, match="playlist"):
        read_video(found, SAMPLING, 32)


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "b.MP4", "c.jpg", "sub/d.xyz", ".hidden"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "broken.mp4").symlink_to("nowhere")
    others: list[Path] = []
    found = list(search_folder(tmp_path, on_other=others.append))
    assert [path.name for path in found] == ["a.mp4", "b.MP4"]
    assert [path.name for path in others] == ["broken.mp4", "c.jpg", "pipe.mp4", "d.xyz"]


def test_the_lists_of_endings() -> None:
    published = ".mp4 .avi .webm .mkv .mov .3gp .3g2 .qt .divx .m2t .mxf .f4v .m2v .mpe .3gpp .insv"
    assert set(published.split()) <= VIDEO_SUFFIXES
    assert not VIDEO_SUFFIXES & OTHER_SUFFIXES
    for suffix in VIDEO_SUFFIXES | OTHER_SUFFIXES:
        assert suffix == suffix.lower()
        assert suffix.startswith(".")


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.MP4", ".mp4"), ("a.b.mov", ".mov"), ("a.", "."), ("a", ""), (".mp4", ""), ("a..", ".")],
)
def test_endings(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


def test_endings_are_counted() -> None:
    names = ["a.txt", "b/c.TXT", "d", "e.jpg"]
    assert count_by_suffix(names) == "2 .txt, 1 without ending, 1 .jpg"
    assert count_by_suffix([f"a.{n}" for n in range(9)]).endswith(", 4 others")
