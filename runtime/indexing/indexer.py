"""Read, encode and commit files in batches, to bring a gallery up to date."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from xclip_deploy.errors import (
    GalleryError,
    InvalidArgumentError,
    VideoError,
    XclipDeployError,
)
from xclip_deploy.runtime.arguments import as_choice
from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.decoding import DecoderPool, FileContent, FrameStream
from xclip_deploy.runtime.gallery import Gallery, VideoFile
from xclip_deploy.runtime.gallery.checking import checked_features
from xclip_deploy.runtime.gallery.thumbnails import ThumbnailStore
from xclip_deploy.runtime.indexing.batching import (
    OpenVideo,
    WindowBatch,
)
from xclip_deploy.runtime.indexing.claims import Claims, Elsewhere
from xclip_deploy.runtime.indexing.committing import commit_files, detach_files
from xclip_deploy.runtime.indexing.planning import KnownFiles, plan_files
from xclip_deploy.runtime.indexing.records import (
    EncodedVideo,
    OnDuplicate,
    ReadyFile,
    Task,
)
from xclip_deploy.runtime.indexing.report import IndexReport, Tally
from xclip_deploy.runtime.indexing.reuse import Encode, FrameReuse
from xclip_deploy.runtime.indexing.sources import Sources, folders_above
from xclip_deploy.runtime.progress import ProgressFunction, ignore_progress
from xclip_deploy.runtime.video import Segmentation, Segmenter, SegmentFrames
from xclip_deploy.runtime.video.shots import check_scenedetect

Result = TypeVar("Result")

_LOG = logging.getLogger(__name__)
_TOUCHES_PER_COMMIT = 1024
_PULSE_S = 1.0
PulseFunction = Callable[[], None]


@dataclass(frozen=True)
class IndexSettings:
    """Sizes of batches and commits; they affect speed and memory, not results."""

    max_batch: int = 16
    """Most videos in one call of the encoder."""
    commit_videos: int = 256
    """Most videos between two commits."""
    commit_s: float = 10.0
    """Longest time between reading and committing a video, seconds, without encoding."""
    on_commit: Callable[[Sequence[str]], None] | None = None
    """Function that gets the committed paths after each commit."""
    pulse: PulseFunction | None = None
    """Function that is called about once a second, also while a decoder keeps the run waiting. An
    exception from it ends the run."""


class IndexRun:
    """One run that brings a gallery up to date with files. Commits made before an exception stay.

    After Ctrl-C, and after an encoder's error, encoded videos are committed.
    """

    def __init__(
        self,
        sources: Sources,
        gallery: Gallery,
        encode: Encode,
        pool: DecoderPool[Task],
        *,
        segmentation: Segmentation | None = None,
        thumbnails: ThumbnailStore | None = None,
        reuse: FrameReuse | None = None,
        settings: IndexSettings | None = None,
        progress: ProgressFunction = ignore_progress,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            sources: The files.
            gallery: The gallery to write to.
            encode: Called in this thread, with at most ``settings.max_batch`` videos or windows.
            pool: An empty pool of decoders, which reads the files. The caller closes it.
            segmentation: Policy by which long videos are cut; None keeps them whole.
            reuse: Encoder of overlapping windows for models that encode frames independently.
            thumbnails: Folder for a picture of each segment; None makes none.
            settings: Sizes of batches and commits.
            progress: Called after every video, and after every block of a long one.
            elsewhere: Contents that are not decoded; their files are appended to it.

        Raises:
            MissingExtraError: shots are wanted, and the package that finds them is not installed.
        """
        if segmentation is not None and segmentation.kind == "shots":
            check_scenedetect()
        self._sources = sources
        self._gallery = gallery
        self._pool = pool
        self._segmentation = segmentation or Segmentation.whole()
        self._settings = settings or IndexSettings()
        self._tally = Tally(sources, progress)
        self._todo: deque[Task] = deque()
        model = gallery.model
        check = partial(checked_features, max_frames=model.max_frames, dim=model.embed_dim)
        self._batch = WindowBatch(encode, self._settings.max_batch, check, thumbnails, reuse)
        self._thumbnails = thumbnails
        self._elsewhere = elsewhere
        self._open: list[OpenVideo] = []  # long videos that are being read
        self._ready: list[ReadyFile] = []
        self._fresh = 0  # files received since the last commit, without retries
        self._fresh_since = 0.0
        # Ctrl-C interrupts the main thread alone; commits run in another.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="commit")

    def run(self, on_duplicate: OnDuplicate = "update", *, prune: bool = False) -> IndexReport:
        """Read, encode and commit the files.

        ``on_duplicate``: treatment of videos that the gallery has, by id or by file: ``update``
        encodes those whose content changed, ``skip`` leaves them, ``replace`` encodes all again,
        ``error`` raises DuplicateIdError before anything is read. ``prune``: whether to remove
        files that disappeared from the folders of the sources.

        Raises GalleryError if the gallery cannot be written, DuplicateIdError, MetadataError.
        """
        as_choice("on_duplicate", on_duplicate, OnDuplicate)
        if on_duplicate == "error":
            self._gallery.check_new([source.wanted_id for source in self._sources.videos])
        self._gallery.refresh()
        known = KnownFiles(self._gallery.snapshot().listing(), self._sources, prune)
        self._claims = Claims(known.contents, self._elsewhere)
        try:
            plan = plan_files(self._sources, known, on_duplicate)
            self._todo += plan.read
            self._tally.place(*plan.unchanged)
            try:
                for part in slices(len(plan.touched), _TOUCHES_PER_COMMIT):
                    self._ready += plan.touched[part]
                    self._commit()
                self._read_all()
            except GalleryError:
                raise
            except BaseException:
                self._rescue()
                raise
            if prune:
                self._prune(known)
        finally:
            self._writer.shutdown()
        if self._thumbnails is not None and self._thumbnails.warning is not None:
            self._tally.warn_of(str(self._thumbnails.directory), self._thumbnails.warning)
        return self._tally.report()

    def _read_all(self) -> None:
        pool, claims = self._pool, self._claims
        while True:
            # The decoders fill the next batch while the encoder works on one.
            while self._todo and pool.has_room(beside=self._settings.max_batch):
                task = self._todo.popleft()
                wants_frames = partial(claims.wants_frames, task)
                pool.submit(task, task.source.path, wants_frames, self._segmentation)
            if not pool.in_flight and not self._open:
                self._encode()
                self._commit()
                if not self._todo:
                    return
                continue
            streams = [video.stream for video in self._open if video.stream is not None]
            taken = pool.take(self._patience_s(), streams)
            if self._settings.pulse is not None:
                self._settings.pulse()
            if taken is not None:
                self._receive(*taken)
            if self._batch.is_full:
                self._encode()
            for video in list(self._open):
                self._read_on(video)
            if self._fresh >= self._settings.commit_videos or self._time_left_s() == 0:
                self._encode()
                self._commit()

    def _patience_s(self) -> float | None:
        """Return how long to wait for a decoder."""
        left_s = self._time_left_s()
        if self._settings.pulse is None:
            return left_s
        return _PULSE_S if left_s is None else min(_PULSE_S, left_s)

    def _time_left_s(self) -> float | None:
        """Return the time until the next commit; None if there is nothing to commit."""
        if not self._fresh:
            return None
        return max(0.0, self._fresh_since + self._settings.commit_s - time.monotonic())

    def _receive(self, task: Task, outcome: FileContent | VideoError) -> None:
        if isinstance(outcome, VideoError):
            self._fail(task, outcome)
        elif isinstance(outcome.frames, FrameStream):
            self._open_stream(task, outcome, outcome.frames)
            return  # the file counts once it was read
        else:
            if outcome.frames is None:
                self._ready.append(_ready(task, outcome, None))
            else:
                self._batch.add_whole(
                    OpenVideo.whole(task, outcome, outcome.frames), outcome.frames
                )
                warnings = outcome.frames.warnings
                rate = self._pool.reading.sampling.frames_per_second
                if thinning := outcome.frames.thinning(rate):
                    hint = "what lies between is not found: index it in segments"
                    warnings = (*warnings, f"{thinning}; {hint}")
                if warnings:
                    self._tally.warn(task, "; ".join(warnings))
            self._note_read(task)
        self._tally.show()

    def _fail(self, task: Task, error: VideoError) -> None:
        self._claims.fail(task, error)
        self._tally.fail(task, str(error))

    def _note_read(self, task: Task) -> None:
        if not self._fresh:
            self._fresh_since = time.monotonic()
        self._fresh += 1
        self._tally.read(task)

    def _open_stream(self, task: Task, content: FileContent, stream: FrameStream) -> None:
        try:
            segmenter = Segmenter(
                self._segmentation, self._pool.reading.sampling, stream.duration_s
            )
        except InvalidArgumentError as error:  # too many segments
            stream.close()
            self._fail(task, VideoError(f"{task.source.path}: {error}"))
            self._tally.show()
            return
        self._open.append(OpenVideo(task, content, stream.duration_s, stream, segmenter))

    def _read_on(self, video: OpenVideo) -> None:
        """Take the next block of a long video, if there is one, and encode full batches."""
        stream, segmenter, task = video.stream, video.segmenter, video.task
        assert stream is not None
        assert segmenter is not None
        try:
            block = stream.poll()
        except VideoError as error:
            video.failure = error
            self._close(video)
            return
        if block is not None:
            video.position_s = float(block.times_s[-1])
            self._add(video, segmenter.add(block))
        if stream.has_ended and video.failure is None:
            self._add(video, segmenter.finish(stream.gaps))
            warnings = stream.warnings
            if segmenter.left_out:
                count = len(segmenter.left_out)
                warnings = (*warnings, f"{count} segments have no frame and are left out")
            if warnings and video.failure is None:
                self._tally.warn(task, "; ".join(warnings))
            video.is_complete = True
        if video.is_complete or video.failure is not None:
            self._close(video)
        self._tally.show(self._open[0].progress if self._open else "")

    def _add(self, video: OpenVideo, windows: Iterator[SegmentFrames]) -> None:
        for window in windows:
            self._batch.add(video, window)
            if self._batch.is_full:
                self._encode()
            if video.failure is not None:
                return

    def _close(self, video: OpenVideo) -> None:
        """End the reading of a long video, which is complete or has failed."""
        self._open.remove(video)
        assert video.stream is not None
        video.stream.close()
        if video.failure is not None:
            self._fail(video.task, video.failure)
            return
        self._note_read(video.task)
        if video.is_done:
            self._finish(video)

    def _finish(self, video: OpenVideo) -> None:
        self._ready.append(
            _ready(video.task, video.content, video.encoded(self._segmentation.text))
        )

    def _encode(self) -> None:
        for video in self._batch.encode():
            if video in self._open:
                continue  # it failed, and is closed where it is read
            if video.failure is not None:
                self._fail(video.task, video.failure)
            else:
                self._finish(video)

    def _commit(self) -> None:
        ready, self._ready, self._fresh = self._ready, [], 0
        if not ready:
            return
        result = self._undisturbed(partial(commit_files, self._gallery, ready))
        self._tally.place(*result.placed)
        for placed in result.placed:
            if placed.task.content_sha256 is not None:
                self._claims.store(placed.task)
        for item in result.missing:
            self._retry(item)
        self._tally.show()
        _LOG.info("committed %d files; %s", len(result.placed), self._tally.so_far())
        paths = [placed.task.source.path for placed in result.placed]
        if paths and self._settings.on_commit is not None:
            self._settings.on_commit(paths)

    def _retry(self, item: ReadyFile) -> None:
        """Read a file again whose content is not in the gallery after all, or report why not."""
        task = item.task
        if item.content_sha256 is not None and self._claims.is_open(item.content_sha256):
            self._ready.append(item)  # wait: another file with this content is in work
        elif self._elsewhere is not None and self._claims.is_elsewhere(item.content_sha256):
            self._elsewhere.files.append(item)
        elif reason := self._claims.failure(item.content_sha256):
            self._tally.fail(task, f"{task.source.path}: has the content of another: {reason}")
        else:
            task.is_retry = True
            self._todo.append(task)

    def _rescue(self) -> None:
        """Commit encoded videos before an exception propagates."""
        with suppress(XclipDeployError):
            try:
                self._encode()
            finally:
                self._commit()

    def _prune(self, known: KnownFiles) -> None:
        gone = []
        for path, video_id in known.unseen:
            empty = next(folders_above(path, self._sources.empty_folders), None)
            if empty is not None:
                self._tally.kept[empty] += 1
            elif has_disappeared(path):
                gone.append((path, video_id))
        for part in slices(len(gone), _TOUCHES_PER_COMMIT):
            detach = partial(detach_files, self._gallery, gone[part])
            self._tally.pruned += self._undisturbed(detach)

    def _undisturbed(self, work: Callable[[], Result]) -> Result:
        future = self._writer.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.result()
            raise


def _ready(task: Task, content: FileContent, encoded: EncodedVideo | None) -> ReadyFile:
    file = VideoFile(
        path=task.source.path, size_bytes=content.size_bytes, modified_ns=content.modified_ns
    )
    return ReadyFile(task, file, content.content_sha256, encoded)


def has_disappeared(path: str) -> bool:
    """Tell whether a file is gone; one on a disk that does not answer is not."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # an unreadable folder, or a disk that does not answer
    return False
