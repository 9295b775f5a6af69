"""Search the demo's gallery, judge what is found, and draw the evidence."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import get_args

from demo.judging import SHOWN, Answer, Evidence, Result, differences
from xclip_deploy import Retriever, SearchResult
from xclip_deploy.runtime.theme import Theme, can_draw


def read_captions(videos: Path) -> dict[str, str]:
    """Return the captions of the test videos in a generated dataset by file name."""
    with (videos / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    return {Path(row["file"]).name: row["caption"] for row in rows}


def find_answers(
    queries: Sequence[str],
    bundle: Path,
    gallery: Path,
    captions: Mapping[str, str],
    pictures: Path,
) -> list[Answer]:
    """Search for each query and explain its first result.

    ``captions``: file name of every video in the gallery -> what it shows. ``pictures``: folder
    that the evidence is drawn into, light and dark, where matplotlib is installed.
    """
    answers = []
    with Retriever(bundle, gallery) as retriever:
        for number, query in enumerate(queries, 1):
            hits = retriever.search(query, k=len(retriever), confidence=True).hits
            results = [_result(hit, captions) for hit in hits]
            right = [result for result in results if not differences(query, result.caption)]
            answers.append(
                Answer(
                    query=query,
                    results=tuple(results[:SHOWN]),
                    right=right[0] if right else None,
                    num_videos=len(results),
                    median_score=median(result.score for result in results),
                    evidence=_explain(retriever, query, hits[0], pictures, number),
                )
            )
    return answers


def _result(hit: SearchResult, captions: Mapping[str, str]) -> Result:
    assert hit.path is not None
    file = Path(hit.path)
    return Result(hit.rank, file, captions[file.name], hit.score, hit.confidence)


def _explain(
    retriever: Retriever, query: str, hit: SearchResult, folder: Path, number: int
) -> Evidence:
    explanation = retriever.explain(query, hit)
    pictures: dict[str, Path] = {}
    if can_draw():
        folder.mkdir(exist_ok=True)
        for theme in get_args(Theme):
            pictures[theme] = folder / f"{number}-{theme}.png"
            retriever.plot_explanation(explanation, pictures[theme], theme=theme)
    return Evidence(str(explanation), pictures)
