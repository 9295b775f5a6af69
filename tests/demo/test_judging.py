"""The demo's words for right and wrong results."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.judging import Answer, Evidence, Result, differences, differing_parts

ASKED = "a red square moves right, then a blue triangle grows"


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (ASKED, ()),
        ("A red square moves right then a blue triangle grows.", ()),
        (
            "a blue triangle grows, then a red square moves right",
            ("the same words in another order",),
        ),
        (ASKED.replace("square", "circle"), ("“circle” instead of “square”",)),
        (
            "a red circle moves up, then a blue triangle grows",
            ("“circle” instead of “square”", "“up” instead of “right”"),
        ),
        ("a red square moves right", ("no “then a blue triangle grows”",)),
        (f"{ASKED} slowly", ("also “slowly”",)),
    ],
)
def test_differences_are_told_in_words(shown: str, told: tuple[str, ...]) -> None:
    assert differences(ASKED, shown) == told
    parts = differing_parts(ASKED, shown)
    assert "".join(text for text, _ in parts) == shown
    # Words that the caption lacks cannot be marked in it.
    assert any(differs for _, differs in parts) == any("no “" not in each for each in told)


def result(rank: int, caption: str) -> Result:
    return Result(rank, Path(f"{rank}.mp4"), caption, 20.0 - rank, None)


def answer(*captions: str, right: Result | None) -> Answer:
    results = tuple(result(rank, caption) for rank, caption in enumerate(captions, 1))
    return Answer(ASKED, results, right, 200, 1.5, Evidence("", {}))


def test_a_verdict_names_the_rank_of_the_right_video() -> None:
    wrong = ASKED.replace("grows", "shrinks")
    assert answer(ASKED, wrong, right=result(1, ASKED)).verdict == (
        "the first result shows exactly this"
    )
    found = answer(wrong, right=result(17, ASKED))
    assert not found.is_right
    assert found.verdict == (
        "the first result has “shrinks” instead of “grows”; the right video is at rank 17 of 200"
    )
    other = "a yellow circle moves up while a green square flashes"
    assert answer(other, right=None).verdict.startswith(
        f"the first result shows something else, “{other}”; "
    )
    assert answer(wrong, right=None).verdict.endswith("no video of the gallery shows this exactly")
