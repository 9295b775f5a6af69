from __future__ import annotations

from typing import Any

import pytest

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.catalogue import open_dataset

CSV = """\
file,caption,split
b.mp4,"a dog, barking",train
sub/a.mov,a cat,val
b.mp4, another  dog ,train
sub/c,a bird,train
"""
JSON_LINES = """\
{"file": "b.mp4", "caption": "a dog, barking", "split": "train", "id": 7}
{"file": "sub/a.mov", "caption": "a cat", "split": "val"}

{"file": "b.mp4", "caption": " another  dog ", "split": "train"}
{"file": "sub/c", "caption": "a bird", "split": "train"}
"""


@pytest.fixture
def videos(disk: Any) -> Any:
    disk.add_videos("b.mp4", "sub/a.mov", "sub/c.webm", "other/c.webm")
    return disk


@pytest.mark.parametrize(
    ("name", "content"), [("captions.csv", CSV), ("captions.jsonl", JSON_LINES)]
)
def test_rows_of_the_split(videos: Any, captions_by_id: Any, name: str, content: str) -> None:
    path = videos.write(name, content)
    for place in (path, path.parent):
        split = open_dataset("folder", "train", place, videos.videos)
        assert captions_by_id(split) == {
            "b.mp4": ["a dog, barking", "another dog"],
            "sub/c": ["a bird"],
        }
        assert split.videos[1].path == videos.videos / "sub" / "c.webm"
    assert captions_by_id(videos.open("folder", "val")) == {"sub/a.mov": ["a cat"]}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_without_splits_every_row_counts(videos: Any, captions_by_id: Any, split: str) -> None:
    videos.write("captions.csv", "caption,file\na,b.mp4\n")
    assert captions_by_id(videos.open("folder", split)) == {"b.mp4": ["a"]}


def test_any_name_with_the_right_ending(videos: Any) -> None:
    path = videos.write("mine.CSV", "file,caption\nb.mp4,a\n")
    assert len(open_dataset("folder", "test", path, videos.videos).videos) == 1


def test_a_path_means_that_file(videos: Any) -> None:
    videos.write("captions.csv", "file,caption\n./other/c.webm,a\nsub/c.webm,b\n")
    split = videos.open("folder", "test")
    assert [video.path.parent.name for video in split.videos] == ["other", "sub"]


def test_a_path_to_elsewhere_is_missing(videos: Any) -> None:
    videos.add_videos("../outside.mp4")
    videos.write("captions.csv", "file,caption\n../outside.mp4,a\nelsewhere/b.mp4,b\nb.mp4,c\n")
    split = videos.open("folder", "test", max_missing_share=1)
    assert split.missing == ("../outside.mp4", "elsewhere/b.mp4")


def test_both_files_are_one_too_many(videos: Any) -> None:
    videos.write("captions.csv", CSV)
    videos.write("captions.jsonl", JSON_LINES)
    with pytest.raises(AnnotationError, match=r"holds both captions\.csv and captions\.jsonl"):
        videos.open("folder", "train")


def test_neither_file(videos: Any) -> None:
    videos.write("labels.csv", CSV)
    expected = r"holds labels\.csv; expected captions\.csv or captions\.jsonl"
    with pytest.raises(AnnotationError, match=expected):
        videos.open("folder", "train")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("captions.tsv", r"is no \.csv or \.jsonl file"), ("none.csv", "No such file")],
)
def test_no_such_annotations(videos: Any, name: str, expected: str) -> None:
    with pytest.raises(AnnotationError, match=expected):
        open_dataset("folder", "train", videos.annotations / name, videos.videos)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("video,text\nb.mp4,a\n", "columns are video, text; expected file, caption"),
        ("file,caption\n", "no rows below the header"),
        ("file,caption\nb.mp4,a\nb.mp4,a cat, a dog\n", ":3: 3 fields; expected 2"),
        ("file,caption\nb.mp4,\nb.mp4,a\n", r"empty caption at line 2 \(b\.mp4\); "),
        ("file,caption\n ,a\n", ":2: the file is empty"),
        ("file,caption,split\nb.mp4,a,training\n", ":2: split is 'training'; expected train,"),
        ("file,caption,split\nb.mp4,a,train\n", r"has train \(1 rows\); expected rows of .* test"),
    ],
)
def test_a_csv_of_another_shape(videos: Any, content: str, expected: str) -> None:
    videos.write("captions.csv", content)
    with pytest.raises(AnnotationError, match=expected):
        videos.open("folder", "test")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\n\n", "no line holds anything"),
        ('["b.mp4", "a"]', ":1: a list; expected an object"),
        ('\n{"file": "b.mp4"}', ":2: holds file; expected 'caption'"),
        ('{"file": "b.mp4", "caption": null}', ":1: null; expected text"),
        ('{"file": "b.mp4", "caption": "a", "split": 1}', "split: a number; expected text"),
        (
            '{"file": "b", "caption": "a", "split": "test"}\n{"file": "b", "caption": "a"}',
            ":2: split is None; expected",
        ),
        ('{"file": "b.mp4", "file": "c.mp4", "caption": "a"}', "key 'file' occurs twice"),
        ("file,caption\nb.mp4,a", ":1: not valid JSON"),
    ],
)
def test_lines_of_another_shape(videos: Any, content: str, expected: str) -> None:
    videos.write("captions.jsonl", content)
    with pytest.raises(AnnotationError, match=expected):
        videos.open("folder", "test")
