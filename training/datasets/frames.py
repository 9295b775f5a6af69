"""Frames of a split's videos, and a check of which videos can be read."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import DatasetError, InvalidArgumentError, TrainingError, VideoError
from xclip_deploy.runtime.datasets import Split, SplitVideo
from xclip_deploy.runtime.files import replaced_file
from xclip_deploy.runtime.progress import Progress, ProgressFunction
from xclip_deploy.runtime.video import VideoReading, check_reader, read_frames
from xclip_deploy.training.datasets.frame_cache import FrameCache, frame_key

_ALL_FRAMES = 1_000_000
"""Largest number of frames where all are read: 11 days at one a second."""


@dataclass(frozen=True)
class FrameSource:
    """Reader of frames, through a cache if there is one. It can be sent to other processes."""

    reading: VideoReading
    cache: FrameCache | None = None
    slice_position: int = 2
    """Frames of a video with more than ``max_frames``: 0 its first, 1 its last, 2 evenly spaced."""

    def __post_init__(self) -> None:
        """Check the reader: MissingExtraError is raised here, not in a worker process."""
        check_reader(self.reading)

    def read(self, video: SplitVideo) -> npt.NDArray[np.uint8]:
        """Return sampled frames, uint8 RGB [n, S, S, 3] with ``1 <= n <= max_frames``.

        Raises VideoError, which names the file, where no frame can be read. Other errors are
        those of ``read_video``.
        """
        key = self._key(video)
        if self.cache is None or key is None:
            return self._decode(video)
        frames = self.cache.read(key)
        if frames is None:
            frames = self._decode(video)
            # If the file changed meanwhile, the frames may be of neither state.
            if self._key(video) == key:
                self.cache.write(key, frames)
        return frames

    def _decode(self, video: SplitVideo) -> npt.NDArray[np.uint8]:
        frames = read_frames(video.path, self._reading(video)).frames
        most = self.reading.sampling.max_frames
        if self.slice_position == 2 or len(frames) <= most:
            return frames
        return np.ascontiguousarray(frames[:most] if self.slice_position == 0 else frames[-most:])

    def _reading(self, video: SplitVideo) -> VideoReading:
        reading = self.reading.until(video.end_s)
        if self.slice_position == 2:
            return reading
        # The others choose among all candidates, which are read first.
        sampling = reading.sampling.model_copy(update={"max_frames": _ALL_FRAMES})
        return replace(reading, sampling=sampling)

    def _key(self, video: SplitVideo) -> bytes | None:
        try:
            key = frame_key(video.path, self._reading(video))
        except OSError:
            return None  # reading the video will raise the right error
        if self.slice_position == 2:
            return key
        part = f" {self.slice_position} {self.reading.sampling.max_frames}"
        return hashlib.sha256(key + part.encode()).digest()

    def why_unreadable(self, video: SplitVideo) -> str | None:
        """Say in one line why no frame can be read; None where one can. Fills the cache."""
        key = self._key(video)
        if self.cache is not None and key is not None and self.cache.holds(key):
            return None  # the file was decoded, and is unchanged
        try:
            self.read(video)
        except VideoError as error:
            return str(error)
        return None


@dataclass(frozen=True)
class UnreadableVideo:
    """A video of which no frame can be read."""

    id: str
    path: Path
    reason: str
    """One line."""


@dataclass(frozen=True)
class ReadReport:
    """Videos of a split that cannot be used."""

    split: str
    """Name of the split."""
    num_videos: int
    """Number of annotated videos, with missing ones."""
    missing: tuple[str, ...]
    """Ids of videos without a file."""
    unreadable: tuple[UnreadableVideo, ...]

    @property
    def unreadable_share(self) -> float:
        """Share of unreadable videos among those that have a file, 0 to 1."""
        return len(self.unreadable) / max(1, self.num_videos - len(self.missing))

    def write(self, path: Path) -> None:
        """Write the report as JSON, whole or not at all. Raises OSError as the disk does."""
        content = {
            "split": self.split,
            "videos": self.num_videos,
            "missing": list(self.missing),
            "unreadable": [
                {"id": video.id, "path": str(video.path), "reason": video.reason}
                for video in self.unreadable
            ],
        }
        with replaced_file(path) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_videos(
    split: Split,
    source: FrameSource,
    *,
    num_workers: int = 0,
    on_progress: ProgressFunction | None = None,
) -> ReadReport:
    """Read every video of a split once, which fills the cache.

    A video whose frames are in the cache is not decoded again, so that with a cache only the
    first check of a dataset takes long.

    Args:
        split: Split whose videos are read.
        source: Reader of the frames.
        num_workers: Processes that read; 0 reads in this one. They start as new interpreters,
            so that a script must keep its work under ``if __name__ == "__main__"``.
        on_progress: Called after every video; it counts unreadable ones as failed.

    Returns:
        The report, the same for any number of workers.

    Raises:
        TrainingError: a worker process died.
        InvalidArgumentError: ``num_workers`` is negative, or an argument of ``read_video``.
    """
    if num_workers < 0:
        raise InvalidArgumentError(f"num_workers is {num_workers}; expected at least 0")
    unreadable: list[UnreadableVideo] = []
    for done, (video, reason) in enumerate(_reasons(split.videos, source, num_workers), 1):
        if reason is not None:
            unreadable.append(UnreadableVideo(video.id, video.path, reason))
        if on_progress is not None:
            on_progress(Progress("videos", done, len(split.videos), len(unreadable)))
    num_videos = len(split.videos) + len(split.missing)
    return ReadReport(split.name, num_videos, split.missing, tuple(unreadable))


def without_unreadable(split: Split, report: ReadReport, max_unreadable_share: float) -> Split:
    """Return the split without its unreadable videos and their captions.

    Args:
        split: Split that was checked.
        report: Result of ``check_videos``.
        max_unreadable_share: Largest share of unreadable videos among those that have a file,
            0 to 1.

    Raises:
        DatasetError: the share is larger, or no video is left.
        InvalidArgumentError: the report is of another split, or the share is not in 0 to 1.
    """
    if report.split != split.name:
        raise InvalidArgumentError(f"the report is of {report.split}; expected {split.name}")
    if not 0 <= max_unreadable_share <= 1:
        raise InvalidArgumentError(
            f"max_unreadable_share is {max_unreadable_share}; expected a share from 0 to 1"
        )
    bad = {video.id for video in report.unreadable}
    kept = np.array([video.id not in bad for video in split.videos], dtype=bool)
    if report.unreadable_share > max_unreadable_share or not kept.any():
        raise DatasetError(_refusal(report, max_unreadable_share))
    if kept.all():
        return split
    is_kept = kept[split.video_of_caption]
    new_number = np.cumsum(kept, dtype=np.int64) - 1
    return replace(
        split,
        videos=tuple(video for video in split.videos if video.id not in bad),
        captions=tuple(split.captions[index] for index in np.flatnonzero(is_kept)),
        video_of_caption=new_number[split.video_of_caption[is_kept]],
    )


def draws(stream: tuple[int, ...], count: int) -> npt.NDArray[np.uint64]:
    """Return ``count`` random numbers of 64 bits, a function of ``stream`` alone."""
    # NumPy promises the same stream of a bit generator in all versions.
    numbers: npt.NDArray[np.uint64] = np.random.PCG64(
        np.random.SeedSequence(list(stream))
    ).random_raw(count)
    return numbers


def in_order(
    frames: npt.NDArray[np.uint8], frame_order: int, stream: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    """Return frames [n, S, S, 3] in time (0), backwards (1) or shuffled (2) by ``stream``."""
    if frame_order == 0:
        return frames
    if frame_order == 1:
        return np.ascontiguousarray(frames[::-1])
    return frames[np.argsort(draws(stream, len(frames)), kind="stable")]


def _refusal(report: ReadReport, max_share: float) -> str:
    num_files = report.num_videos - len(report.missing)
    example = f", for example {report.unreadable[0].reason}" if report.unreadable else ""
    return (
        f"{report.split}: of {num_files} videos {len(report.unreadable)} cannot be read "
        f"({report.unreadable_share:.1%}){example}; expected at least one that can, and at most "
        f"{max_share:.1%} that cannot; mend the files or raise max_unreadable_share"
    )


def _reasons(
    videos: tuple[SplitVideo, ...], source: FrameSource, num_workers: int
) -> Iterator[tuple[SplitVideo, str | None]]:
    """Yield every video, in order, with the reason why it is unreadable, or None."""
    if num_workers == 0:
        for video in videos:
            yield video, source.why_unreadable(video)
        return
    pool = ProcessPoolExecutor(
        num_workers,
        # A forked copy can hang in a lock that a thread of this process held.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(source,),
    )
    waited_for = videos[0].path if videos else None
    try:
        futures = [pool.submit(_why_unreadable, video) for video in videos]
        for video, future in zip(videos, futures, strict=True):
            waited_for = video.path
            yield video, future.result()
    except BrokenProcessPool as error:
        raise TrainingError(
            f"{waited_for}: a process that read this or one of the next videos died, out of "
            f"memory or by a crash of the decoder; num_workers=0 shows where"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker_source: FrameSource | None = None
"""Source of a worker process, one for all its videos: its cache counts what it writes."""


def _start_worker(source: FrameSource) -> None:
    global _worker_source
    # Ctrl-C reaches every process of the terminal; the main process ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker_source = source


def _why_unreadable(video: SplitVideo) -> str | None:
    assert _worker_source is not None
    return _worker_source.why_unreadable(video)
