"""MSR-VTT: 10 000 web videos with 20 sentences each.

Xu et al., CVPR 2016. The test set is that of Yu et al., ECCV 2018 (JSFusion): 1000 videos with
one sentence each. Models train on the other 9000, or on the 7000 of the original training set.
"""

from __future__ import annotations

from pathlib import Path

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
from xclip_deploy.runtime.datasets.tables import read_table

TRAIN_9K = "MSRVTT_train.9k.csv"
TRAIN_7K = "MSRVTT_train.7k.csv"
TEST = "MSRVTT_JSFUSION_test.csv"
SENTENCES = "MSRVTT_data.json"


def read_msrvtt(
    folder: Path, split: SplitName, train_lists: tuple[str, ...] = (TRAIN_9K, TRAIN_7K)
) -> list[AnnotatedVideo]:
    """Read a split of MSR-VTT.

    Training takes every sentence of ``MSRVTT_data.json`` (``sentences``: objects with
    ``video_id`` and ``caption``) about a video of ``MSRVTT_train.9k.csv`` or
    ``MSRVTT_train.7k.csv`` (column ``video_id``). The JSFusion protocol has no validation set
    of its own, so that ``val`` is ``test``. It stands in ``MSRVTT_JSFUSION_test.csv``, in the
    columns ``video_id`` and ``sentence``.

    Args:
        folder: Folder that holds the annotation files.
        split: Name of the split.
        train_lists: Names of the list of training videos. The first that exists is read.

    Raises:
        AnnotationError: A file is missing or malformed, a video is listed twice or has no
            captions, or a caption is empty.
    """
    if split != "train":
        return _read_test(find_annotation(folder, TEST))
    listing = find_annotation(folder, *train_lists)
    rows = read_table(listing, ("video_id",))
    video_ids = check_unique(
        listing, [(f"line {line}", row["video_id"].strip()) for line, row in rows]
    )
    captions = _read_sentences(find_annotation(folder, SENTENCES), frozenset(video_ids))
    return captions.of(video_ids, listing)


def _read_test(path: Path) -> list[AnnotatedVideo]:
    rows = read_table(path, ("video_id", "sentence"))
    video_ids = check_unique(
        path, [(f"line {line}", row["video_id"].strip()) for line, row in rows]
    )
    captions = CaptionCollector(path)
    for video_id, (line, row) in zip(video_ids, rows, strict=True):
        captions.add(video_id, row["sentence"], f"line {line} ({video_id})")
    return captions.of(video_ids, path)


def _read_sentences(path: Path, video_ids: frozenset[str]) -> CaptionCollector:
    annotations = expect_object(read_json(path), str(path))
    sentences = expect_list(field(annotations, "sentences", str(path)), f"{path}: sentences")
    captions = CaptionCollector(path)
    for number, sentence in enumerate(sentences):
        place = f"sentences[{number}]"
        entry = expect_object(sentence, f"{path}: {place}")
        video_id = expect_text(field(entry, "video_id", f"{path}: {place}"), f"{path}: {place}")
        text = expect_text(field(entry, "caption", f"{path}: {place}"), f"{path}: {place}.caption")
        if video_id in video_ids:
            captions.add(video_id, text, f"{place} ({video_id})")
    return captions
