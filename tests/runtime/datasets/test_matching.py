from __future__ import annotations

from typing import Any

import pytest

from xclip_deploy.errors import AmbiguousVideoError, MissingVideosError
from xclip_deploy.runtime.datasets.matching import match_videos
from xclip_deploy.runtime.datasets.split import AnnotatedVideo, Split


def match(disk: Any, *ids: str, share: float = 0.5) -> Split:
    annotated = [AnnotatedVideo(video_id, (f"of {video_id}", "x")) for video_id in ids]
    return match_videos("some/train", annotated, disk.videos, max_missing_share=share)


def test_missing_videos_take_their_captions_with_them(disk: Any, captions_by_id: Any) -> None:
    disk.add_videos("c.mp4", "a.mp4")
    split = match(disk, "c", "b", "a", "d")
    assert captions_by_id(split) == {"c": ["of c", "x"], "a": ["of a", "x"]}
    assert split.missing == ("b", "d")


def test_the_end_is_handed_on(disk: Any) -> None:
    disk.add_videos("a.mp4")
    videos = [AnnotatedVideo("a", ("x",), end_s=31.0)]
    split = match_videos("some/train", videos, disk.videos, max_missing_share=0)
    assert split.videos[0].end_s == 31.0


def test_more_missing_than_allowed(disk: Any) -> None:
    disk.add_videos("a.mp4", "unrelated.mp4")
    ids = [f"gone{number}" for number in range(5)]
    with pytest.raises(MissingVideosError) as caught:
        match(disk, "a", *ids)
    assert str(caught.value) == (
        f"some/train: 5 of 6 videos (83.3%) have no file among the 2 videos in {disk.videos}: "
        "gone0, gone1, gone2, …; expected at most 50.0% (max_missing_share) without, and at "
        "least one with"
    )
    assert caught.value.missing == tuple(ids)


def test_the_share_is_a_limit_that_may_be_reached(disk: Any) -> None:
    disk.add_videos("a.mp4")
    assert match(disk, "a", "b", share=0.5).missing == ("b",)
    with pytest.raises(MissingVideosError):
        match(disk, "a", "b", share=0.49)
    with pytest.raises(MissingVideosError):
        match(disk, "a", "b", share=0)


def test_no_video_at_all_is_never_right(disk: Any) -> None:
    with pytest.raises(MissingVideosError, match=r"2 of 2 videos \(100\.0%\) .* the 0 videos in"):
        match(disk, "a", "b", share=1)


def test_one_file_for_two_videos(disk: Any) -> None:
    disk.add_videos("a.mp4")
    with pytest.raises(AmbiguousVideoError, match=r"a\.mp4 matches both a and a\.mp4; expected"):
        match(disk, "a", "a.mp4")
    with pytest.raises(AmbiguousVideoError, match=r"matches both a\.mov and a\.avi"):
        match(disk, "a.mov", "a.avi")


@pytest.mark.parametrize("ids", [("a.mov", "a.mp4"), ("a.mp4", "a.mov")])
def test_a_file_named_in_full_belongs_to_that_video(disk: Any, ids: tuple[str, str]) -> None:
    disk.add_videos("a.mp4")
    split = match(disk, *ids)
    assert [video.id for video in split.videos] == ["a.mp4"]
    assert split.missing == ("a.mov",)
