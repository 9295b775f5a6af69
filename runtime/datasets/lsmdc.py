"""LSMDC: short clips of films with a sentence each (Rohrbach et al., IJCV 2017)."""

from __future__ import annotations

from pathlib import Path

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import (
    check_unique,
    find_annotation,
    read_lines,
)
from xclip_deploy.runtime.datasets.captions import CaptionCollector
from xclip_deploy.runtime.datasets.split import AnnotatedVideo, SplitName

FILES: dict[SplitName, str] = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
_FIELDS = (
    "clip id",
    "start aligned",
    "end aligned",
    "start extracted",
    "end extracted",
    "sentence",
)


def read_lsmdc(folder: Path, split: SplitName) -> list[AnnotatedVideo]:
    """Read a split of LSMDC.

    The files have no header. A line has six fields, separated by tabs and never quoted: clip
    id, four times, and the sentence. The times may be empty. Several lines may describe one
    clip, except in the test set, which promises 1000 different ones. Clip ids hold dots
    (``0001_American_Beauty_00.00.51.926-00.00.54.129``).

    Args:
        folder: Folder that holds the annotation files.
        split: Name of the split.

    Raises:
        AnnotationError: The file is missing or malformed, a sentence is empty, or a clip
            occurs twice in the test set.
    """
    path = find_annotation(folder, FILES[split])
    captions = CaptionCollector(path)
    clips: list[tuple[str, str]] = []
    for number, line in read_lines(path):
        fields = line.split("\t")
        while len(fields) > len(_FIELDS) and not fields[-1].strip():
            fields.pop()  # tabs after the sentence hold nothing
        if len(fields) != len(_FIELDS):
            raise AnnotationError(
                f"{path}:{number}: {len(fields)} fields separated by tabs; expected "
                f"{len(_FIELDS)} ({', '.join(_FIELDS)})"
            )
        clip_id = fields[0].strip()
        if split == "test" or clip_id not in captions:
            clips.append((f"line {number}", clip_id))
        captions.add(clip_id, fields[-1], f"line {number} ({clip_id})")
    return captions.of(check_unique(path, clips), path)
