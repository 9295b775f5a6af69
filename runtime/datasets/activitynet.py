"""ActivityNet Captions: long web videos with a paragraph each (Krishna et al., ICCV 2017)."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import check_unique, find_annotation
from xclip_deploy.runtime.datasets.captions import CaptionCollector
from xclip_deploy.runtime.datasets.json_annotations import (
    expect_list,
    expect_object,
    expect_text,
    field,
    read_json,
)
from xclip_deploy.runtime.datasets.split import AnnotatedVideo, SplitName

TRAIN_IDS = "train_ids.json"
TRAIN = "train.json"
VAL = "val_1.json"

_PREFIX = "v_"
_MAX_DURATION_S = 1e6
_log = logging.getLogger(__name__)


def read_activitynet(folder: Path, split: SplitName) -> list[AnnotatedVideo]:
    """Read a split of ActivityNet Captions.

    ``train.json`` and ``val_1.json`` hold ``{v_id: {duration, timestamps, sentences}}``. The
    sentences of a video are joined to one caption of the whole video. Training takes the
    videos of ``train_ids.json``, a list of ids. It leaves out videos without sentences, since
    the lists name videos that were never described. Evaluation (``val`` and ``test``) takes
    all videos of ``val_1.json`` and does not read ``val_ids.json``. Ids lose their ``v_``.
    File names may have it or not.

    Args:
        folder: Folder that holds the annotation files.
        split: Name of the split.

    Raises:
        AnnotationError: A file is missing or malformed, an id occurs twice, or all sentences
            of a video are empty.
    """
    path = find_annotation(folder, TRAIN if split == "train" else VAL)
    entries = expect_object(read_json(path), str(path))
    wanted = list(entries)
    if split == "train":
        listing = find_annotation(folder, TRAIN_IDS)
        listed = _read_ids(listing)
        wanted = [video_id for video_id in listed if video_id in entries]
        if not wanted:
            raise AnnotationError(f"{path}: none of the {len(listed)} videos of {listing.name}")
        if len(wanted) < len(listed):
            bare = len(listed) - len(wanted)
            _log.warning(
                "%s: %d of %d videos are left out: they are not in %s",
                listing,
                bare,
                len(listed),
                path.name,
            )
    captions = CaptionCollector(path)
    for video_id in wanted:
        place = f"{path}: {video_id}"
        entry = expect_object(entries[video_id], place)
        sentences = expect_list(field(entry, "sentences", place), f"{place}.sentences")
        text = " ".join(expect_text(sentence, f"{place}.sentences") for sentence in sentences)
        captions.add(video_id, text, video_id)
    by_id = captions.by_id()
    names = check_unique(path, [(video_id, _without_prefix(video_id)) for video_id in wanted])
    return [
        AnnotatedVideo(
            name,
            by_id[video_id],
            other_names=(_PREFIX + name,),
            annotated_end_s=_annotated_end_s(entries[video_id]),
        )
        for name, video_id in zip(names, wanted, strict=True)
    ]


def _annotated_end_s(entry: object) -> float | None:
    """Return the duration of an entry, rounded up as the authors do; None where it has none."""
    duration = entry.get("duration") if isinstance(entry, dict) else None
    if not isinstance(duration, (int, float)) or not 0 < duration < _MAX_DURATION_S:
        return None
    return float(math.ceil(duration))


def _read_ids(path: Path) -> list[str]:
    values = expect_list(read_json(path), str(path))
    ids = [expect_text(value, f"{path}: [{number}]") for number, value in enumerate(values)]
    return check_unique(path, [(f"[{number}]", video_id) for number, video_id in enumerate(ids)])


def _without_prefix(video_id: str) -> str:
    return video_id.removeprefix(_PREFIX)
