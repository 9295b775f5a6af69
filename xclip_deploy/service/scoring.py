"""Scores of texts and videos that requests give by name or as embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arrays import FloatArray
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.service.naming import find_id
from xclip_deploy.service.records import VideoRecords
from xclip_deploy.wire.search import MAX_BATCH

MAX_VIDEOS = 1000
MAX_SEGMENTS = 20_000
"""Most segments of all the videos of one request."""
_UNIT = 0.05
"""Largest difference of an embedding's length from 1."""


def score_named(
    model: DeployedModel,
    records: VideoRecords,
    texts: TextFeatures,
    names: Sequence[str],
    *,
    show_paths: bool,
) -> Scores:
    """Score texts against videos of the gallery; a video's score is that of its best segment.

    Grains are those of this segment. Raises GalleryError for a video that is not there, and
    InvalidArgumentError for too many segments.
    """
    ids = [find_id(records, name, show_paths=show_paths) for name in names]
    rows_of = records.segments(list(dict.fromkeys(ids)))
    counts = [len(rows_of[each]) for each in ids]
    if sum(counts) > MAX_SEGMENTS:
        raise InvalidArgumentError(
            f"the videos have {sum(counts)} segments; expected at most {MAX_SEGMENTS}"
        )
    rows = np.concatenate([rows_of[each] for each in ids])
    scores = model.score(texts, records.features(rows))
    if len(rows) == len(ids):
        return scores
    ends = np.cumsum(counts)
    best = np.stack(
        [
            start + scores.logits[:, start:end].argmax(axis=1)
            for start, end in zip(ends - counts, ends, strict=True)
        ],
        axis=1,
    )  # [T, V]

    def picked(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.take_along_axis(values, best, axis=1)

    grains = {name: picked(values) for name, values in scores.grains.items()}
    return Scores(picked(scores.logits), grains)


def check_texts(texts: TextFeatures, model: DeployedModel) -> None:
    """Refuse embeddings of texts that no encoder makes. Raises InvalidArgumentError."""
    words = model.config.max_words
    _check_count("texts", len(texts), MAX_BATCH)
    _check_vectors("sentence_features", texts.sentence_features)
    _check_vectors("word_features", texts.word_features)
    _check_lengths("num_words", texts.num_words, len(texts), words)


def check_videos(videos: VideoFeatures, model: DeployedModel) -> None:
    """Refuse embeddings of videos that no encoder makes. Raises InvalidArgumentError."""
    frames = model.config.max_frames
    _check_count("videos", len(videos), MAX_VIDEOS)
    _check_vectors("video_features", videos.video_features)
    _check_vectors("frame_features", videos.frame_features, may_be_empty=True)
    _check_lengths("num_frames", videos.num_frames, len(videos), frames)


def _check_count(what: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise InvalidArgumentError(f"found {count} {what} to score; expected 1 to {most}")


def _check_vectors(name: str, vectors: FloatArray, *, may_be_empty: bool = False) -> None:
    """Refuse vectors that are not of unit length: they could overflow the scorer.

    ``may_be_empty``: whether padding may be zero.
    """
    if not vectors.ndim or not np.issubdtype(vectors.dtype, np.floating):
        raise InvalidArgumentError(f"{name} holds no vectors of decimal numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=-1))
    is_unit = np.abs(lengths - 1) <= _UNIT
    if may_be_empty:
        is_unit |= lengths == 0
    if not is_unit.all():
        raise InvalidArgumentError(
            f"{name} holds a vector that is not of length 1; expected embeddings of the model"
        )


def _check_lengths(name: str, found: npt.NDArray[np.int32], count: int, most: int) -> None:
    is_whole = np.issubdtype(found.dtype, np.integer)
    if found.shape != (count,) or not is_whole or not ((found >= 1) & (found <= most)).all():
        raise InvalidArgumentError(f"{name} is wrong; expected {count} whole numbers, 1 to {most}")
