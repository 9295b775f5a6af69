"""Frames of a split's videos, and a check of which videos can be read."""

from __future__ import annotations

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


@dataclass(frozen=True)
class FrameSource:
    """Reader of frames, through a cache if there is one. It can be sent to other processes."""

    reading: VideoReading
    cache: FrameCache | None = None

    def __post_init__(self) -> None:
        """Check the reader: MissingExtraError is raised here, not in a worker process."""
        check_reader(self.reading)

    def read(self, video: SplitVideo) -> npt.NDArray[np.uint8]:
        """Return sampled frames, uint8 RGB [n, S, S, 3] with ``1 <= n <= max_frames``.

        Raises VideoError, which names the file, where no frame can be read. Other errors are
        those of ``read_video``.
        """
        reading = self.reading.until(video.end_s)
        key = _key(video, reading)
        if self.cache is None or key is None:
            return read_frames(video.path, reading).frames
        frames = self.cache.read(key)
        if frames is None:
            frames = read_frames(video.path, reading).frames
            # If the file changed meanwhile, the frames may be of neither state.
            if _key(video, reading) == key:
                self.cache.write(key, frames)
        return frames

    def why_unreadable(self, video: SplitVideo) -> str | None:
        """Say in one line why no frame can be read; None where one can. Fills the cache."""
        key = _key(video, self.reading.until(video.end_s))
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


def _key(video: SplitVideo, reading: VideoReading) -> bytes | None:
    try:
        return frame_key(video.path, reading)
    except OSError:
        return None  # reading the video will raise the right error


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
