from __future__ import annotations

from typing import Any

import pytest

from xclip_deploy.errors import AnnotationError

SENTENCES: dict[str, Any] = {
    "info": {"description": "MSR-VTT"},
    "videos": [],
    "sentences": [
        {"caption": "a man  drives", "video_id": "video1", "sen_id": 0},
        {"caption": "a cat sleeps", "video_id": "video0", "sen_id": 1},
        {"caption": "a car on a road", "video_id": "video1", "sen_id": 2},
        {"caption": "a dog barks", "video_id": "video2", "sen_id": 3},
        {"caption": "", "video_id": "video9", "sen_id": 4},
    ],
}
TEST = """\
key,vid_key,video_id,sentence
ret0,msr1,video1,"a person, walking"
ret1,msr2,video2,b
"""


@pytest.fixture
def msrvtt(disk: Any) -> Any:
    disk.write("MSRVTT_train.9k.csv", "video_id\nvideo2\nvideo1\nvideo0\n")
    disk.write("MSRVTT_train.7k.csv", "video_id\r\nvideo1\r\n")
    disk.write_json("MSRVTT_data.json", SENTENCES)
    disk.write("MSRVTT_JSFUSION_test.csv", TEST)
    disk.add_videos("video0.mp4", "video1.mp4", "all/video2.webm")
    return disk


def test_every_sentence_of_a_training_video_is_a_pair(msrvtt: Any, captions_by_id: Any) -> None:
    split = msrvtt.open("msrvtt", "train")
    assert split.name == "msrvtt/train"
    assert captions_by_id(split) == {
        "video2": ["a dog barks"],
        "video1": ["a man drives", "a car on a road"],
        "video0": ["a cat sleeps"],
    }
    assert [video.id for video in split.videos] == ["video2", "video1", "video0"]
    assert split.videos[0].path == msrvtt.videos / "all" / "video2.webm"
    assert split.videos[0].end_s is None
    assert split.missing == ()


@pytest.mark.parametrize("split", ["val", "test"])
def test_jsfusion_has_one_sentence_a_video(msrvtt: Any, captions_by_id: Any, split: str) -> None:
    found = captions_by_id(msrvtt.open("msrvtt", split))
    assert found == {"video1": ["a person, walking"], "video2": ["b"]}


def test_seven_thousand_where_asked_for(msrvtt: Any, captions_by_id: Any) -> None:
    assert list(captions_by_id(msrvtt.open("msrvtt-7k", "train"))) == ["video1"]
    assert len(msrvtt.open("msrvtt-9k", "train").videos) == 3


def test_seven_thousand_where_they_are_all_there_is(msrvtt: Any) -> None:
    (msrvtt.annotations / "MSRVTT_train.9k.csv").unlink()
    assert len(msrvtt.open("msrvtt", "train").videos) == 1
    with pytest.raises(AnnotationError, match=r"expected MSRVTT_train\.9k\.csv$"):
        msrvtt.open("msrvtt-9k", "train")


def test_a_missing_list_is_named(msrvtt: Any) -> None:
    for count in ("7", "9"):
        (msrvtt.annotations / f"MSRVTT_train.{count}k.csv").unlink()
    expected = (
        r"holds MSRVTT_JSFUSION_test\.csv, MSRVTT_data\.json; "
        r"expected MSRVTT_train\.9k\.csv or MSRVTT_train\.7k\.csv$"
    )
    with pytest.raises(AnnotationError, match=expected):
        msrvtt.open("msrvtt", "train")


def test_missing_sentences_are_named(msrvtt: Any) -> None:
    (msrvtt.annotations / "MSRVTT_data.json").unlink()
    with pytest.raises(AnnotationError, match=r"expected MSRVTT_data\.json$"):
        msrvtt.open("msrvtt", "train")


def test_a_test_video_twice(msrvtt: Any) -> None:
    msrvtt.write("MSRVTT_JSFUSION_test.csv", TEST + "ret2,msr1,video1,again\n")
    expected = r"line 4: video video1 was listed before, at line 2"
    with pytest.raises(AnnotationError, match=expected):
        msrvtt.open("msrvtt", "test")


def test_a_training_video_twice(msrvtt: Any) -> None:
    msrvtt.write("MSRVTT_train.9k.csv", "video_id\nvideo1\nvideo1\n")
    with pytest.raises(AnnotationError, match="line 3: video video1 was listed before, at line 2"):
        msrvtt.open("msrvtt", "train")


def test_wrong_columns(msrvtt: Any) -> None:
    msrvtt.write("MSRVTT_JSFUSION_test.csv", "key;vid_key;video_id;sentence\nret0;m;v;s\n")
    expected = "columns are key;vid_key;video_id;sentence; expected video_id, sentence"
    with pytest.raises(AnnotationError, match=expected):
        msrvtt.open("msrvtt", "test")


def test_empty_test_sentences(msrvtt: Any) -> None:
    msrvtt.write("MSRVTT_JSFUSION_test.csv", "video_id,sentence\nv1,a\nv2, \nv3,\n")
    with pytest.raises(AnnotationError, match=r"empty caption at line 3 \(v2\) and 1 more"):
        msrvtt.open("msrvtt", "test")


def test_an_empty_training_sentence(msrvtt: Any) -> None:
    sentences = [*SENTENCES["sentences"], {"video_id": "video1", "caption": " "}]
    msrvtt.write_json("MSRVTT_data.json", {"sentences": sentences})
    with pytest.raises(AnnotationError, match=r"empty caption at sentences\[5\] \(video1\); "):
        msrvtt.open("msrvtt", "train")


def test_a_listed_video_without_sentences(msrvtt: Any) -> None:
    msrvtt.write("MSRVTT_train.9k.csv", "video_id\nvideo1\nvideo77\n")
    expected = r"no captions for video77 \(1 of 2\) of MSRVTT_train\.9k\.csv"
    with pytest.raises(AnnotationError, match=expected):
        msrvtt.open("msrvtt", "train")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], "a list; expected an object"),
        ({"annotations": []}, "holds annotations; expected 'sentences'"),
        ({"sentences": {}}, "sentences: an object; expected a list"),
        ({"sentences": ["a"]}, r"sentences\[0\]: text; expected an object"),
        ({"sentences": [{"video_id": "video1"}]}, "holds video_id; expected 'caption'"),
        ({"sentences": [{"video_id": 1, "caption": "a"}]}, "a number; expected text"),
        ({"sentences": [{"video_id": "v", "caption": None}]}, "null; expected text"),
    ],
)
def test_sentences_of_another_shape(msrvtt: Any, content: Any, expected: str) -> None:
    msrvtt.write_json("MSRVTT_data.json", content)
    with pytest.raises(AnnotationError, match=expected):
        msrvtt.open("msrvtt", "train")
