"""Annotations of moments, in the form in which they are published."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy.errors import AnnotationError, InvalidArgumentError, MissingVideosError
from xclip_deploy.runtime.datasets.moments import MomentSplit, open_moments

MOV = "12090392@N02_13482799053_87ef417396.mov"
DIDEMO = [
    {
        "annotation_id": 7,
        "video": MOV,
        "description": " a cat  jumps\n",
        "times": [[0, 0], [1, 1], [0, 1], [5, 5]],
        "num_segments": 6,
    },
    {"video": "b.mp4", "description": "the camera pans", "times": [[2, 4]]},
]
ACTIVITYNET = {
    "v_abc": {
        "duration": 82.73,
        "timestamps": [[0.83, 19.86], [17.37, 90.81], [56.26, 56.26], [1.0, 2.0]],
        "sentences": ["A man walks. ", "He sits.", "He is gone.", "  "],
    },
    "v_def": {"duration": 10, "timestamps": [[0, 10]], "sentences": ["One."]},
}
TVR = [
    {
        "vid_name": "friends_s01e03",
        "duration": 61.46,
        "ts": [16.48, 33.87],
        "desc": "Phoebe laughs.",
        "desc_id": 90200,
        "type": "vt",
    },
    {"vid_name": "castle", "ts": [[0, 1.5], [1, 3]], "desc": "He runs.", "desc_id": 3},
]
OWN = [
    {"file": "videos/a.mp4", "caption": "one", "start_s": 0, "end_s": 5.5},
    {"file": "videos/a.mp4", "caption": "two", "start_s": 5.5, "end_s": 9},
]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    annotations, videos = tmp_path / "annotations", tmp_path / "videos"
    annotations.mkdir()
    for name in (MOV, "b.mp4", "v_abc.mp4", "def.mkv", "friends_s01e03.mp4", "castle.mp4"):
        (videos / "deep").mkdir(parents=True, exist_ok=True)
        (videos / "deep" / name).touch()
    (videos / "videos").mkdir()
    (videos / "videos" / "a.mp4").touch()
    return annotations, videos


def lines(entries: list[Any]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def opened(folders: tuple[Path, Path], dataset: str, file: str, text: str) -> MomentSplit:
    (folders[0] / file).write_text(text, encoding="utf-8")
    return open_moments(dataset, "val", *folders)


def test_didemo(folders: tuple[Path, Path]) -> None:
    split = opened(folders, "didemo", "val_data.json", json.dumps(DIDEMO))
    first, second = split.queries
    assert (split.name, split.dataset) == ("didemo/val", "didemo")
    assert (first.id, first.text, first.video_id) == (7, "a cat jumps", MOV)
    assert first.spans == ((0, 5), (5, 10), (0, 10), (25, 30))
    assert (second.id, second.spans) == (1, ((10, 25),))
    assert [video.path.name for video in split.videos] == [MOV, "b.mp4"]


def test_activitynet(folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        split = opened(folders, "activitynet", "val_1.json", json.dumps(ACTIVITYNET))
    assert [query.id for query in split.queries] == ["abc#0", "abc#1", "def#0"]
    assert split.queries[0].text == "A man walks."
    assert split.queries[1].spans == ((17.37, 82.73),)  # cut at the end of the video
    assert {video.id: video.path.name for video in split.videos} == {
        "abc": "v_abc.mp4",
        "def": "def.mkv",
    }
    assert "2 sentences without text or time are left out" in caplog.text


def test_the_test_split_of_activitynet_is_val_2_where_it_exists(
    folders: tuple[Path, Path],
) -> None:
    (folders[0] / "val_1.json").write_text(json.dumps(ACTIVITYNET))
    assert len(open_moments("activitynet", "test", *folders).queries) == 3
    (folders[0] / "val_2.json").write_text(json.dumps({"v_def": ACTIVITYNET["v_def"]}))
    assert len(open_moments("activitynet", "test", *folders).queries) == 1
    assert len(open_moments("activitynet", "val", *folders).queries) == 3


def test_tvr(folders: tuple[Path, Path]) -> None:
    split = opened(folders, "tvr", "tvr_val_release.jsonl", lines(TVR))
    first, second = split.queries
    assert (first.id, first.text, first.spans) == (90200, "Phoebe laughs.", ((16.48, 33.87),))
    assert second.spans == ((0, 1.5), (1, 3))


def test_own_moments_from_a_folder_or_a_file(folders: tuple[Path, Path]) -> None:
    split = opened(folders, "folder", "moments.jsonl", lines(OWN))
    assert [(query.id, query.spans) for query in split.queries] == [
        (1, ((0, 5.5),)),
        (2, ((5.5, 9),)),
    ]
    again = open_moments("folder", "test", folders[0] / "moments.jsonl", folders[1])
    assert again.queries == split.queries


def test_lines_of_a_split(folders: tuple[Path, Path]) -> None:
    entries = [{**OWN[0], "split": "val"}, {**OWN[1], "split": "train"}]
    split = opened(folders, "folder", "moments.jsonl", lines(entries))
    assert [query.text for query in split.queries] == ["one"]
    with pytest.raises(AnnotationError, match="holds no moment"):
        open_moments("folder", "test", *folders)


def test_videos_without_a_file_are_left_out_with_their_queries(
    folders: tuple[Path, Path],
) -> None:
    (folders[1] / "deep" / "b.mp4").unlink()
    (folders[0] / "val_data.json").write_text(json.dumps(DIDEMO))
    with pytest.raises(MissingVideosError, match="1 of 2 videos"):
        open_moments("didemo", "val", *folders)
    split = open_moments("didemo", "val", *folders, max_missing_share=0.5)
    assert (split.missing, len(split.queries)) == (("b.mp4",), 1)


def changed(entries: Any, **fields: Any) -> Any:
    return [{**entries[0], **fields}, *entries[1:]]


@pytest.mark.parametrize(
    ("dataset", "file", "text", "expected"),
    [
        ("didemo", "val_data.json", json.dumps({}), "an object; expected a list"),
        ("didemo", "val_data.json", json.dumps([]), "holds no moment"),
        *(
            ("didemo", "val_data.json", json.dumps(changed(DIDEMO, **fields)), expected)
            for fields, expected in (
                ({"times": []}, "0 times; expected 1 to 1000"),
                ({"times": [[0, 0]] * 1001}, "1001 times; expected 1 to 1000"),
                ({"times": [[0, 6]]}, r"\[0, 6\]; expected the first and the last chunk"),
                ({"times": [[2, 1]]}, r"\[2, 1\]; expected the first"),
                ({"times": [[-1, 1]]}, "expected the first"),
                ({"times": [[0.0, 1]]}, "expected the first"),
                ({"times": [[True, 1]]}, "expected the first"),
                ({"times": [[0]]}, "expected the first"),
                ({"times": 3}, "a number; expected a list"),
                ({"description": " "}, "the sentence is empty"),
                ({"description": "\ud800"}, "half a character"),
                ({"video": ""}, "the video's name is empty"),
                ({"annotation_id": 1}, "id 1 occurs twice"),
                ({"annotation_id": 1.5}, "the id is 1.5; expected a number or text"),
            )
        ),
        *(
            (
                "activitynet",
                "val_1.json",
                json.dumps({"v_def": {**ACTIVITYNET["v_def"], **fields}}),
                expected,
            )
            for fields, expected in (
                ({"timestamps": []}, "0 timestamps for 1 sentences"),
                ({"timestamps": [[1]]}, "1 numbers; expected start and end"),
                ({"timestamps": [["0", 1]]}, "the time is '0'; expected seconds"),
                ({"timestamps": [[0, float("nan")]]}, "the time is nan"),
                ({"timestamps": [[0, 1e9]]}, "the time is 1000000000.0"),
                ({"duration": None}, "the time is None"),
                ({"sentences": [3]}, "a number; expected text"),
            )
        ),
        *(
            ("tvr", "tvr_val_release.jsonl", lines(changed(TVR, **fields)), expected)
            for fields, expected in (
                ({"ts": [3, 2]}, "from 3 to 2 s; expected an end after the start"),
                ({"ts": [3, 3]}, "from 3 to 3 s; expected an end after the start"),
                ({"ts": [60, 70]}, "ends at 70 s in a video of 61.46 s"),
                ({"ts": []}, "0 numbers; expected start and end"),
                ({"ts": [[1, 2], 3]}, "a number; expected a list"),
                ({"ts": [-1, 2]}, "the time is -1"),
                ({"desc_id": 3}, "id 3 occurs twice"),
                ({"desc_id": None}, "the id is None"),
            )
        ),
        ("tvr", "val.jsonl", lines([{"desc": "x", "desc_id": 1}]), "holds no times or no video"),
        *(
            ("folder", "moments.jsonl", lines(changed(OWN, **fields)), expected)
            for fields, expected in (
                ({"end_s": "5"}, "the time is '5'"),
                ({"start_s": 5.5}, "from 5.5 to 5.5 s"),
                ({"split": "dev"}, "split is 'dev'; expected train, val, test"),
                ({"split": []}, "split is"),
                ({"file": "  "}, "the video's name is empty"),
                ({"caption": None}, "null; expected text"),
            )
        ),
        ("folder", "moments.jsonl", '{"file": "a", "caption": "b"}', "expected 'start_s'"),
        ("folder", "moments.jsonl", "\n", "no line holds anything"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(
    folders: tuple[Path, Path], dataset: str, file: str, text: str, expected: str
) -> None:
    with pytest.raises(AnnotationError, match=expected) as caught:
        opened(folders, dataset, file, text)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "split", "expected"),
    [
        ("msrvtt", "val", "expected one with moments: didemo, activitynet, tvr, folder"),
        ("didemo", "dev", "expected one of train, val, test"),
        (None, "val", "expected a text"),
    ],
)
def test_unknown_names(folders: tuple[Path, Path], dataset: Any, split: str, expected: str) -> None:
    with pytest.raises(InvalidArgumentError, match=expected):
        open_moments(dataset, split, *folders)


def test_no_annotations(folders: tuple[Path, Path]) -> None:
    for dataset in ("didemo", "activitynet", "tvr", "folder"):
        with pytest.raises(AnnotationError, match="holds nothing; expected"):
            open_moments(dataset, "train", *folders)
