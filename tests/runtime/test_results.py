"""Results as sequences, JSON and tables."""

from __future__ import annotations

import json
import sys

import pandas
import pytest

from xclip_deploy import GrainScores, SearchResult, SearchResults
from xclip_deploy.errors import MissingExtraError

HITS = (
    SearchResult(
        1,
        "a",
        "/a.mp4",
        9.5,
        GrainScores(0.1, 0.2, 0.3, 0.4),
        2.0,
        12.0,
        {"source": "cam1", "score": 3},
        ("/a.mp4", "/copy.mp4"),
        ("b",),
    ),
    SearchResult(2, "c", None, 8.5, None, 0.0),
)
RESULTS = SearchResults(HITS, "two-stage", 200, 1000, "asked for")


def test_a_sequence() -> None:
    assert len(RESULTS) == 2
    assert RESULTS[0] is HITS[0]
    assert RESULTS[-1] is HITS[1]
    assert list(RESULTS) == list(HITS)
    assert RESULTS[:1] == HITS[:1]
    assert HITS[1] in RESULTS
    assert not SearchResults((), "exact", 0, 0, "empty")


def test_json() -> None:
    again = json.loads(json.dumps(RESULTS.to_dict(), allow_nan=False))
    assert again["method"] == "two-stage"
    assert again["hits"][0]["metadata"] == {"source": "cam1", "score": 3}
    assert again["hits"][0]["paths"] == ["/a.mp4", "/copy.mp4"]
    assert again["hits"][1]["grains"] is None


def test_a_table() -> None:
    table = RESULTS.to_arrow()
    assert table.num_rows == 2
    assert table["source"].to_pylist() == ["cam1", None]
    assert table["score"].to_pylist() == [9.5, 8.5]  # the score, not metadata of that name
    assert table["frame_word"].to_pylist() == [0.4, None]
    empty = SearchResults((), "exact", 0, 0, "empty").to_arrow()
    assert empty.num_rows == 0
    assert table.schema.names == [*empty.schema.names, "source"]
    assert table.select(empty.schema.names).schema == empty.schema


def test_a_pandas_table() -> None:
    frame = RESULTS.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["id"].tolist() == ["a", "c"]


def test_pandas_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="xclip-deploy\\[pandas\\]"):
        RESULTS.to_pandas()
