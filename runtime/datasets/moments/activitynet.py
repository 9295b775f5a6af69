"""ActivityNet Captions: sentences of long web videos, with their times."""

from __future__ import annotations

import logging
from pathlib import Path

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.activitynet import TRAIN, VAL
from xclip_deploy.runtime.datasets.annotation_files import find_annotation
from xclip_deploy.runtime.datasets.json_annotations import (
    expect_list,
    expect_object,
    expect_text,
    field,
    read_json,
)
from xclip_deploy.runtime.datasets.moments.records import (
    MAX_TIME_S,
    AnnotatedMoments,
    MomentCollector,
    number_of,
)
from xclip_deploy.runtime.datasets.split import SplitName

_PREFIX = "v_"
_log = logging.getLogger(__name__)


def read_activitynet_moments(annotations: Path, split: SplitName) -> AnnotatedMoments:
    """Read the moments of a split of ActivityNet Captions.

    ``train.json``, ``val_1.json`` and ``val_2.json`` hold ``{v_id: {duration, timestamps,
    sentences}}``. Papers on moments validate on ``val_1`` and test on ``val_2``; the split
    ``test`` takes ``val_2.json`` where it exists, else ``val_1.json``. Times are cut at both
    ends of the video. The published files hold a few sentences without words, and a few whose
    times are empty. They are left out, as in the papers, and counted in the log. The id of a
    query is ``VIDEO#NUMBER``.

    Args:
        annotations: Folder that holds the file, or the file itself.
        split: Name of the split.

    Raises:
        AnnotationError: The file is missing or malformed, or a video has not as many times as
            sentences.
    """
    names = {"train": (TRAIN,), "val": (VAL,), "test": ("val_2.json", VAL)}[split]
    path = annotations if annotations.is_file() else find_annotation(annotations, *names)
    moments = MomentCollector(path)
    left_out = 0
    for video_id, value in expect_object(read_json(path), str(path)).items():
        place = f"{path}: {video_id}"
        entry = expect_object(value, place)
        duration_s = number_of(field(entry, "duration", place), f"{place}.duration")
        sentences = expect_list(field(entry, "sentences", place), f"{place}.sentences")
        times = expect_list(field(entry, "timestamps", place), f"{place}.timestamps")
        if len(sentences) != len(times):
            raise AnnotationError(
                f"{place}: {len(times)} timestamps for {len(sentences)} sentences; expected one "
                "for each"
            )
        for number, (sentence, time) in enumerate(zip(sentences, times, strict=True)):
            text = expect_text(sentence, f"{place}.sentences")
            start_s, end_s = _cut(time, duration_s, f"{place}.timestamps[{number}]")
            if start_s >= end_s or not text.strip():
                left_out += 1
                continue
            name = video_id.removeprefix(_PREFIX)
            spans = [(start_s, end_s)]
            moments.add(f"{name}#{number}", text, name, spans, f"{place}[{number}]")
    if left_out:
        _log.info("%s: %d sentences without text or time are left out", path, left_out)
    return AnnotatedMoments(moments.queries(), prefixes=(_PREFIX,))


def _cut(time: object, duration_s: float, place: str) -> tuple[float, float]:
    bounds = expect_list(time, place)
    if len(bounds) != 2:
        raise AnnotationError(f"{place}: {len(bounds)} numbers; expected start and end")
    start_s, end_s = (number_of(bound, place, -MAX_TIME_S) for bound in bounds)
    return max(start_s, 0.0), min(end_s, duration_s)
