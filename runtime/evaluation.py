"""How well a model retrieves: encode a split of a dataset once, score it whole, rank.

Written for whatever encodes and scores (:class:`Matcher`), so that a checkpoint in PyTorch and
a bundle in any session are measured by the same code.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import DatasetError, InvalidArgumentError, VideoError
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures, check_finite
from xclip_deploy.runtime.metrics import RetrievalResult, dual_softmax_metrics, retrieval_metrics
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.progress import Progress, ProgressFunction, ignore_progress
from xclip_deploy.runtime.video import (
    FrameSampling,
    VideoFrames,
    VideoReader,
    VideoReading,
    read_videos,
)

_SCORER_ELEMENTS = 1 << 22
"""Word-frame similarities scored at once: 16 MiB per intermediate in FP32, of which the scorer
holds a handful."""
_TEXTS_AT_ONCE = 64
"""Captions whose word embeddings are in memory: 64 x 32 x 512 numbers are 4 MiB."""

FramesOrError = VideoFrames | npt.NDArray[np.uint8] | VideoError
"""Frames of a video, uint8 RGB [n, S, S, 3] bare or as read; or why there are none."""


class Matcher(Protocol):
    """What encodes and scores: ``DeployedModel`` (a bundle), ``TorchMatcher`` (PyTorch)."""

    config: ModelConfig

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed texts, cut to the model's length."""
        ...

    def encode_videos(self, videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        """Embed videos given by their valid frames alone: uint8 RGB [n, S, S, 3] each."""
        ...

    def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against every video."""
        ...


class EvaluatedVideo(Protocol):
    """A video of a split, as ``SplitVideo`` describes it."""

    @property
    def id(self) -> str:
        """As the dataset names it."""
        ...

    @property
    def path(self) -> Path:
        """Of the file."""
        ...

    @property
    def end_s(self) -> float | None:
        """Where to stop looking, as ``FrameSampling.end_s``; None: the whole video."""
        ...


class EvaluatedSplit(Protocol):
    """Videos and captions, as ``Split`` describes them."""

    @property
    def name(self) -> str:
        """Dataset and split, for people."""
        ...

    @property
    def videos(self) -> Sequence[EvaluatedVideo]:
        """Without repetition."""
        ...

    @property
    def captions(self) -> Sequence[str]:
        """Of all videos."""
        ...

    @property
    def video_of_caption(self) -> npt.NDArray[np.int64]:
        """[captions]: index into ``videos``; every video has at least one."""
        ...

    @property
    def missing(self) -> Sequence[str]:
        """Ids of annotated videos without a file."""
        ...


@dataclass(frozen=True)
class VideoProblem:
    """A video of a split that cannot be read, or not whole."""

    id: str
    path: str
    reason: str
    """One line."""


@dataclass(frozen=True)
class ModelIdentity:
    """Which model was evaluated, and how it ran."""

    kind: str
    """``bundle``, ``checkpoint``, or ``model`` for one in memory."""
    path: str | None = None
    identity: str | None = None
    """Of a bundle its fingerprint, of a checkpoint its SHA-256."""
    precision: str | None = None
    device: str | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation found."""

    split: str
    """Dataset and split."""
    model: ModelIdentity
    sampling: FrameSampling
    max_words: int
    """Tokens of a caption, start and end included; the rest was cut."""
    metrics: RetrievalResult
    dual_softmax: RetrievalResult | None
    """After re-scoring with the whole set of queries; None unless asked for. Not to be compared
    with ``metrics``: no single query could have it."""
    dual_softmax_temperature: float | None
    video_ids: tuple[str, ...]
    """[V]: of the videos that were read, the columns of ``similarity``."""
    video_of_caption: npt.NDArray[np.int64] = field(repr=False)
    """[T]: column of each caption's video."""
    similarity: npt.NDArray[np.float32] = field(repr=False)
    """[T, V]: logits of every caption with every video; 4 bytes each."""
    missing: tuple[str, ...]
    """Ids of annotated videos without a file; left out, with their captions."""
    unreadable: tuple[VideoProblem, ...]
    """Videos of which no frame could be read; left out, with their captions."""
    damaged: tuple[VideoProblem, ...]
    """Videos that were evaluated though they are truncated or corrupt."""

    @property
    def num_videos(self) -> int:
        """Videos that were ranked."""
        return len(self.video_ids)

    @property
    def num_captions(self) -> int:
        """Captions that were ranked."""
        return len(self.video_of_caption)

    def to_dict(self) -> dict[str, Any]:
        """As plain dictionaries, lists and numbers, for JSON; without the similarities."""
        rescored = None
        if self.dual_softmax is not None:
            temperature = self.dual_softmax_temperature
            rescored = {"temperature": temperature, **self.dual_softmax.to_dict()}
        return {
            "split": self.split,
            "model": asdict(self.model),
            "frames_per_second": self.sampling.frames_per_second,
            "max_frames": self.sampling.max_frames,
            "max_words": self.max_words,
            "num_videos": self.num_videos,
            "num_captions": self.num_captions,
            **self.metrics.to_dict(),
            "dual_softmax": rescored,
            "missing": list(self.missing),
            "unreadable": [asdict(video) for video in self.unreadable],
            "damaged": [asdict(video) for video in self.damaged],
        }


def evaluate_matcher(
    matcher: Matcher,
    split: EvaluatedSplit,
    *,
    frames_per_second: float = 1.0,
    frames: Iterable[FramesOrError] | None = None,
    dual_softmax_temperature: float | None = None,
    max_unreadable_share: float = 0.1,
    max_batch: int = 16,
    reader: VideoReader = "pyav",
    num_threads: int | None = None,
    identity: ModelIdentity | None = None,
    progress: ProgressFunction | None = None,
) -> Evaluation:
    """Encode every caption and every readable video of a split once, score, and rank.

    In memory at once: the similarities (4 bytes times captions times videos), the embeddings
    of all videos (4 bytes times D times the frames and one more, each), and batches.

    Args:
        matcher: Encodes and scores.
        split: Videos and captions.
        frames_per_second: Frames sampled per second of video; the number is the model's.
        frames: Frames of every video in the order of the split, where they come from elsewhere,
            such as a cache; by default the files are read.
        dual_softmax_temperature: Report the metrics after :func:`dual_softmax` too.
        max_unreadable_share: Share of the videos with a file, 0 to 1, that may be unreadable.
        max_batch: Most videos encoded at once.
        reader: Library that decodes.
        num_threads: Videos read at the same time; None: one per core.
        identity: What the result says of the model.
        progress: Called after every video, and every few captions.

    Raises:
        DatasetError: more videos than allowed are unreadable, or all.
        InvalidArgumentError: an argument out of range, a similarity that is NaN or infinite.
        MissingExtraError: the reader's package is not installed.
    """
    config = matcher.config
    if not 0 <= max_unreadable_share <= 1:
        raise InvalidArgumentError(
            f"max_unreadable_share is {max_unreadable_share}; expected a share from 0 to 1"
        )
    if max_batch < 1:
        raise InvalidArgumentError(f"max_batch {max_batch}: expected at least 1")
    if not split.videos or not split.captions:
        raise DatasetError(f"{split.name}: holds no videos with captions; expected at least one")
    report = progress or ignore_progress
    sampling = FrameSampling(frames_per_second=frames_per_second, max_frames=config.max_frames)
    if frames is None:
        reading = VideoReading(sampling, config.vision.image_size, reader)
        frames = read_split(split.videos, reading, threads=num_threads)
    videos = _VideoEncoding(matcher, split, max_unreadable_share, max_batch)
    features = videos.encode(frames, report)
    # Column of every video; -1 for those left out.
    column = np.full(len(split.videos), -1, dtype=np.int64)
    column[videos.kept] = np.arange(len(videos.kept))
    columns = column[split.video_of_caption]
    captions = [text for text, n in zip(split.captions, columns, strict=True) if n >= 0]
    video_of_caption = columns[columns >= 0]
    similarity = similarity_matrix(matcher, captions, features, progress=report)
    del features
    rescored = None
    if dual_softmax_temperature is not None:
        rescored = dual_softmax_metrics(
            similarity, video_of_caption, temperature=dual_softmax_temperature
        )
    return Evaluation(
        split=split.name,
        model=identity or ModelIdentity("model"),
        sampling=sampling,
        max_words=config.max_words,
        metrics=retrieval_metrics(similarity, video_of_caption),
        dual_softmax=rescored,
        dual_softmax_temperature=dual_softmax_temperature,
        video_ids=tuple(split.videos[n].id for n in videos.kept),
        video_of_caption=video_of_caption,
        similarity=similarity,
        missing=tuple(split.missing),
        unreadable=tuple(videos.unreadable),
        damaged=tuple(videos.damaged),
    )


def read_split(
    videos: Sequence[EvaluatedVideo], reading: VideoReading, *, threads: int | None = None
) -> Iterator[VideoFrames | VideoError]:
    """Read videos in their order, each up to its own end; see :func:`read_videos`."""
    # Datasets cut all of their videos at one time or none, so that there is one group.
    for end_s, group in groupby(videos, key=lambda video: video.end_s):
        paths = [video.path for video in group]
        for _, outcome in read_videos(paths, reading.until(end_s), num_threads=threads):
            yield outcome


def similarity_matrix(
    matcher: Matcher,
    captions: Sequence[str],
    videos: VideoFeatures,
    *,
    scorer_elements: int = _SCORER_ELEMENTS,
    progress: ProgressFunction | None = None,
) -> npt.NDArray[np.float32]:
    """Logits of T captions and V videos, [T, V], every caption encoded once.

    Captions are encoded and scored a few at a time, and their embeddings dropped, so that the
    memory beside the result does not grow with T. ``scorer_elements``: captions times videos
    times words times frames scored at once. Raises InvalidArgumentError where a score is NaN
    or infinite.
    """
    config = matcher.config
    report = progress or ignore_progress
    pairs = max(1, scorer_elements // (config.max_words * config.max_frames))
    text_step = min(_TEXTS_AT_ONCE, pairs)
    video_step = max(1, pairs // text_step)
    similarity = np.empty((len(captions), len(videos)), dtype=np.float32)
    for first in range(0, len(captions), text_step):
        rows = slice(first, first + text_step)
        texts = matcher.encode_texts(captions[rows])
        for start in range(0, len(videos), video_step):
            columns = slice(start, start + video_step)
            similarity[rows, columns] = matcher.score(texts, videos[columns]).logits
        check_finite("the similarity of captions and videos", similarity[rows])
        report(Progress("captions", min(rows.stop, len(captions)), len(captions)))
    return similarity


class _VideoEncoding:
    """The videos of one evaluation: what was read and what was not."""

    def __init__(
        self,
        matcher: Matcher,
        split: EvaluatedSplit,
        max_unreadable_share: float,
        max_batch: int,
    ) -> None:
        self._matcher = matcher
        self._split = split
        self._max_share = max_unreadable_share
        self._max_batch = max_batch
        self.kept: list[int] = []
        """Indices of the videos that were read, ascending."""
        self.unreadable: list[VideoProblem] = []
        self.damaged: list[VideoProblem] = []

    def encode(self, frames: Iterable[FramesOrError], progress: ProgressFunction) -> VideoFeatures:
        """Encode those that can be read. Raises DatasetError where too many cannot."""
        total = len(self._split.videos)
        parts: list[VideoFeatures] = []
        batch: list[npt.NDArray[np.uint8]] = []
        # A generator is closed whatever happens: threads are reading for it.
        with closing(_generator(frames)) as outcomes:
            for n, outcome in enumerate(outcomes):
                array = self._frames(n, outcome)
                if array is not None:
                    self.kept.append(n)
                    batch.append(array)
                if batch and (len(batch) == self._max_batch or n + 1 == total):
                    parts.append(self._matcher.encode_videos(batch))
                    batch = []
                progress(Progress("videos", n + 1, total))
        found = len(self.kept) + len(self.unreadable)
        if found != total:
            raise InvalidArgumentError(
                f"found {found} sets of frames for {total} videos; expected one each"
            )
        if not parts:
            raise self._refusal(found)
        return VideoFeatures.concatenate(parts)

    def _frames(self, n: int, outcome: FramesOrError) -> npt.NDArray[np.uint8] | None:
        if n >= len(self._split.videos):
            raise InvalidArgumentError(
                f"found more sets of frames than the {n} videos; expected one each"
            )
        video = self._split.videos[n]
        if isinstance(outcome, VideoError):
            self.unreadable.append(VideoProblem(video.id, str(video.path), str(outcome)))
            # At once, rather than after hours of encoding the rest.
            if len(self.unreadable) > self._max_share * len(self._split.videos):
                raise self._refusal(n + 1)
            return None
        if not isinstance(outcome, VideoFrames):
            return outcome
        if outcome.warnings:
            reason = "; ".join(outcome.warnings)
            self.damaged.append(VideoProblem(video.id, str(video.path), reason))
        return outcome.frames

    def _refusal(self, num_seen: int) -> DatasetError:
        return DatasetError(
            f"{self._split.name}: {len(self.unreadable)} of the first {num_seen} videos cannot be "
            f"read, the last because: {self.unreadable[-1].reason}; expected at least one that "
            f"can, and at most {self._max_share:.1%} of {len(self._split.videos)} that cannot; "
            "mend the files or raise max_unreadable_share"
        )


def _generator(frames: Iterable[FramesOrError]) -> Generator[FramesOrError, None, None]:
    yield from frames
