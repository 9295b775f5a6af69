"""Bringing a gallery up to date with files: read, encoded and committed in batches."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import GalleryError, InvalidArgumentError, VideoError, XclipDeployError
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, VideoFile
from xclip_deploy.runtime.indexing.claims import Claims
from xclip_deploy.runtime.indexing.committing import (
    EncodedClip,
    ReadyFile,
    Task,
    commit_files,
    detach_files,
)
from xclip_deploy.runtime.indexing.decoding import DecoderPool, available_cores
from xclip_deploy.runtime.indexing.known import KnownFiles
from xclip_deploy.runtime.indexing.processes import FileContent
from xclip_deploy.runtime.indexing.report import IndexReport
from xclip_deploy.runtime.indexing.sources import Sources
from xclip_deploy.runtime.indexing.tally import Tally
from xclip_deploy.runtime.video import FrameSampling, VideoReader

OnDuplicate = Literal["update", "skip", "replace", "error"]
Progress = Callable[[int, int, int], None]
"""Called with files done, files in all, and how many of the done ones failed."""
Encode = Callable[[Sequence[npt.NDArray[np.uint8]]], VideoFeatures]
"""Embeds videos given by their frames, uint8 [n, S, S, 3] each."""
Result = TypeVar("Result")

_LOG = logging.getLogger(__name__)
_TOUCHES_PER_COMMIT = 1024
_PROGRESS_EVERY = 1000


@dataclass(frozen=True)
class IndexSettings:
    """How to index; every number but the timeout is about speed and memory alone."""

    reader: VideoReader = "pyav"
    workers: int | None = None
    """Processes that decode; None for one per core."""
    timeout_s: float = 120.0
    """After which a video that is still being decoded is given up, seconds."""
    max_batch: int = 16
    """Most videos in one call of the encoder."""
    commit_videos: int = 256
    """Most videos between two commits."""
    commit_s: float = 10.0
    """Longest time from a video being read to its being committed, seconds, encoding apart."""
    on_commit: Callable[[Sequence[str]], None] | None = None
    """Called with the paths that the gallery now holds for good, after each commit."""


class Indexer:
    """Indexes files into one gallery, one run at a time."""

    def __init__(
        self,
        gallery: Gallery,
        encode: Encode,
        sampling: FrameSampling,
        image_size: int,
        settings: IndexSettings | None = None,
    ) -> None:
        """``encode``: called by the thread that calls :meth:`run`, with ``max_batch`` at most."""
        self._gallery = gallery
        self._encode = encode
        self._sampling = sampling
        self._image_size = image_size
        self._settings = settings or IndexSettings()

    def run(
        self,
        sources: Sources,
        *,
        on_duplicate: OnDuplicate = "update",
        prune: bool = False,
        progress: Progress | None = None,
    ) -> IndexReport:
        """Index ``sources``; what was committed before an exception stands.

        ``on_duplicate``: what to do with videos that the gallery has, by id or by file:
        ``update`` encodes those anew whose content changed, ``skip`` leaves them, ``replace``
        encodes all anew, ``error`` raises DuplicateIdError before anything is read. ``prune``:
        no longer list files that disappeared from the folders of ``sources``.

        After Ctrl-C, and after an encoder's error, what was encoded is committed. Raises
        GalleryError where the gallery cannot be written, MetadataError, InvalidArgumentError.
        """
        if on_duplicate not in get_args(OnDuplicate):
            raise InvalidArgumentError(
                f"on_duplicate {on_duplicate!r}: expected one of {', '.join(get_args(OnDuplicate))}"
            )
        if on_duplicate == "error":
            self._gallery.check_new([source.wanted_id for source in sources.videos])
        run = _Run(self._gallery, self._encode, self._settings, sources, progress)
        return run.run(self._sampling, self._image_size, on_duplicate, prune)


class _Run:
    def __init__(
        self,
        gallery: Gallery,
        encode: Encode,
        settings: IndexSettings,
        sources: Sources,
        progress: Progress | None,
    ) -> None:
        self._gallery = gallery
        self._encode_clips = encode
        self._settings = settings
        self._sources = sources
        self._tally = Tally(sources, progress)
        self._todo: deque[Task] = deque()
        self._touched: list[ReadyFile] = []
        self._batch: list[tuple[Task, FileContent]] = []
        self._ready: list[ReadyFile] = []
        self._fresh = 0  # of those in _batch and _ready, without those that wait for another
        self._fresh_since = 0.0
        # Ctrl-C reaches the main thread; a commit in another one is not torn by it.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="commit")

    def run(
        self, sampling: FrameSampling, image_size: int, on_duplicate: OnDuplicate, prune: bool
    ) -> IndexReport:
        settings = self._settings
        self._gallery.refresh()
        known = KnownFiles(self._gallery.snapshot().listing(), self._sources, prune)
        self._claims = Claims(known.contents)
        workers = available_cores() if settings.workers is None else settings.workers
        try:
            self._plan(known, on_duplicate)
            with DecoderPool[Task](
                sampling,
                image_size,
                reader=settings.reader,
                workers=workers,
                timeout_s=settings.timeout_s,
                window=2 * workers + settings.max_batch,
                wants_frames=self._claims.wants_frames,
            ) as pool:
                try:
                    self._commit_touched()
                    self._read_all(pool)
                except GalleryError:
                    raise
                except BaseException:
                    self._rescue()
                    raise
            if prune:
                self._prune(known)
        finally:
            self._writer.shutdown()
        return self._tally.report()

    def _plan(self, known: KnownFiles, on_duplicate: OnDuplicate) -> None:
        """Tell what has to be read from what is there and unchanged."""
        for order, source in enumerate(self._sources.videos):
            files = known.of(source.path)
            is_there = bool(files) or known.has_id(source.wanted_id)
            task = Task(order, source, files, replace=on_duplicate == "replace" and is_there)
            if on_duplicate == "skip" and is_there:
                name = files[0].video_id if files else source.wanted_id
                self._tally.unchanged(task, name)
            elif on_duplicate == "replace" or not self._is_unchanged(task):
                self._todo.append(task)
            if order % _PROGRESS_EVERY == 0:
                self._tally.show()
        self._tally.show()

    def _is_unchanged(self, task: Task) -> bool:
        if not task.known:
            return False
        source = task.source
        try:
            status = Path(source.path).stat()
        except OSError:
            return False  # reading it will say why
        size, modified = status.st_size, status.st_mtime_ns
        matching = [known for known in task.known if known.is_as(size, modified)]
        if not matching:
            return False
        # A file is listed twice after a run that was killed between two writes.
        matching.sort(key=lambda known: known.video_id != source.wanted_id)
        rest = [known for known in task.known if known is not matching[0]]
        task.known = (matching[0], *rest)
        known = matching[0]
        is_renamed = source.id is not None and known.is_first and source.id != known.video_id
        if rest or is_renamed or source.metadata is not None:
            file = VideoFile(path=source.path, size_bytes=size, modified_ns=modified)
            self._touched.append(ReadyFile(task, file, None, None))
        else:
            self._tally.unchanged(task, known.video_id)
        return True

    def _commit_touched(self) -> None:
        for start in range(0, len(self._touched), _TOUCHES_PER_COMMIT):
            self._ready += self._touched[start : start + _TOUCHES_PER_COMMIT]
            self._commit()
        self._touched = []

    def _read_all(self, pool: DecoderPool[Task]) -> None:
        while True:
            while self._todo and pool.has_room:
                task = self._todo.popleft()
                pool.submit(task, task.source.path)
            if not pool.in_flight:
                self._encode()
                self._commit()
                if not self._todo:
                    return
                continue
            taken = pool.take(self._time_left_s())
            if taken is not None:
                self._receive(*taken)
            if len(self._batch) >= self._settings.max_batch:
                self._encode()
            if self._fresh >= self._settings.commit_videos or self._time_left_s() == 0:
                self._encode()
                self._commit()

    def _time_left_s(self) -> float | None:
        """Until the next commit; None where there is nothing to commit."""
        if not self._fresh:
            return None
        return max(0.0, self._fresh_since + self._settings.commit_s - time.monotonic())

    def _receive(self, task: Task, outcome: FileContent | VideoError) -> None:
        if isinstance(outcome, VideoError):
            self._claims.fail(task, outcome)
            self._tally.fail(task, str(outcome))
        else:
            if not self._fresh:
                self._fresh_since = time.monotonic()
            self._fresh += 1
            if outcome.frames is None:
                self._ready.append(_ready(task, outcome, None))
            else:
                self._batch.append((task, outcome))
                if outcome.frames.warnings:
                    self._tally.warn(task, "; ".join(outcome.frames.warnings))
            self._tally.read(task)
        self._tally.show()

    def _encode(self) -> None:
        # Emptied first: a batch that cannot be encoded must not be tried again.
        batch, self._batch = self._batch, []
        if not batch:
            return
        videos = [content.frames for _, content in batch if content.frames is not None]
        features = self._encode_clips([video.frames for video in videos])
        for n, ((task, content), video) in enumerate(zip(batch, videos, strict=True)):
            part = features[n : n + 1]
            if not _is_finite(part):
                error = VideoError(f"{task.source.path}: the encoder gave NaN or infinity")
                self._claims.fail(task, error)
                self._tally.fail(task, str(error))
                continue
            times = tuple(float(time_s) for time_s in video.times_s)
            clip = EncodedClip(video.duration_s, times, part)
            self._ready.append(_ready(task, content, clip))

    def _commit(self) -> None:
        ready, self._ready, self._fresh = self._ready, [], 0
        if not ready:
            return
        result = self._undisturbed(partial(commit_files, self._gallery, ready))
        for placed in result.placed:
            self._tally.place(placed)
            if placed.task.fingerprint is not None:
                self._claims.store(placed.task)
        for item in result.missing:
            self._retry(item)
        self._tally.show()
        _LOG.info("committed %d files; %s", len(result.placed), self._tally.so_far())
        paths = [placed.task.source.path for placed in result.placed]
        if paths and self._settings.on_commit is not None:
            self._settings.on_commit(paths)

    def _retry(self, item: ReadyFile) -> None:
        """What to do with a file whose content turned out not to be in the gallery."""
        task = item.task
        if item.fingerprint is not None and self._claims.is_open(item.fingerprint):
            self._ready.append(item)  # another file with this content is being read or encoded
        elif reason := self._claims.failure(item.fingerprint):
            self._tally.fail(task, f"{task.source.path}: has the content of another: {reason}")
        else:
            task.is_retry = True
            self._todo.append(task)

    def _rescue(self) -> None:
        """Commit what there is before an exception goes on its way."""
        with suppress(XclipDeployError):
            try:
                self._encode()
            finally:
                self._commit()

    def _prune(self, known: KnownFiles) -> None:
        refused = self._sources.empty_folders
        gone = []
        for path, video_id in known.unseen:
            if self._tally.refuse_to_prune(path, refused):
                continue
            if _has_disappeared(path):
                gone.append((path, video_id))
        for start in range(0, len(gone), _TOUCHES_PER_COMMIT):
            part = gone[start : start + _TOUCHES_PER_COMMIT]
            self._tally.prune(self._undisturbed(partial(detach_files, self._gallery, part)))

    def _undisturbed(self, work: Callable[[], Result]) -> Result:
        future = self._writer.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.result()
            raise


def _ready(task: Task, content: FileContent, clip: EncodedClip | None) -> ReadyFile:
    file = VideoFile(
        path=task.source.path, size_bytes=content.size_bytes, modified_ns=content.modified_ns
    )
    return ReadyFile(task, file, content.fingerprint, clip)


def _has_disappeared(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # a folder that may not be read, or a disk that does not answer
    return False


def _is_finite(features: VideoFeatures) -> bool:
    return bool(
        np.isfinite(features.video_features).all() and np.isfinite(features.frame_features).all()
    )
