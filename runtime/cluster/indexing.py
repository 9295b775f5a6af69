"""Indexing of videos into shards: actors read and encode, and one process commits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from xclip_deploy.errors import XclipDeployError
from xclip_deploy.runtime.arguments import (
    PathName,
    as_choice,
    as_paths,
    as_whole_number,
)
from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cluster.actors import ActorOptions, warn_if_full
from xclip_deploy.runtime.cluster.connecting import connect
from xclip_deploy.runtime.cluster.encoding import EncodedPart, EncoderActor, EncoderOptions
from xclip_deploy.runtime.cluster.publishing import create_shards, publish_shards, sole_indexer
from xclip_deploy.runtime.cluster.routing import MOST_LOSSES, WATCH, Dispatcher, Part, shard_of
from xclip_deploy.runtime.cluster.shard_file import ShardFile, directory_of
from xclip_deploy.runtime.gallery import Gallery, MetadataValue
from xclip_deploy.runtime.indexing.adding import choose_segmentation
from xclip_deploy.runtime.indexing.claims import ContentFilter
from xclip_deploy.runtime.indexing.committing import (
    CommitResult,
    clear_files,
    commit_files,
    detach_files,
)
from xclip_deploy.runtime.indexing.indexer import has_disappeared
from xclip_deploy.runtime.indexing.planning import KnownFiles, plan_files
from xclip_deploy.runtime.indexing.records import OnDuplicate, ReadyFile, Task
from xclip_deploy.runtime.indexing.report import IndexReport, Tally
from xclip_deploy.runtime.indexing.sources import Sources, folders_above, open_sources
from xclip_deploy.runtime.progress import ProgressFunction, progress_function
from xclip_deploy.runtime.video import VideoReader
from xclip_deploy.runtime.video.segmentation import Segmentation

_FILES_PER_PART = 8
_COMMIT_FILES = 256
"""Files of one commit of each shard, on average."""
_COMMIT_BYTES = 256 << 20
"""Most features that wait for a commit, bytes, but for those of one part."""
_COMMIT_S = 10.0
_TOUCHES_PER_COMMIT = 1024
_MOST_ACTORS = 4096


def index_shards(
    bundle: PathName,
    gallery: PathName,
    videos: PathName | Iterable[PathName],
    *,
    shards: int = 8,
    address: str = "auto",
    num_actors: int | None = None,
    actors: ActorOptions | None = None,
    metadata: Mapping[str, MetadataValue] | None = None,
    segment: str | float | Segmentation | None = None,
    stride: str | float | None = None,
    on_duplicate: OnDuplicate = "update",
    prune: bool = False,
    thumbnails: bool = True,
    workers: int | None = None,
    timeout_s: float = 120.0,
    reader: VideoReader = "pyav",
    progress: bool | ProgressFunction = False,
) -> IndexReport:
    """Bring a gallery in shards up to date with files, on a Ray cluster.

    Args:
        bundle: The bundle. Every node finds it, and the files, under the same paths.
        gallery: Directory of the gallery; it is made where there is none.
        videos: Files, folders and lists, as for :meth:`Retriever.add`.
        shards: Number of shards, which a gallery keeps.
        address: Address of the cluster.
        num_actors: Actors that read and encode; None takes one for each that fits the cluster.
        actors: What each actor asks the cluster for.
        metadata: See :meth:`Retriever.add`; likewise for all that follow.

    A run that was interrupted is continued by the same call: the galleries decide what is left.
    Raises ClusterError, and as :meth:`Retriever.add` does.
    """
    as_choice("on_duplicate", on_duplicate, OnDuplicate)
    options = ActorOptions() if actors is None else actors
    path = directory_of(gallery)
    opened = Bundle.open(bundle)
    sources = open_sources(as_paths("videos", videos), None, metadata)
    known = create_shards(path, opened.manifest, shards)
    with sole_indexer(path), ExitStack() as stack:
        ray = connect(address)
        galleries = [Gallery.open(path / entry.path, opened.manifest) for entry in known.shards]
        for each in galleries:
            stack.callback(each.close)
        cut = next((each for each in galleries if each.segmentation is not None), galleries[0])
        reading = opened.manifest.video_reading(reader)
        folders = [each.thumbnails for each in galleries]
        encoder = EncoderOptions(
            opened.manifest.fingerprint,
            choose_segmentation(cut, reading, segment, stride),
            reader,
            workers,
            timeout_s,
            tuple(map(str, folders)) if thumbnails else None,
        )
        count = num_actors or _fitting(ray, options)
        count = as_whole_number("num_actors", count, 1, _MOST_ACTORS)
        settings = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
        kind = ray.remote(
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            # While an actor reads, it tells that it lives.
            concurrency_groups={WATCH: 1},
            **settings,
        )(EncoderActor)
        home = str(Path(opened.path).absolute())
        with progress_function(progress) as report:
            run = _Run(sources, galleries, path, report)
            plan = run.plan(on_duplicate, prune=prune)
            count = min(count, max(1, -(-len(plan) // _FILES_PER_PART)))
            if plan:
                warn_if_full(ray, options, 1)
            handles = [kind.remote(home, options, encoder) for _ in range(count if plan else 0)]
            dispatcher = Dispatcher(ray, handles, ray.put(run.stored))
            return run.run(dispatcher, plan, prune=prune)


class _Run:
    """One run of the process that commits: the only writer of its shards' galleries."""

    def __init__(
        self,
        sources: Sources,
        galleries: Sequence[Gallery],
        path: Path,
        progress: ProgressFunction,
    ) -> None:
        self._sources = sources
        self._galleries = galleries
        self._path = path
        self._tally = Tally(sources, progress)
        self._tasks: dict[str, Task] = {}
        self._ready: list[list[ReadyFile]] = [[] for _ in galleries]
        self._held_bytes = 0
        self._fresh_since = time.monotonic()
        # A thread for each shard: commits of different shards go on side by side.
        self._writers = [ThreadPoolExecutor(1, "commit") for _ in galleries]

    def plan(self, on_duplicate: OnDuplicate, *, prune: bool) -> list[Task]:
        """Compare the files with all shards, and return those to read."""
        if on_duplicate == "error":
            for gallery in self._galleries:
                gallery.check_new([source.wanted_id for source in self._sources.videos])
        self._known = KnownFiles((), self._sources, prune)
        for number, gallery in enumerate(self._galleries):
            gallery.refresh()
            self._known.add(gallery.snapshot().listing(), number)
        plan = plan_files(self._sources, self._known, on_duplicate)
        self._tally.place(*plan.unchanged)
        for part in slices(len(plan.touched), _TOUCHES_PER_COMMIT):
            for item in plan.touched[part]:
                self._ready[item.task.known[0].shard].append(item)
            plan.read.extend(self._commit())
        self._tasks = {task.source.path: task for task in plan.read}
        return plan.read

    @property
    def stored(self) -> ContentFilter:
        """The contents that the shards held when the run was planned."""
        return self._known.contents

    def run(self, dispatcher: Dispatcher, tasks: Sequence[Task], *, prune: bool) -> IndexReport:
        """Read, commit, prune and publish. Commits made before an exception stay."""
        for is_forced in (False, True):
            paths = [task.source.path for task in tasks if task.replace == is_forced]
            for part in slices(len(paths), _FILES_PER_PART):
                dispatcher.add(Part(tuple(paths[part]), is_forced=is_forced))
        try:
            try:
                while not dispatcher.is_done:
                    for _, result in dispatcher.take(self._give_up):
                        self._receive(result, dispatcher)
                    waited_s = time.monotonic() - self._fresh_since
                    if (
                        sum(map(len, self._ready)) >= _COMMIT_FILES * len(self._galleries)
                        or self._held_bytes >= _COMMIT_BYTES
                        or waited_s > _COMMIT_S
                        or dispatcher.is_done
                    ):
                        self._commit_all(dispatcher)
            except BaseException:
                with suppress(XclipDeployError):
                    self._commit()
                # What was committed is published even if the disk is full for more.
                with suppress(XclipDeployError):
                    self._publish()
                raise
            if prune:
                self._prune()
            self._publish()
        finally:
            dispatcher.stop()
            for writer in self._writers:
                writer.shutdown()
        return self._tally.report()

    def _receive(self, part: EncodedPart, dispatcher: Dispatcher) -> None:
        for found in part.files:
            task = self._tasks[found.file.path]
            task.content_sha256 = found.content_sha256
            shard = shard_of(found.content_sha256, len(self._galleries))
            if task.source.metadata is None:
                task.source = replace(task.source, metadata=self._metadata(task, shard))
            ready = ReadyFile(task, found.file, found.content_sha256, found.encoded)
            self._ready[shard].append(ready)
            if found.encoded is not None:
                self._held_bytes += found.encoded.features.frame_features.nbytes
                dispatcher.note(found.content_sha256)
            self._tally.read(task)
        for path, reason in part.failed:
            self._tally.fail(self._tasks[path], reason)
        for path, reason in part.warnings:
            if path in self._tasks:
                self._tally.warn(self._tasks[path], reason)
            else:
                self._tally.warn_of(path, reason)
        self._tally.show()

    def _give_up(self, path: str) -> None:
        reason = f"{path}: {MOST_LOSSES} workers died while they read it"
        self._tally.fail(self._tasks[path], reason)

    def _metadata(self, task: Task, shard: int) -> Mapping[str, MetadataValue] | None:
        """Return the metadata of a file that moves to another shard; None for any other."""
        for known in task.known:
            if known.shard != shard and known.is_first:
                with suppress(XclipDeployError):
                    return dict(self._galleries[known.shard].get(known.video_id).metadata)
        return None

    def _commit_all(self, dispatcher: Dispatcher) -> None:
        for task in self._commit():
            dispatcher.add(Part((task.source.path,), is_forced=True))

    def _commit(self) -> list[Task]:
        """Commit what is ready; return the files that must be read after all."""
        ready, self._ready = self._ready, [[] for _ in self._galleries]
        self._held_bytes = 0
        self._fresh_since = time.monotonic()
        work = {
            shard: self._writers[shard].submit(commit_files, self._galleries[shard], items)
            for shard, items in enumerate(ready)
            if items
        }
        try:
            wait(work.values())
        except KeyboardInterrupt:  # the writers go on
            wait(work.values())
            self._clear({shard: future.result() for shard, future in work.items()})
            raise
        results = {shard: future.result() for shard, future in work.items()}
        self._clear(results)
        again: list[Task] = []
        for result in results.values():
            for placed in result.placed:
                is_new = placed.what == "indexed" and self._was_there(placed.task)
                self._tally.place(replace(placed, what="changed") if is_new else placed)
            for item in result.missing:
                item.task.is_retry = True
                self._tasks[item.task.source.path] = item.task
                again.append(item.task)
        return again

    def _clear(self, results: Mapping[int, CommitResult]) -> None:
        """Take files that moved to another shard out of the old one.

        They were added first: a crash between the two leaves them twice, and the next run sees it.
        """
        for shard, gallery in enumerate(self._galleries):
            moved = [
                placed.task
                for other, result in results.items()
                if other != shard
                for placed in result.placed
                if self._was_there(placed.task)
            ]
            if moved:
                self._writers[shard].submit(clear_files, gallery, moved).result()

    def _was_there(self, task: Task) -> bool:
        return bool(task.known) or self._known.has_id(task.source.wanted_id)

    def _prune(self) -> None:
        by_shard: dict[int, list[tuple[str, str]]] = {}
        for (path, video_id), shard in zip(
            self._known.unseen, self._known.unseen_shards, strict=True
        ):
            empty = next(folders_above(path, self._sources.empty_folders), None)
            if empty is not None:
                self._tally.kept[empty] += 1
            elif has_disappeared(path):
                by_shard.setdefault(shard, []).append((path, video_id))
        work = [
            self._writers[shard].submit(detach_files, self._galleries[shard], gone)
            for shard, gone in by_shard.items()
        ]
        self._tally.pruned += chain.from_iterable(future.result() for future in work)

    def _publish(self) -> ShardFile:
        return publish_shards(self._path)


def _fitting(ray: Any, options: ActorOptions) -> int:  # noqa: ANN401
    """Return how many actors fit the cluster."""
    resources = ray.cluster_resources()
    counts = [
        int(resources.get(name, 0) // wanted)
        for name, wanted in (("CPU", options.num_cpus), ("GPU", options.num_gpus))
        if wanted
    ]
    return max(1, min(counts, default=1))
