from __future__ import annotations

from typing import Any

import pytest

from xclip_deploy.errors import AnnotationError


def entry(*sentences: str) -> dict[str, Any]:
    times = [[0.83, 19.86] for _ in sentences]
    return {"duration": 82.73, "timestamps": times, "sentences": list(sentences)}


TRAIN = {
    "v_QOlSCBRmfWY": entry("A young woman is seen.", " She dances\n around. ", " "),
    "v_ehGHCYKzyZ8": entry(" The video starts."),
    "v_not_listed0": entry("x"),
}


@pytest.fixture
def activitynet(disk: Any) -> Any:
    disk.write_json("train_ids.json", ["v_ehGHCYKzyZ8", "v_QOlSCBRmfWY"])
    disk.write_json("train.json", TRAIN)
    disk.write_json("val_1.json", {"v_uqiMw7tQ1Cc": entry("A."), "v_v_underscore": entry("B.")})
    disk.add_videos("QOlSCBRmfWY.mp4", "ehGHCYKzyZ8.mkv", "uqiMw7tQ1Cc.mp4", "v_underscore.mp4")
    return disk


def test_sentences_are_one_paragraph(activitynet: Any, captions_by_id: Any) -> None:
    split = activitynet.open("activitynet", "train")
    assert captions_by_id(split) == {
        "ehGHCYKzyZ8": ["The video starts."],
        "QOlSCBRmfWY": ["A young woman is seen. She dances around."],
    }
    assert [video.id for video in split.videos] == ["ehGHCYKzyZ8", "QOlSCBRmfWY"]
    assert {video.end_s for video in split.videos} == {None}


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_is_over_every_video_described(
    activitynet: Any, captions_by_id: Any, split: str
) -> None:
    activitynet.write_json("val_ids.json", ["v_without_sentences", "v_uqiMw7tQ1Cc"])
    found = captions_by_id(activitynet.open("activitynet", split))
    assert found == {"uqiMw7tQ1Cc": ["A."], "v_underscore": ["B."]}


def test_files_may_keep_the_prefix(activitynet: Any) -> None:
    (activitynet.videos / "uqiMw7tQ1Cc.mp4").rename(activitynet.videos / "v_uqiMw7tQ1Cc.mp4")
    split = activitynet.open("activitynet", "val")
    assert split.videos[0].id == "uqiMw7tQ1Cc"
    assert split.videos[0].path.name == "v_uqiMw7tQ1Cc.mp4"


def test_listed_videos_without_sentences_are_left_out(
    activitynet: Any, caplog: pytest.LogCaptureFixture
) -> None:
    activitynet.write_json("train_ids.json", ["v_undescribed", "v_QOlSCBRmfWY"])
    split = activitynet.open("activitynet", "train", max_missing_share=0)
    assert [video.id for video in split.videos] == ["QOlSCBRmfWY"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "1 of 2 videos are left out: they are not in train.json" in record.getMessage()


def test_a_list_of_other_videos(activitynet: Any) -> None:
    activitynet.write_json("train_ids.json", ["v_undescribed"])
    with pytest.raises(AnnotationError, match=r"none of the 1 videos of train_ids\.json"):
        activitynet.open("activitynet", "train")


def test_a_video_listed_twice(activitynet: Any) -> None:
    activitynet.write_json("train_ids.json", ["v_a", "v_QOlSCBRmfWY", "v_a"])
    with pytest.raises(AnnotationError, match=r"\[2\]: video v_a was listed before, at \[0\]"):
        activitynet.open("activitynet", "train")


def test_a_video_described_twice(activitynet: Any) -> None:
    activitynet.write("val_1.json", '{"v_a": {"sentences": ["x"]}, "v_a": {"sentences": ["y"]}}')
    with pytest.raises(AnnotationError, match="key 'v_a' occurs twice"):
        activitynet.open("activitynet", "val")


def test_a_video_with_and_without_prefix(activitynet: Any) -> None:
    activitynet.write_json("val_1.json", {"v_a": entry("x"), "a": entry("y")})
    with pytest.raises(AnnotationError, match="a: video a was listed before, at v_a"):
        activitynet.open("activitynet", "val")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], "a list; expected an object"),
        ({}, "lists no video"),
        ({"v_a": []}, "v_a: a list; expected an object"),
        ({"v_a": {"duration": 3}}, "v_a: holds duration; expected 'sentences'"),
        ({"v_a": {"sentences": "x"}}, "v_a.sentences: text; expected a list"),
        ({"v_a": {"sentences": [3]}}, "v_a.sentences: a number; expected text"),
        ({"v_a": entry(), "v_b": entry(" ")}, "empty caption at v_a and 1 more"),
    ],
)
def test_sentences_of_another_shape(activitynet: Any, content: Any, expected: str) -> None:
    activitynet.write_json("val_1.json", content)
    with pytest.raises(AnnotationError, match=expected):
        activitynet.open("activitynet", "test")


@pytest.mark.parametrize(
    ("split", "name"), [("train", "train_ids.json"), ("train", "train.json"), ("val", "val_1.json")]
)
def test_a_missing_file_is_named(activitynet: Any, split: str, name: str) -> None:
    (activitynet.annotations / name).unlink()
    with pytest.raises(AnnotationError, match=f"expected {name}$"):
        activitynet.open("activitynet", split)


def test_videos_are_cut_at_the_annotated_end_where_asked(activitynet: Any) -> None:
    entry = {"sentences": ["a"], "timestamps": [[0, 1]]}
    activitynet.write_json(
        "val_1.json",
        {
            "v_uqiMw7tQ1Cc": {**entry, "duration": 55.15},
            "v_QOlSCBRmfWY": {**entry, "duration": 82},
        },
    )
    whole = activitynet.open("activitynet", "val", max_missing_share=1)
    assert {video.end_s for video in whole.videos} == {None}
    cut = activitynet.open("activitynet", "val", max_missing_share=1, cut_at_annotated_end=True)
    # The authors: int(math.ceil(float(duration))).
    ends = {"uqiMw7tQ1Cc": 56.0, "QOlSCBRmfWY": 82.0}
    assert {video.id: video.end_s for video in cut.videos} == {
        video.id: ends[video.id] for video in whole.videos
    }


@pytest.mark.parametrize("duration", [None, "55", -1, float("inf")])
def test_a_cut_without_a_duration_is_an_error(activitynet: Any, duration: Any) -> None:
    entry = {"sentences": ["a"], "duration": duration}
    activitynet.write_json("val_1.json", {"v_uqiMw7tQ1Cc": entry})
    activitynet.open("activitynet", "val")
    with pytest.raises(AnnotationError, match="1 videos have no duration"):
        activitynet.open("activitynet", "val", cut_at_annotated_end=True)
