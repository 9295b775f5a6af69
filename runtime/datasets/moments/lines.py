"""Moments in files with a JSON object a line: TVR's, and one's own."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import find_annotation
from xclip_deploy.runtime.datasets.json_annotations import (
    expect_list,
    expect_text,
    field,
    read_json_lines,
)
from xclip_deploy.runtime.datasets.moments.records import (
    AnnotatedMoments,
    MomentCollector,
    Span,
    number_of,
    span_of,
)
from xclip_deploy.runtime.datasets.split import SplitName

MOMENTS_NAME = "moments.jsonl"


def read_tvr_moments(annotations: Path, split: SplitName) -> AnnotatedMoments:
    """Read the moments of a split of TVR, or of another dataset in its form.

    ``tvr_train_release.jsonl`` and so on hold an object a line with ``desc_id``, ``desc``,
    ``vid_name`` and ``ts``: start and end in seconds, or a list of such pairs, one for each
    annotator. A ``duration`` must not lie before an end. TVR's public test file has no times
    and cannot be evaluated.

    Args:
        annotations: Folder that holds the file, or the file itself.
        split: Name of the split.

    Raises:
        AnnotationError: The file is missing or malformed.
    """
    path = annotations
    if not annotations.is_file():
        path = find_annotation(annotations, f"tvr_{split}_release.jsonl", f"{split}.jsonl")
    moments = MomentCollector(path)
    for line, entry in read_json_lines(path):
        place = f"{path}:{line}"
        if "ts" not in entry or "vid_name" not in entry:
            raise AnnotationError(
                f"{place}: holds no times or no video ('ts', 'vid_name'), as TVR's public test "
                "file; expected annotations with both, such as tvr_val_release.jsonl"
            )
        spans = _spans(entry["ts"], f"{place}: ts")
        if "duration" in entry:
            duration_s = number_of(entry["duration"], f"{place}: duration")
            # Durations are rounded to 10 ms in the published files, ends are not always.
            if max(end for _, end in spans) > duration_s + 1:
                raise AnnotationError(
                    f"{place}: ends at {spans[-1][1]:g} s in a video of {duration_s:g} s; "
                    "expected an end inside"
                )
        moments.add(
            field(entry, "desc_id", place),
            expect_text(field(entry, "desc", place), f"{place}: desc"),
            expect_text(entry["vid_name"], f"{place}: vid_name"),
            spans,
            place,
        )
    return AnnotatedMoments(moments.queries())


def read_own_moments(annotations: Path, split: SplitName) -> AnnotatedMoments:
    """Read moments of one's own, such as those of the generated long videos.

    A JSONL file has an object a line with ``file``, ``caption``, ``start_s`` and ``end_s``.
    ``file`` is a path below the folder of videos. ``split`` assigns a line to a split; without
    it, all lines belong to every split. The id of a query is the number of its line.

    Args:
        annotations: The file, or a folder that holds ``moments.jsonl``.
        split: Name of the split.

    Raises:
        AnnotationError: The file is missing or malformed, or the split has no line.
    """
    path = annotations if annotations.is_file() else find_annotation(annotations, MOMENTS_NAME)
    moments = MomentCollector(path)
    for line, entry in read_json_lines(path):
        place = f"{path}:{line}"
        named = entry.get("split", split)
        if named not in get_args(SplitName):
            raise AnnotationError(
                f"{place}: split is {named!r:.60}; expected {', '.join(get_args(SplitName))}"
            )
        if named != split:
            continue
        moments.add(
            line,
            expect_text(field(entry, "caption", place), f"{place}: caption"),
            expect_text(field(entry, "file", place), f"{place}: file").strip(),
            [span_of(field(entry, "start_s", place), field(entry, "end_s", place), place)],
            place,
        )
    return AnnotatedMoments(moments.queries())


def _spans(value: object, place: str) -> list[Span]:
    times = expect_list(value, place)
    if not times or not isinstance(times[0], list):
        times = [times]
    spans = []
    for time in times:
        bounds = expect_list(time, place)
        if len(bounds) != 2:
            raise AnnotationError(f"{place}: {len(bounds)} numbers; expected start and end")
        spans.append(span_of(bounds[0], bounds[1], place))
    return spans
