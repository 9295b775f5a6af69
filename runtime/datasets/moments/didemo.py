"""DiDeMo: moments of five-second chunks, each marked by several annotators.

Hendricks et al., "Localizing Moments in Video with Natural Language", ICCV 2017.
"""

from __future__ import annotations

from pathlib import Path

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import find_annotation
from xclip_deploy.runtime.datasets.json_annotations import (
    expect_list,
    expect_object,
    expect_text,
    field,
    read_json,
)
from xclip_deploy.runtime.datasets.moments.records import AnnotatedMoments, MomentCollector
from xclip_deploy.runtime.datasets.split import SplitName

CHUNK_S = 5.0
"""Length of a chunk, seconds."""
NUM_CHUNKS = 6
"""Chunks of a video: its first 30 s. Videos below 25 s have five."""


def read_didemo_moments(annotations: Path, split: SplitName) -> AnnotatedMoments:
    """Read the moments of a split of DiDeMo.

    ``train_data.json``, ``val_data.json`` and ``test_data.json`` hold a list of objects with
    ``video``, ``description`` and ``times``: for each annotator the first and the last chunk of
    the moment, counted from 0. Chunks 1 to 2 are the seconds 5 to 15. ``annotation_id`` is the
    id of a query, or else its place in the file. The lists of videos are not read, since the
    published numbers count every description.

    Args:
        annotations: Folder that holds the file, or the file itself.
        split: Name of the split.

    Raises:
        AnnotationError: The file is missing or malformed, or a chunk is none of 0 to 5.
    """
    path = annotations
    if not annotations.is_file():
        path = find_annotation(annotations, f"{split}_data.json")
    moments = MomentCollector(path)
    for number, value in enumerate(expect_list(read_json(path), str(path))):
        place = f"{path}: [{number}]"
        entry = expect_object(value, place)
        spans = []
        for marked in expect_list(field(entry, "times", place), f"{place}.times"):
            first, last = _chunks(marked, f"{place}.times")
            spans.append((first * CHUNK_S, (last + 1) * CHUNK_S))
        moments.add(
            entry.get("annotation_id", number),
            expect_text(field(entry, "description", place), f"{place}.description"),
            expect_text(field(entry, "video", place), f"{place}.video"),
            spans,
            place,
        )
    return AnnotatedMoments(moments.queries())


def _chunks(marked: object, place: str) -> tuple[int, int]:
    chunks = expect_list(marked, place)
    are_whole = all(isinstance(c, int) and not isinstance(c, bool) for c in chunks)
    if len(chunks) != 2 or not are_whole or not 0 <= chunks[0] <= chunks[1] < NUM_CHUNKS:  # type: ignore[operator]
        raise AnnotationError(
            f"{place}: {chunks!r:.60}; expected the first and the last chunk, 0 to "
            f"{NUM_CHUNKS - 1}, the first not after the last"
        )
    return chunks[0], chunks[1]  # type: ignore[return-value]
