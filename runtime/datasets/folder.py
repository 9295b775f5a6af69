"""Captions of one's own: a folder of videos with a CSV or JSONL file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import find_annotation
from xclip_deploy.runtime.datasets.captions import CaptionCollector
from xclip_deploy.runtime.datasets.json_annotations import expect_text, field, read_json_lines
from xclip_deploy.runtime.datasets.split import AnnotatedVideo, SplitName
from xclip_deploy.runtime.datasets.tables import read_table

CSV_NAME = "captions.csv"
JSON_LINES_NAME = "captions.jsonl"

_SPLITS: tuple[str, ...] = get_args(SplitName)
_Row = tuple[int, dict[str, str]]  # line number and fields


def read_folder(annotations: Path, split: SplitName) -> list[AnnotatedVideo]:
    """Read a split of a CSV or JSONL file of captions.

    A CSV file has the columns ``file`` and ``caption``, a JSONL file an object a line with
    these fields. ``file`` is a path below the folder of videos, or a file's name, with or
    without its ending. A file with several captions has several rows. A column or field
    ``split`` (``train``, ``val`` or ``test``) assigns each row to a split. Without it, all rows
    belong to every split.

    Args:
        annotations: The file, or a folder that holds either ``captions.csv`` or
            ``captions.jsonl``.
        split: Name of the split.

    Raises:
        AnnotationError: The file is missing or malformed, a caption is empty, or the split has
            no row.
    """
    path = _find_file(annotations)
    rows = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json_lines(path)
    rows = _of_split(path, rows, split)
    captions = CaptionCollector(path)
    for line, row in rows:
        file = row["file"].strip()
        if not file:
            raise AnnotationError(f"{path}:{line}: the file is empty; expected a video's name")
        captions.add(file, row["caption"], f"line {line} ({file})")
    return [AnnotatedVideo(file, texts) for file, texts in captions.by_id().items()]


def _find_file(annotations: Path) -> Path:
    if annotations.is_dir():
        if (annotations / CSV_NAME).exists() and (annotations / JSON_LINES_NAME).exists():
            raise AnnotationError(
                f"{annotations} holds both {CSV_NAME} and {JSON_LINES_NAME}; "
                "expected one of them, or the path of one"
            )
        return find_annotation(annotations, CSV_NAME, JSON_LINES_NAME)
    if annotations.suffix.lower() not in (".csv", ".jsonl"):
        raise AnnotationError(
            f"{annotations}: is no .csv or .jsonl file; expected one with file and caption, "
            f"or a folder with {CSV_NAME} or {JSON_LINES_NAME}"
        )
    return annotations


def _read_csv(path: Path) -> list[_Row]:
    return read_table(path, ("file", "caption"))


def _read_json_lines(path: Path) -> list[_Row]:
    rows = []
    for line, entry in read_json_lines(path):
        place = f"{path}:{line}"
        row = {name: expect_text(field(entry, name, place), place) for name in ("file", "caption")}
        if "split" in entry:
            row["split"] = expect_text(entry["split"], f"{place}: split")
        rows.append((line, row))
    return rows


def _of_split(path: Path, rows: list[_Row], split: SplitName) -> list[_Row]:
    if not any("split" in row for _, row in rows):
        return rows
    counts: Counter[str] = Counter()
    for line, row in rows:
        # A row of no known split is more likely a typing error than meant.
        if row.get("split", "").strip() not in _SPLITS:
            raise AnnotationError(
                f"{path}:{line}: split is {row.get('split')!r}; expected {', '.join(_SPLITS)} "
                "in every row, or in none"
            )
        counts[row["split"].strip()] += 1
    if not counts[split]:
        found = ", ".join(f"{name} ({count} rows)" for name, count in counts.items() if count)
        raise AnnotationError(f"{path}: has {found}; expected rows of split {split}")
    return [(line, row) for line, row in rows if row["split"].strip() == split]
