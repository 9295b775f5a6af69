"""Results as sequences, JSON and tables."""

from __future__ import annotations

import json
import pickle
import sys
from copy import deepcopy
from dataclasses import fields, replace
from types import MappingProxyType

import pandas
import pytest

from xclip_deploy import SearchResult, SearchResults
from xclip_deploy.errors import InvalidArgumentError, MissingExtraError
from xclip_deploy.runtime.grain_scores import GrainScores
from xclip_deploy.runtime.results import Moment, TimeRange

NAMES = ("video_sentence", "video_word", "frame_sentence", "frame_word")
HITS = (
    SearchResult(
        1,
        "a",
        "/a.mp4",
        9.5,
        GrainScores(dict(zip(NAMES, (0.1, 0.2, 0.3, 0.4), strict=True))),
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


def test_a_query_that_was_cut() -> None:
    assert (RESULTS.truncated_tokens, RESULTS.is_truncated) == (0, False)
    cut = replace(RESULTS, truncated_tokens=7)
    assert cut.is_truncated
    assert cut.to_dict()["truncated_tokens"] == 7
    assert "truncated_tokens=7" in repr(cut)
    assert "truncated" not in repr(RESULTS)
    assert "the query&#x27;s last 7 tokens were not read" in cut._repr_html_()


def test_json() -> None:
    again = json.loads(json.dumps(RESULTS.to_dict(), allow_nan=False))
    assert again["method"] == "two-stage"
    assert again["hits"][0]["metadata"] == {"source": "cam1", "score": 3}
    assert again["hits"][0]["paths"] == ["/a.mp4", "/copy.mp4"]
    assert again["hits"][0]["grains"] == dict(zip(NAMES, (0.1, 0.2, 0.3, 0.4), strict=True))
    assert again["hits"][1]["grains"] is None


def test_a_dictionary_has_every_field_and_copies_nothing_deeply() -> None:
    metadata = MappingProxyType({"source": "cam1"})  # which cannot be copied deeply
    results = replace(RESULTS, hits=(replace(RESULTS.hits[0], metadata=metadata),))
    content = results.to_dict()
    assert list(content) == [field.name for field in fields(results)]
    (hit,) = content["hits"]
    names = [field.name for field in fields(results.hits[0])]
    assert list(hit) == [name for name in names if name != "media"]
    assert hit["metadata"] == {"source": "cam1"}
    hit["metadata"]["source"] = "cam2"
    assert metadata["source"] == "cam1"


def test_grain_scores_are_a_mapping_with_attributes() -> None:
    found = GrainScores({"frame_word": 0.25, "video_sentence": 0.125})
    assert list(found) == ["frame_word", "video_sentence"]  # the model's order
    assert dict(found) == {"frame_word": 0.25, "video_sentence": 0.125}
    assert found["frame_word"] == found.frame_word == 0.25
    assert found.video_word is None
    assert "video_word" not in found
    assert set(NAMES) <= set(dir(found))
    with pytest.raises(KeyError):
        found["video_word"]
    for name in ("frame", "_repr_html_", "__wrapped__"):
        with pytest.raises(AttributeError, match=name):
            getattr(found, name)
    assert repr(found) == "GrainScores(frame_word=0.25, video_sentence=0.125)"
    same = GrainScores({"video_sentence": 0.125, "frame_word": 0.25})
    assert found == same == pickle.loads(pickle.dumps(found)) == deepcopy(found)
    assert hash(found) == hash(same)
    assert found != GrainScores({"frame_word": 0.25})
    assert GrainScores({"video_word": 0.5}).to_dict() == dict.fromkeys(NAMES) | {"video_word": 0.5}


def test_grain_scores_are_immutable() -> None:
    scores = {"frame_word": 0.25}
    found = GrainScores(scores)
    scores["frame_word"] = 1.0
    assert found.frame_word == 0.25
    for name in ("frame_word", "video_word", "more", "_scores"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(found, name, 1.0)
    with pytest.raises(AttributeError, match="immutable"):
        del found.frame_word


def test_scores_of_what_is_no_grain() -> None:
    with pytest.raises(InvalidArgumentError, match="frames: no such grain; expected some of video"):
        GrainScores({"frames": 0.1})


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


MOMENT = Moment(3, 12.0, 24.0, 8.25, HITS[0].grains, 15.0)
LONG = replace(
    HITS[0],
    start_s=3720.0,
    end_s=3732.0,
    segment=310,
    moments=(MOMENT,),
    range=TimeRange(3723.5, 3729.25, 1.0),
    confidence=0.98,
)


def test_moments_as_json_and_table() -> None:
    results = SearchResults((LONG, HITS[1]), "exact", 9, 2, "asked for", 0, 9, "a note")
    again = json.loads(json.dumps(results.to_dict(), allow_nan=False))
    assert (again["num_segments"], again["note"]) == (9, "a note")
    first, second = again["hits"]
    assert first["range"] == {"start_s": 3723.5, "end_s": 3729.25, "resolution_s": 1.0}
    assert (first["start_s"], first["end_s"], first["segment"]) == (3720, 3732, 310)
    assert first["confidence"] == 0.98
    assert first["moments"][0]["best_frame_time_s"] == 15
    assert first["moments"][0]["grains"]["frame_word"] == 0.4
    assert (second["range"], second["moments"], second["confidence"]) == (None, [], None)
    table = results.to_arrow()
    assert table["start_s"].to_pylist() == [3720.0, 0.0]
    assert table["range"].to_pylist()[0]["end_s"] == 3729.25
    assert table["range"].to_pylist()[1] is None
    (moment,) = table["moments"].to_pylist()[0]
    assert (moment["segment"], moment["score"]) == (3, 8.25)
    empty = SearchResults((), "exact", 0, 0, "empty").to_arrow()
    assert table.select(empty.schema.names).schema == empty.schema
    assert len(results.to_pandas()) == 2
    assert pickle.loads(pickle.dumps(results)) == deepcopy(results) == results


def test_moments_are_shown_by_their_times() -> None:
    assert "start_s=3720, end_s=3732" in repr(LONG)
    assert "confidence=0.98" in repr(LONG)
    assert "confidence" not in repr(HITS[0])
    results = SearchResults((LONG,), "exact", 9, 2, "asked for", 0, 9, "a note")
    page = results._repr_html_()
    assert "1:02:00.0" in page
    assert "confidence" in page
    assert "a note" in page
    assert "note='a note'" in repr(results)
