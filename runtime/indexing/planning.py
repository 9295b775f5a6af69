"""Separate files that must be read from files that the gallery holds unchanged."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from xclip_deploy.errors import XclipDeployError
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, VideoFile
from xclip_deploy.runtime.indexing.claims import ContentFilter
from xclip_deploy.runtime.indexing.records import KnownFile, OnDuplicate, Placed, ReadyFile, Task
from xclip_deploy.runtime.indexing.sources import Sources, folders_above
from xclip_deploy.runtime.video import READING_VERSION

_LOG = logging.getLogger(__name__)


class KnownFiles:
    """The files of a gallery that concern the sources, collected in one pass."""

    def __init__(self, listing: Iterable[GalleryVideo], sources: Sources, prune: bool) -> None:
        """Read the listing; ``prune`` also collects listed files below the sources' folders."""
        # Maps a path to itself, to keep the sources' strings, not the listing's: half the memory.
        wanted = {source.path: source.path for source in sources.videos}
        given_ids = {source.id for source in sources.videos if source.id is not None}
        self._files: dict[str, KnownFile] = {}
        self._more: dict[str, tuple[KnownFile, ...]] = {}
        self._ids: set[str] = set()
        self._folders = sources.folders if prune else ()
        self._wanted = wanted
        self._given_ids = given_ids
        self.unseen: list[tuple[str, str]] = []
        """Path and video id of listed files below the folders that are not sources."""
        self.unseen_shards: list[int] = []
        """Number of the shard that lists each of ``unseen``."""
        self.contents = ContentFilter()
        self.add(listing)

    def add(self, listing: Iterable[GalleryVideo], shard: int = 0) -> None:
        """Read the listing of another shard."""
        wanted, given_ids = self._wanted, self._given_ids
        for video in listing:
            if video.id in given_ids or video.id in wanted:
                self._ids.add(wanted.get(video.id, video.id))
            if video.content_sha256 is not None:
                self.contents.add(video.content_sha256)
            for n, file in enumerate(video.files):
                if file.path in wanted:
                    name = wanted.get(video.id, video.id)
                    self._note(wanted[file.path], name, file, is_first=n == 0, shard=shard)
                elif any(folders_above(file.path, self._folders)):
                    self.unseen.append((file.path, video.id))
                    self.unseen_shards.append(shard)

    def of(self, path: str) -> tuple[KnownFile, ...]:
        """Return the entries of a file: none, one, or more after a killed run."""
        known = self._files.get(path)
        return () if known is None else (known, *self._more.get(path, ()))

    def has_id(self, video_id: str) -> bool:
        """Tell whether a video has this id, which must be one that a source wants."""
        return video_id in self._ids

    def _note(
        self, path: str, video_id: str, file: VideoFile, *, is_first: bool, shard: int
    ) -> None:
        known = KnownFile(video_id, file.size_bytes, file.modified_ns, is_first, shard)
        if self._files.setdefault(path, known) is not known:
            self._more[path] = (*self._more.get(path, ()), known)


@dataclass
class Plan:
    """Next steps of all sources, in their order."""

    read: list[Task] = field(default_factory=list)
    """Files that must be read."""
    touched: list[ReadyFile] = field(default_factory=list)
    """Files that are committed unread, as only their records change."""
    unchanged: list[Placed] = field(default_factory=list)
    """Files that are done."""


def plan_files(sources: Sources, known: KnownFiles, on_duplicate: OnDuplicate) -> Plan:
    """Decide the next step of every source."""
    plan = Plan()
    for order, source in enumerate(sources.videos):
        files = known.of(source.path)
        is_there = bool(files) or known.has_id(source.wanted_id)
        task = Task(order, source, files, replace=on_duplicate == "replace" and is_there)
        if on_duplicate == "skip" and is_there:
            name = files[0].video_id if files else source.wanted_id
            plan.unchanged.append(Placed(task, "unchanged", name))
            continue
        step = None if on_duplicate == "replace" else _unchanged(task)
        if step is None:
            plan.read.append(task)
        elif isinstance(step, ReadyFile):
            plan.touched.append(step)
        else:
            plan.unchanged.append(step)
    return plan


def _unchanged(task: Task) -> ReadyFile | Placed | None:
    """Return the next step of a file that is unchanged; None for any other file."""
    source = task.source
    if not task.known:
        return None
    try:
        status = Path(source.path).stat()
    except OSError:
        return None  # the decoder will report why
    size, modified = status.st_size, status.st_mtime_ns
    matching = [known for known in task.known if known.is_as(size, modified)]
    if not matching:
        return None
    # A file is listed twice after a run that was killed between two writes.
    matching.sort(key=lambda known: known.video_id != source.wanted_id)
    rest = [known for known in task.known if known is not matching[0]]
    task.known = (matching[0], *rest)
    known = matching[0]
    is_renamed = source.id is not None and known.is_first and source.id != known.video_id
    if not rest and not is_renamed and source.metadata is None:
        return Placed(task, "unchanged", known.video_id)
    file = VideoFile(path=source.path, size_bytes=size, modified_ns=modified)
    return ReadyFile(task, file, None, None)


def warn_of_older_readings(gallery: Gallery) -> None:
    """Log how many videos an older release read, whose frames may be others than today's.

    Their files count as unchanged, so only the command that is named reads them again. A gallery
    that is too damaged to be counted is left to the searches, which say so.
    """
    if gallery.uri is None:
        return
    with suppress(XclipDeployError):
        snapshot = gallery.snapshot()
        count = snapshot.count_older(READING_VERSION)
        if count:
            _LOG.warning(
                "%d of %d videos were read by an older release, which may have taken other frames; "
                "run: xclip-deploy index VIDEOS --gallery %s --on-duplicate replace",
                count,
                len(snapshot),
                shlex.quote(gallery.uri),
            )
