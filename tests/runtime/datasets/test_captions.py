from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.captions import CaptionCollector, collapse, enumerate_ids

PATH = Path("captions.csv")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(min_size=1)), min_size=1))
def test_captions_stay_in_order(rows: list[tuple[str, str]]) -> None:
    rows = [(video_id, f"x {text.encode(errors='ignore').decode()}") for video_id, text in rows]
    captions = CaptionCollector(PATH)
    for video_id, text in rows:
        captions.add(video_id, text, "here")
    found = captions.by_id()
    assert list(found) == list(dict.fromkeys(video_id for video_id, _ in rows))
    for video_id, texts in found.items():
        assert list(texts) == [collapse(text) for owner, text in rows if owner == video_id]


def test_whitespace_of_any_kind_collapses() -> None:
    assert collapse("\n a\t\u00a0b\u2003 c\r\n") == "a b c"


def test_half_a_character() -> None:
    captions = CaptionCollector(PATH)
    with pytest.raises(AnnotationError, match=r"line 3: the caption holds U\+D83D, which is half"):
        captions.add("a", "dog \ud83d", "line 3")


def test_many_ids_are_shortened() -> None:
    assert enumerate_ids(["a", "b", "c"]) == "a, b, c"
    assert enumerate_ids(["a", "b", "c", "d"]) == "a, b, c, …"
