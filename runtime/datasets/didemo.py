"""DiDeMo: personal videos of 25 to 30 s with descriptions of moments.

Hendricks et al., ICCV 2017. CLIP4Clip and X-CLIP retrieve its videos by paragraphs.
"""

from __future__ import annotations

import logging
from pathlib import Path

from xclip_deploy.runtime.datasets.annotation_files import find_annotation, read_ids
from xclip_deploy.runtime.datasets.captions import CaptionCollector
from xclip_deploy.runtime.datasets.json_annotations import (
    expect_list,
    expect_object,
    expect_text,
    field,
    read_json,
)
from xclip_deploy.runtime.datasets.split import AnnotatedVideo, SplitName

END_S = 31.0
"""End of the part that is read, in seconds. Videos were cut to 30 s for annotation; the authors
of CLIP4Clip take 31 s."""

_log = logging.getLogger(__name__)


def read_didemo(folder: Path, split: SplitName) -> list[AnnotatedVideo]:
    """Read a split of DiDeMo.

    ``train_list.txt``, ``val_list.txt`` and ``test_list.txt`` hold a video a line, with the
    ending of its original file (``….mov``). ``train_data.json``, ``val_data.json`` and
    ``test_data.json`` hold a list of objects with ``video`` and ``description``; their
    ``times`` are not read. The descriptions of a video are joined, in the order of the file,
    to one caption of its first 31 s. Descriptions of videos that the list lacks are left out,
    with a warning.

    Args:
        folder: Folder that holds the annotation files.
        split: Name of the split.

    Raises:
        AnnotationError: A file is missing or malformed, a video is listed twice or has no
            description, or all of its descriptions are empty.
    """
    listing = find_annotation(folder, f"{split}_list.txt")
    video_ids = read_ids(listing)
    paragraphs: dict[str, list[str]] = {video_id: [] for video_id in video_ids}
    path = find_annotation(folder, f"{split}_data.json")
    entries = expect_list(read_json(path), str(path))
    num_unlisted = 0
    for number, value in enumerate(entries):
        place = f"{path}: [{number}]"
        entry = expect_object(value, place)
        video_id = expect_text(field(entry, "video", place), f"{place}.video")
        text = expect_text(field(entry, "description", place), f"{place}.description")
        if video_id in paragraphs:
            paragraphs[video_id].append(text)
        else:
            num_unlisted += 1
    if num_unlisted:
        _log.warning(
            "%s: %d of %d descriptions are left out: their videos are not in %s",
            *(path, num_unlisted, len(entries), listing.name),
        )
    captions = CaptionCollector(path)
    for video_id, descriptions in paragraphs.items():
        if descriptions:
            captions.add(video_id, " ".join(descriptions), video_id)
    return captions.of(video_ids, listing, end_s=END_S)
