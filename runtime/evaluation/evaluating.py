"""Evaluate a model that encodes and scores: encode a split once, score all pairs, rank.

The same code measures a checkpoint in PyTorch and a bundle in any session. Both are a
:class:`Matcher`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Protocol, TypedDict, cast

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import DatasetError, InvalidArgumentError, VideoError
from xclip_deploy.runtime.arguments import (
    as_choice,
    as_instance,
    as_iterable,
    as_number,
    as_share,
    as_whole_number,
)
from xclip_deploy.runtime.arrays import check_finite, slices
from xclip_deploy.runtime.datasets import Split, SplitVideo
from xclip_deploy.runtime.evaluation.results import Evaluation, ModelIdentity, VideoProblem
from xclip_deploy.runtime.features import (
    SCORER_ELEMENTS,
    Scores,
    TextFeatures,
    VideoFeatures,
    texts_at_once,
    videos_at_once,
)
from xclip_deploy.runtime.metrics import dual_softmax_metrics, retrieval_metrics
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.progress import (
    READING_FIRST,
    Progress,
    ProgressFunction,
    ignore_progress,
)
from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.runtime.video import (
    FrameSampling,
    VideoFrames,
    VideoReader,
    VideoReading,
    read_videos,
)

FramesOrError = VideoFrames | npt.NDArray[np.uint8] | VideoError
"""Frames of a video, uint8 RGB [n, S, S, 3], bare or as read; or the error that prevented it."""


class Matcher(Protocol):
    """Model that encodes and scores: ``DeployedModel`` (a bundle), ``TorchMatcher`` (PyTorch)."""

    config: ModelConfig
    tokenizer: Tokenizer
    """The tokenizer of :meth:`encode_texts`; it counts the captions that are cut."""

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed texts, truncated to the model's length."""
        ...

    def encode_videos(self, videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        """Embed videos, each given by its valid frames: uint8 RGB [n, S, S, 3]."""
        ...

    def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against every video."""
        ...


class EvaluationOptions(TypedDict, total=False):
    """Options of :func:`evaluate_matcher` that every kind of model takes."""

    frames_per_second: float
    frames: Iterable[FramesOrError] | None
    dual_softmax_temperature: float | None
    max_unreadable_share: float
    max_batch: int
    reader: VideoReader
    num_threads: int | None
    progress: ProgressFunction | None


def evaluate_matcher(
    matcher: Matcher,
    split: Split,
    *,
    frames_per_second: float = 1.0,
    frames: Iterable[FramesOrError] | None = None,
    dual_softmax_temperature: float | None = None,
    max_unreadable_share: float = 0.1,
    max_batch: int = 16,
    reader: VideoReader = "pyav",
    num_threads: int | None = None,
    square_pixels: bool = False,
    identity: ModelIdentity | None = None,
    progress: ProgressFunction | None = None,
) -> Evaluation:
    """Encode every caption and every readable video of a split once, score, and rank.

    Memory holds T x V similarities, the embeddings of V videos and batches, for T captions.
    A similarity takes 4 bytes, a video's embeddings 4 D (F + 1) bytes.

    Args:
        matcher: Model that encodes and scores.
        split: Videos and captions.
        frames_per_second: Frames sampled per second of video. The model fixes their number.
        frames: Frames of every video in the order of the split, such as those of a cache. None
            reads the files.
        dual_softmax_temperature: Temperature of :func:`dual_softmax`, in logits. The metrics
            after it are reported too. None leaves them out.
        max_unreadable_share: Share of the videos with a file, 0 to 1, that may be unreadable.
        max_batch: Most videos encoded at once.
        reader: Library that decodes.
        num_threads: Videos read at the same time; None reads one per core.
        square_pixels: Whether anamorphic video is shown in its true proportions.
        identity: Description of the model in the result.
        progress: Function called after every video, and every few captions.

    Raises:
        DatasetError: More videos than allowed, or all, are unreadable.
        InvalidArgumentError: An argument is out of range, or a similarity is NaN or infinite.
        MissingExtraError: The reader's package is not installed.
    """
    config = matcher.config
    as_share("max_unreadable_share", max_unreadable_share)
    as_whole_number("max_batch", max_batch, 1)
    as_choice("reader", reader, VideoReader)
    if dual_softmax_temperature is not None:
        as_number("dual_softmax_temperature", dual_softmax_temperature)
    if frames is not None:
        frames = as_iterable("frames", frames, "frames")
    if not split.videos or not split.captions:
        raise DatasetError(f"{split.name}: holds no videos with captions; expected at least one")
    report = progress or ignore_progress
    sampling = FrameSampling(frames_per_second=frames_per_second, max_frames=config.max_frames)
    if frames is None:
        report(Progress.waiting("videos", READING_FIRST))
        reading = VideoReading(sampling, config.vision.image_size, reader, square_pixels)
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
        truncated_captions=sum(
            cut > 0 for cut in matcher.tokenizer.count_cut(captions, config.max_words)
        ),
    )


def read_split(
    videos: Sequence[SplitVideo], reading: VideoReading, *, threads: int | None = None
) -> Iterator[VideoFrames | VideoError]:
    """Read videos in their order with :func:`read_videos`, each up to its own end."""
    paths = [video.path for video in videos]
    ends_s = [video.end_s for video in videos]
    for _, outcome in read_videos(paths, reading, ends_s=ends_s, num_threads=threads):
        yield outcome


def similarity_matrix(
    matcher: Matcher,
    captions: Sequence[str],
    videos: VideoFeatures,
    *,
    scorer_elements: int = SCORER_ELEMENTS,
    progress: ProgressFunction | None = None,
) -> npt.NDArray[np.float32]:
    """Score T captions against V videos, and return their logits [T, V] in FP32.

    Every caption is encoded once. Captions are encoded and scored a few at a time, so that the
    memory beside the result does not grow with T. ``scorer_elements`` bounds captions times
    videos times words times frames scored at once. Raises InvalidArgumentError where a score
    is NaN or infinite.
    """
    config = matcher.config
    report = progress or ignore_progress
    text_step = texts_at_once(config, scorer_elements)
    video_step = videos_at_once(config, text_step, scorer_elements)
    similarity = np.empty((len(captions), len(videos)), dtype=np.float32)
    for rows in slices(len(captions), text_step):
        texts = matcher.encode_texts(captions[rows])
        for columns in slices(len(videos), video_step):
            similarity[rows, columns] = matcher.score(texts, videos[columns]).logits
        check_finite("the similarity of captions and videos", similarity[rows])
        report(Progress("captions", rows.stop, len(captions)))
    return similarity


class _VideoEncoding:
    """Videos of one evaluation: which were read, and which could not be."""

    def __init__(
        self,
        matcher: Matcher,
        split: Split,
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
        """Encode the readable videos. Raises DatasetError where too many are unreadable."""
        total = len(self._split.videos)
        parts: list[VideoFeatures] = []
        batch: list[npt.NDArray[np.uint8]] = []
        # The generator is always closed: threads read for it.
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
            return cast("npt.NDArray[np.uint8]", as_instance("frames", outcome, *_FRAMES))
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


_FRAMES = (np.ndarray, "uint8 [n, S, S, 3], VideoFrames or a VideoError")


def _generator(frames: Iterable[FramesOrError]) -> Generator[FramesOrError, None, None]:
    yield from frames
