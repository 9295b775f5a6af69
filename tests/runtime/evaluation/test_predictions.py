"""Predictions in files: read back as they were, and in the forms of other evaluators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.errors import AnnotationError, InvalidArgumentError
from xclip_deploy.runtime.datasets.moments import MomentQuery
from xclip_deploy.runtime.evaluation.moments import (
    Prediction,
    corpus_recall,
    read_predictions,
    write_predictions,
)

QUERIES = [
    MomentQuery(90200, "a text — with more", "a", ((0.0, 5.0),)),
    MomentQuery("x#1", "another", "b", ((2.0, 4.0),)),
]
RANKINGS = [
    [Prediction("b", 1.25, 3.5, 2.0), Prediction("a", 0.0, 5.0, 1.5), Prediction("b", 4, 5, -1.0)],
    [Prediction("b", 2.0, 4.0, 0.1)],
]
# Characters for which ``str.isprintable`` is true. A filter would reject too many texts.
printable = st.characters(exclude_categories=("C", "Z"), include_characters=" ")
numbers = st.floats(0, 1e5)
rankings = st.lists(
    st.builds(
        lambda name, start, length, score: Prediction(name, start, start + length, score),
        st.text(printable, min_size=1),
        numbers,
        numbers,
        st.floats(-1e6, 1e6),
    )
)


def test_they_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_predictions(path, QUERIES, RANKINGS)
    assert read_predictions(path, QUERIES) == RANKINGS
    assert read_predictions(path, QUERIES[::-1]) == RANKINGS[::-1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


@given(rankings)
def test_whatever_they_are(tmp_path_factory: pytest.TempPathFactory, ranking: Any) -> None:
    path = tmp_path_factory.mktemp("any") / "out.jsonl"
    write_predictions(path, QUERIES[:1], [ranking])
    assert read_predictions(path, QUERIES[:1]) == [ranking]


def test_fields_of_tvr_and_moment_detr(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_predictions(path, QUERIES, RANKINGS)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["desc_id"], first["desc"], first["vid_name"]) == (90200, QUERIES[0].text, "a")
    assert first["predictions"][0] == ["b", 1.25, 3.5, 2.0]
    assert (second["qid"], second["query"], second["vid"]) == ("x#1", "another", "b")
    # Those of the corpus that lie in the right video.
    assert first["pred_relevant_windows"] == [[0.0, 5.0, 1.5]]
    within = [[Prediction("a", 1.0, 2.0, 9.0)], []]
    write_predictions(path, QUERIES, RANKINGS, within)
    first = json.loads(path.read_text().splitlines()[0])
    assert first["pred_relevant_windows"] == [[1.0, 2.0, 9.0]]


def test_a_submission_of_tvr_evaluates_to_the_same(tmp_path: Path) -> None:
    """TVR's evaluator compares video numbers and takes the first three cells, as this loop."""
    path = tmp_path / "out.json"
    write_predictions(path, QUERIES, RANKINGS)
    submission = json.loads(path.read_text())
    number = submission["video2idx"]
    assert sorted(number.values()) == list(range(len(number)))
    hits = 0
    for query, entry in zip(QUERIES, submission["VCMR"], strict=True):
        assert entry["desc_id"] == query.id
        rows = np.array([cells[:3] for cells in entry["predictions"]][:1], dtype=np.float32)
        start, end = query.spans[0]
        shared = np.minimum(rows[:, 2], end) - np.maximum(rows[:, 1], start)
        union = np.maximum(rows[:, 2], end) - np.minimum(rows[:, 1], start)
        hits += bool(((shared / union >= 0.5) & (rows[:, 0] == number[query.video_id])).any())
    assert 100 * hits / 2 == corpus_recall(QUERIES, RANKINGS, at=(1,)).value(1, 0.5) == 50
    # Each video once, without times.
    assert submission["VR"][0]["predictions"] == [
        [number["b"], 0, 0, 2.0],
        [number["a"], 0, 0, 1.5],
    ]
    assert submission["SVMR"][0]["predictions"] == [[number["a"], 0.0, 5.0, 1.5]]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        write_predictions(tmp_path / "none" / "out.jsonl", QUERIES, RANKINGS)
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    broken: Any = [[(object(), 0.0, 1.0, 0.0)], []]
    with pytest.raises(TypeError):
        write_predictions(path, QUERIES, broken, [[], []])
    assert path.read_text() == "old"


def test_lengths_must_fit(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="1 rankings for 2 queries"):
        write_predictions(tmp_path / "out.jsonl", QUERIES, RANKINGS[:1])
    with pytest.raises(InvalidArgumentError, match="2 and 0 rankings for 2 queries"):
        write_predictions(tmp_path / "out.jsonl", QUERIES, RANKINGS, [])


def test_what_json_cannot_say_is_refused(tmp_path: Path) -> None:
    for score in (float("nan"), float("inf")):
        with pytest.raises(InvalidArgumentError, match="no finite number"):
            write_predictions(
                tmp_path / "out.jsonl", QUERIES[:1], [[Prediction("a", 0.0, 1.0, score)]]
            )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("[]", "a list; expected an object"),
        ('{"qid": 90200}', "expected 'predictions'"),
        ('{"predictions": []}', "expected 'desc_id'"),
        ('{"qid": null, "predictions": []}', "the id is None"),
        ('{"qid": 90200, "predictions": 3}', "a number; expected a list"),
        ('{"qid": 90200, "predictions": [[1, 2, 3]]}', "3 cells; expected video"),
        ('{"qid": 90200, "predictions": [[1, 2, 3, 4]]}', "a number; expected text"),
        ('{"qid": 90200, "predictions": [["a", 2, 1, 4]]}', "end not before it"),
        ('{"qid": 90200, "predictions": [["a", 0, NaN, 4]]}', "end not before it"),
        ('{"qid": 90200, "predictions": [["a", 0, "1", 4]]}', "end not before it"),
        ('{"qid": 90200, "predictions": []}\n' * 2, "id 90200 occurs twice"),
        ('{"qid": 90200, "predictions": []}', "no predictions for 1 of 2 queries, first 'x#1'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=expected):
        read_predictions(path, QUERIES)
