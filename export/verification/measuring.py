"""Run the reference and the runs on the same inputs, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import (
    DatasetError,
    EngineError,
    SessionError,
    VerificationError,
    VideoError,
)
from xclip_deploy.export.verification.differences import Differences
from xclip_deploy.export.verification.inputs import Inputs
from xclip_deploy.export.verification.runs import Run
from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.evaluation import FramesOrError, Matcher
from xclip_deploy.runtime.features import (
    Scores,
    TextFeatures,
    VideoFeatures,
    texts_at_once,
    videos_at_once,
)
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.progress import READING_FIRST, Progress, ProgressFunction
from xclip_deploy.runtime.video import VideoFrames

OutputKey = tuple[Graph, str]
"""Graph and output."""

_TEXT_OUTPUTS = ("sentence_features", "word_features")
_VIDEO_OUTPUTS = ("video_features", "frame_features")
_Output = TypeVar("_Output", TextFeatures, VideoFeatures, Scores)


@dataclass(eq=False)
class MeasuredRun:
    """A run's differences from the reference, as they are gathered."""

    run: Run
    differences: dict[OutputKey, Differences] = field(default_factory=dict)
    """Differences by output; up to the failure where the run broke off."""
    logits: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    """Logits [T, V]; None where the run broke off."""
    error: str | None = None
    """Reason why the run broke off."""
    seconds: dict[Graph, list[float]] = field(default_factory=dict)
    """Time of every call."""


@dataclass(frozen=True, eq=False)
class MeasuredRuns:
    """All runs on the same inputs."""

    reference: Run
    reference_seconds: dict[Graph, list[float]]
    """Time of every call."""
    reference_logits: npt.NDArray[np.float32] = field(repr=False)
    """Logits [T, V]."""
    score_scale: float
    """Factor from the reference's mean grain to its logits."""
    measured: tuple[MeasuredRun, ...]
    texts: tuple[str, ...]
    video_ids: tuple[str, ...]
    """Ids of the videos that were read."""
    video_of_text: npt.NDArray[np.int64] | None
    """Column of each text's video [T]; None where texts belong to no video."""
    thumbnails: tuple[npt.NDArray[np.uint8], ...] = field(repr=False)
    """One frame of each video, [s, s, 3]."""
    unreadable: tuple[str, ...]


def measure(
    reference: Run,
    runs: Sequence[Run],
    inputs: Inputs,
    *,
    max_batch: int,
    max_unreadable_share: float,
    progress: ProgressFunction,
) -> MeasuredRuns:
    """Run everything on the inputs. Every video is decoded once; each run encodes each text once.

    A run that fails or yields NaN breaks off, and its result says so; the others go on. All runs
    are open at the same time. Memory holds all videos' embeddings and the logits, once a run.

    Raises DatasetError where more videos than allowed are unreadable, and VerificationError where
    the reference itself fails or yields NaN or infinity.
    """
    every = _Runs(reference, runs)
    kept, unreadable, thumbnails, features = _encode_videos(
        every, inputs, max_batch, max_unreadable_share, progress
    )
    texts, columns = list(inputs.texts), None
    if inputs.video_of_text is not None:
        column = np.full(len(inputs.video_ids), -1, dtype=np.int64)
        column[kept] = np.arange(len(kept))
        columns = column[inputs.video_of_text]
        texts = [text for text, n in zip(texts, columns, strict=True) if n >= 0]
        columns = columns[columns >= 0]
    logits, scale = _score(every, texts, features, progress)
    return MeasuredRuns(
        reference=reference,
        reference_seconds=every.reference_seconds,
        reference_logits=logits,
        score_scale=scale,
        measured=tuple(every.measured),
        texts=tuple(texts),
        video_ids=tuple(inputs.video_ids[n] for n in kept),
        video_of_text=columns,
        thumbnails=tuple(thumbnails),
        unreadable=tuple(unreadable),
    )


class _Runs:
    """The reference and the runs that have not broken off."""

    def __init__(self, reference: Run, runs: Sequence[Run]) -> None:
        self.reference = reference
        self.reference_seconds: dict[Graph, list[float]] = {}
        self.measured = [MeasuredRun(run) for run in runs]

    def call(
        self, graph: Graph, function: Callable[[Matcher, int], _Output], names: Sequence[str]
    ) -> list[_Output | None]:
        """Call the reference and the runs on the same inputs, and compare their outputs.

        ``function``: takes a matcher and its number, 0 for the reference. ``names``: outputs to
        compare. Returns the outputs, the reference's first; None for runs that broke off.
        """
        try:
            with _timed(self.reference_seconds, graph):
                expected = function(self.reference.matcher, 0)
        except SessionError as error:
            raise VerificationError(
                f"the reference itself ({self.reference.identity.name}) fails: {error}"
            ) from error
        outputs: list[_Output | None] = [expected]
        for number, measured in enumerate(self.measured, 1):
            outputs.append(None)
            if measured.error is None:
                try:
                    with _timed(measured.seconds, graph):
                        outputs[number] = function(measured.run.matcher, number)
                except (SessionError, EngineError) as error:
                    measured.error = str(error)
                    measured.logits = None
        for name in names:
            self._compare((graph, name), [_tensor(output, name) for output in outputs])
        return outputs

    def _compare(self, key: OutputKey, arrays: Sequence[npt.NDArray[Any] | None]) -> None:
        expected, *others = arrays
        assert expected is not None
        if not np.isfinite(expected).all():
            raise VerificationError(
                f"the reference itself ({self.reference.identity.name}) yields NaN or infinity in "
                f"{key[0].value} {key[1]}; expected finite numbers: nothing can be compared with it"
            )
        for found, measured in zip(others, self.measured, strict=True):
            if found is not None:
                if key not in measured.differences:
                    are_vectors = key[0] is not Graph.SCORER
                    measured.differences[key] = Differences(are_vectors=are_vectors)
                measured.differences[key].add(expected, found)


@contextmanager
def _timed(seconds: dict[Graph, list[float]], graph: Graph) -> Iterator[None]:
    start_s = time.perf_counter()
    yield
    seconds.setdefault(graph, []).append(time.perf_counter() - start_s)


def _tensor(output: _Output | None, name: str) -> npt.NDArray[Any] | None:
    if output is None:
        return None
    if isinstance(output, Scores) and name in output.grains:
        return output.grains[name]
    array: npt.NDArray[Any] = getattr(output, name)
    return array


def _encode_videos(
    runs: _Runs,
    inputs: Inputs,
    max_batch: int,
    max_unreadable_share: float,
    progress: ProgressFunction,
) -> tuple[list[int], list[str], list[npt.NDArray[np.uint8]], list[VideoFeatures | None]]:
    """Encode all videos. Return the indices kept, the others' errors, thumbnails and features."""
    total = len(inputs.video_ids)
    kept: list[int] = []
    unreadable: list[str] = []
    thumbnails: list[npt.NDArray[np.uint8]] = []
    parts: list[list[VideoFeatures | None]] = []
    batch: list[npt.NDArray[np.uint8]] = []
    progress(Progress.waiting("videos", READING_FIRST))
    # Close the generator whatever happens: threads read for it.
    with closing(_generator(inputs.frames)) as outcomes:
        for n, outcome in enumerate(outcomes):
            if isinstance(outcome, VideoError):
                unreadable.append(str(outcome))
                if len(unreadable) > max_unreadable_share * total:
                    raise _too_many_unreadable(inputs, unreadable, n + 1, max_unreadable_share)
            else:
                frames = outcome.frames if isinstance(outcome, VideoFrames) else outcome
                kept.append(n)
                batch.append(frames)
                thumbnails.append(_thumbnail(frames))
            if batch and (len(batch) == max_batch or n + 1 == total):
                parts.append(_encode_batch(runs, batch))
                batch = []
            progress(Progress("videos", n + 1, total))
    if not kept:
        raise _too_many_unreadable(inputs, unreadable, total, max_unreadable_share)
    return kept, unreadable, thumbnails, [_join(of_run) for of_run in zip(*parts, strict=True)]


def _encode_batch(
    runs: _Runs, batch: Sequence[npt.NDArray[np.uint8]]
) -> list[VideoFeatures | None]:
    return runs.call(
        Graph.VIDEO_ENCODER, lambda matcher, _: matcher.encode_videos(batch), _VIDEO_OUTPUTS
    )


def _join(parts: Sequence[VideoFeatures | None]) -> VideoFeatures | None:
    whole = [part for part in parts if part is not None]
    return VideoFeatures.concatenate(whole) if len(whole) == len(parts) else None


def _score(
    runs: _Runs,
    texts: Sequence[str],
    videos: Sequence[VideoFeatures | None],
    progress: ProgressFunction,
) -> tuple[npt.NDArray[np.float32], float]:
    """Score all pairs. Return the reference's logits [T, V] and score scale; runs keep theirs."""
    config = runs.reference.matcher.config
    assert videos[0] is not None
    num_videos = len(videos[0])
    text_step = texts_at_once(config)
    video_step = videos_at_once(config, text_step)
    logits = np.empty((len(texts), num_videos), dtype=np.float32)
    for measured in runs.measured:
        if measured.error is None:
            measured.logits = np.empty_like(logits)
    names = ("logits", *(grain.value for grain in config.grains))
    products = squares = 0.0  # of the reference's logits and mean grains
    for rows in slices(len(texts), text_step):
        encoded = _encode_texts(runs, texts[rows])
        for columns in slices(num_videos, video_step):
            scores = _score_block(runs, encoded, videos, columns, names)
            for measured, found in zip(runs.measured, scores[1:], strict=True):
                if measured.logits is not None and found is not None:
                    measured.logits[rows, columns] = found.logits
            expected = scores[0]
            assert expected is not None
            logits[rows, columns] = expected.logits
            mean = np.mean(list(expected.grains.values()), axis=0, dtype=np.float64)
            products += float((expected.logits * mean).sum())
            squares += float((mean * mean).sum())
        progress(Progress("captions", rows.stop, len(texts)))
    return logits, products / squares if squares else 1.0


def _encode_texts(runs: _Runs, texts: Sequence[str]) -> list[TextFeatures | None]:
    return runs.call(
        Graph.TEXT_ENCODER, lambda matcher, _: matcher.encode_texts(texts), _TEXT_OUTPUTS
    )


def _score_block(
    runs: _Runs,
    texts: Sequence[TextFeatures | None],
    videos: Sequence[VideoFeatures | None],
    columns: slice,
    names: Sequence[str],
) -> list[Scores | None]:
    def score(matcher: Matcher, number: int) -> Scores:
        # Each scorer reads the outputs of its own encoders.
        text, video = texts[number], videos[number]
        assert text is not None, "a run that broke off is not called"
        assert video is not None, "a run that broke off is not called"
        return matcher.score(text, video[columns])

    return runs.call(Graph.SCORER, score, names)


def _thumbnail(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the middle frame, subsampled for a report."""
    frame = frames[len(frames) // 2]
    step = max(1, frame.shape[0] // 96)
    return np.ascontiguousarray(frame[::step, ::step])


def _too_many_unreadable(
    inputs: Inputs, unreadable: Sequence[str], seen: int, share: float
) -> DatasetError:
    return DatasetError(
        f"{inputs.source}: {len(unreadable)} of the first {seen} videos cannot be read, the last "
        f"because: {unreadable[-1] if unreadable else 'there were none'}; expected at most "
        f"{share:.1%} of {len(inputs.video_ids)}; mend the files or raise --max-unreadable-share"
    )


def _generator(frames: Iterable[FramesOrError]) -> Generator[FramesOrError, None, None]:
    yield from frames
