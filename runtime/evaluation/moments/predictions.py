"""Predicted moments, and the files by which evaluators of other projects read them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from xclip_deploy.errors import AnnotationError, InvalidArgumentError
from xclip_deploy.runtime.arguments import PathName, as_path
from xclip_deploy.runtime.datasets.json_annotations import (
    expect_list,
    expect_text,
    field,
    read_json_lines,
)
from xclip_deploy.runtime.datasets.moments import MomentQuery
from xclip_deploy.runtime.files import replace_text


class Prediction(NamedTuple):
    """One moment that a search found."""

    video_id: str
    start_s: float
    end_s: float
    score: float


Ranking: TypeAlias = Sequence[Prediction]
"""Predictions for one query, best first."""


def write_predictions(
    path: PathName,
    queries: Sequence[MomentQuery],
    corpus: Sequence[Ranking],
    within: Sequence[Ranking] | None = None,
) -> None:
    """Write predictions for others to evaluate, whole or not at all.

    A name that ends in ``.json`` gives one object in the form of TVR's submissions: the task
    names ``VCMR``, ``VR`` and ``SVMR``, and ``video2idx``, the number of each video. Any other
    name gives JSON lines, one for each query. ``desc_id``, ``desc``, ``vid_name`` and
    ``predictions`` are TVR's fields, with names of videos for their numbers. ``qid``,
    ``query``, ``vid`` and ``pred_relevant_windows`` are those of QVHighlights (moment_detr):
    the moments found within the right video.

    Args:
        path: File to write.
        queries: The queries.
        corpus: For each query, the moments found in all videos.
        within: For each query, the moments found in the right video; None takes those of
            ``corpus`` that lie in it.

    Raises:
        InvalidArgumentError: The file cannot be written, the lengths differ, or a number is not
            finite.
    """
    target = as_path("path", path)
    if len(queries) != len(corpus) or (within is not None and len(queries) != len(within)):
        counts = " and ".join(str(len(given)) for given in (corpus, within) if given is not None)
        raise InvalidArgumentError(
            f"{counts} rankings for {len(queries)} queries; expected one each"
        )
    if within is None:
        within = [
            [found for found in ranking if found.video_id == query.video_id]
            for query, ranking in zip(queries, corpus, strict=True)
        ]
    if target.suffix == ".json":
        entries: list[Any] = [_submission(queries, corpus, within)]
    else:
        entries = [_line(*line) for line in zip(queries, corpus, within, strict=True)]
    try:
        text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)
    except ValueError as error:
        raise InvalidArgumentError(
            "a prediction has a time or a score that is no finite number; expected finite ones"
        ) from error
    try:
        replace_text(target, text)
    except OSError as error:
        raise InvalidArgumentError(f"{target} cannot be written: {error.strerror}") from error


def read_predictions(path: PathName, queries: Sequence[MomentQuery]) -> list[list[Prediction]]:
    """Read the JSON lines of :func:`write_predictions`, in the order of the queries.

    Predictions of queries that are not asked for are passed over.

    Raises:
        AnnotationError: The file is missing or malformed, a query has no line or has two, or a
            prediction is not ``[video, start, end, score]``.
    """
    source = as_path("path", path)
    found: dict[object, list[Prediction]] = {}
    for line, entry in read_json_lines(source):
        place = f"{source}:{line}"
        query_id = entry["qid"] if "qid" in entry else field(entry, "desc_id", place)
        if not isinstance(query_id, (int, str)) or isinstance(query_id, bool):
            raise AnnotationError(f"{place}: the id is {query_id!r:.60}; expected number or text")
        if query_id in found:
            raise AnnotationError(f"{place}: id {query_id!r:.60} occurs twice; expected it once")
        rows = expect_list(field(entry, "predictions", place), f"{place}: predictions")
        found[query_id] = [_prediction(row, f"{place}: predictions") for row in rows]
    bare = [query.id for query in queries if query.id not in found]
    if bare:
        raise AnnotationError(
            f"{source}: no predictions for {len(bare)} of {len(queries)} queries, first "
            f"{bare[0]!r:.60}; expected a line for each"
        )
    return [found[query.id] for query in queries]


def _line(query: MomentQuery, corpus: Ranking, within: Ranking) -> dict[str, Any]:
    return {
        "qid": query.id,
        "query": query.text,
        "vid": query.video_id,
        "desc_id": query.id,
        "desc": query.text,
        "vid_name": query.video_id,
        "predictions": [list(found) for found in corpus],
        "pred_relevant_windows": [list(found[1:]) for found in within],
    }


def _submission(
    queries: Sequence[MomentQuery], corpus: Sequence[Ranking], within: Sequence[Ranking]
) -> dict[str, Any]:
    names = [query.video_id for query in queries]
    names += [found.video_id for ranking in corpus for found in ranking]
    number = {name: n for n, name in enumerate(dict.fromkeys(names))}
    by_video = [best_by_video(ranking) for ranking in corpus]

    def entries(rankings: Sequence[Ranking], *, is_timeless: bool = False) -> list[Any]:
        return [
            {
                "desc_id": query.id,
                "desc": query.text,
                "predictions": _numbered(ranking, number, is_timeless),
            }
            for query, ranking in zip(queries, rankings, strict=True)
        ]

    return {
        "video2idx": number,
        "VCMR": entries(corpus),
        "SVMR": entries(within),
        "VR": entries(by_video, is_timeless=True),
    }


def best_by_video(ranking: Ranking) -> list[Prediction]:
    """Return the best prediction of each video, in the order of the ranking."""
    best: dict[str, Prediction] = {}
    for found in ranking:
        best.setdefault(found.video_id, found)
    return list(best.values())


def _numbered(ranking: Ranking, number: Mapping[str, int], is_timeless: bool) -> list[list[float]]:
    return [
        [number[found.video_id], *((0, 0) if is_timeless else found[1:3]), found.score]
        for found in ranking
    ]


def _prediction(row: object, place: str) -> Prediction:
    cells = expect_list(row, place)
    if len(cells) != 4:
        raise AnnotationError(f"{place}: {len(cells)} cells; expected video, start, end, score")
    numbers = [cell for cell in cells[1:] if isinstance(cell, (int, float))]
    if len(numbers) != 3 or not all(math.isfinite(n) for n in numbers) or numbers[0] > numbers[1]:
        raise AnnotationError(
            f"{place}: {cells[1:]!r:.80}; expected start, end not before it, and score"
        )
    start_s, end_s, score = map(float, numbers)
    return Prediction(expect_text(cells[0], place), start_s, end_s, score)
