from __future__ import annotations

from typing import Any

import pytest

from xclip_deploy.errors import AnnotationError

FIRST = "0001_American_Beauty_00.00.51.926-00.00.54.129"
SECOND = "0001_American_Beauty_00.01.03.000-00.01.05.500"
TRAIN = "LSMDC16_annos_training.csv"
TEST = "LSMDC16_challenge_1000_publictect.csv"
VAL = "LSMDC16_annos_val.csv"


def line(clip: str, sentence: str) -> str:
    return f"{clip}\t00.00.51.815\t00.00.54.204\t00.00.51.926\t00.00.54.129\t{sentence}\n"


@pytest.fixture
def lsmdc(disk: Any) -> Any:
    disk.add_videos(f"0001_American_Beauty/{FIRST}.avi", f"0001_American_Beauty/{SECOND}.avi")
    return disk


@pytest.mark.parametrize(("split", "name"), [("train", TRAIN), ("val", VAL)])
def test_several_sentences_a_clip(lsmdc: Any, captions_by_id: Any, split: str, name: str) -> None:
    lsmdc.write(
        name,
        line(SECOND, 'He says "hi, there.')
        + line(FIRST, "SOMEONE smiles.")
        + line(SECOND, "The end."),
    )
    found = lsmdc.open("lsmdc", split)
    assert captions_by_id(found) == {
        SECOND: ['He says "hi, there.', "The end."],
        FIRST: ["SOMEONE smiles."],
    }
    assert [video.id for video in found.videos] == [SECOND, FIRST]
    assert found.videos[0].path == lsmdc.videos / "0001_American_Beauty" / f"{SECOND}.avi"


def test_the_challenge_clips(lsmdc: Any, captions_by_id: Any) -> None:
    lsmdc.write(TEST, line(FIRST, "A.") + line(SECOND, "B."))
    assert captions_by_id(lsmdc.open("lsmdc", "test")) == {FIRST: ["A."], SECOND: ["B."]}


def test_times_may_be_empty(lsmdc: Any, captions_by_id: Any) -> None:
    lsmdc.write(TEST, f"{FIRST}\t\t\t\t\tA.\n")
    assert captions_by_id(lsmdc.open("lsmdc", "test")) == {FIRST: ["A."]}


def test_tabs_and_line_ends_after_the_sentence(lsmdc: Any, captions_by_id: Any) -> None:
    lsmdc.write(TEST, line(FIRST, "A.\t\t \r") + "\n")
    assert captions_by_id(lsmdc.open("lsmdc", "test")) == {FIRST: ["A."]}


def test_separators_that_are_no_line_ends(lsmdc: Any, captions_by_id: Any) -> None:
    lsmdc.write(TEST, line(FIRST, "A\u2028man\u0085smiles\x0cbriefly."))
    assert captions_by_id(lsmdc.open("lsmdc", "test")) == {FIRST: ["A man smiles briefly."]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"{FIRST}\tA.\n", ":2: 2 fields separated by tabs; expected 6"),
        (line(SECOND, "A.\tB."), ":2: 7 fields separated by tabs; expected 6"),
        (line(SECOND, "").strip() + "\n", ":2: 5 fields separated by tabs; expected 6"),
        (line(SECOND, "  "), "empty caption at line 2"),
        (line("", "A."), "line 2: the video id is empty"),
    ],
)
def test_a_line_of_another_shape(lsmdc: Any, content: str, expected: str) -> None:
    lsmdc.write(TRAIN, line(FIRST, "A.") + content)
    with pytest.raises(AnnotationError, match=expected):
        lsmdc.open("lsmdc", "train")


def test_a_challenge_clip_twice(lsmdc: Any) -> None:
    lsmdc.write(TEST, line(FIRST, "A.") + line(FIRST, "B."))
    with pytest.raises(AnnotationError, match=r"line 2: video .* was listed before, at line 1"):
        lsmdc.open("lsmdc", "test")


def test_a_missing_file_is_named(lsmdc: Any) -> None:
    with pytest.raises(AnnotationError, match=rf"holds nothing; expected {TRAIN}"):
        lsmdc.open("lsmdc", "train")
