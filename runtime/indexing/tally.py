"""Counting what becomes of every file, for the progress bar and the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from xclip_deploy.runtime.indexing.committing import Placed, Task
from xclip_deploy.runtime.indexing.report import IndexReport
from xclip_deploy.runtime.indexing.sources import Sources, folders_above
from xclip_deploy.runtime.results import FailedVideo


class Tally:
    """What became of the files so far."""

    def __init__(self, sources: Sources, progress: Callable[[int, int, int], None] | None) -> None:
        self._started = time.monotonic()
        self._progress = progress
        self._total = len(sources.videos) + len(sources.failed)
        self._done = self._failures = len(sources.failed)
        self._shown = (self._done, self._failures)
        self._ids: dict[str, list[tuple[int, str]]] = {
            "indexed": [],
            "changed": [],
            "unchanged": [],
        }
        self._duplicates: list[tuple[int, str, str]] = []
        self._failed = [(-1, failure) for failure in sources.failed]
        self._warnings: list[tuple[int, FailedVideo]] = []
        self._pruned: list[str] = []
        self._refused: dict[str, int] = {}
        self._read: set[int] = set()

    def unchanged(self, task: Task, video_id: str) -> None:
        """A file that need not even be looked up."""
        self._ids["unchanged"].append((task.order, video_id))
        self._done += 1

    def read(self, task: Task) -> None:
        """A file was read, for the first time or again."""
        if task.order not in self._read:
            self._read.add(task.order)
            self._done += 1

    def place(self, placed: Placed) -> None:
        """A file was committed."""
        task = placed.task
        if placed.what == "duplicate":
            self._duplicates.append((task.order, task.source.path, placed.video_id))
        else:
            self._ids[placed.what].append((task.order, placed.video_id))
        if placed.warning is not None:
            self.warn(task, placed.warning)
        self.read(task)
        self._read.discard(task.order)  # which it will not be again

    def fail(self, task: Task, reason: str) -> None:
        """A file cannot be indexed."""
        self._failed.append((task.order, FailedVideo(task.source.path, reason)))
        self._failures += 1
        self.read(task)
        self._read.discard(task.order)

    def warn(self, task: Task, reason: str) -> None:
        """Something was wrong with a file, which is indexed all the same."""
        self._warnings.append((task.order, FailedVideo(task.source.path, reason)))

    def prune(self, paths: Iterable[str]) -> None:
        """Files are no longer listed."""
        self._pruned += paths

    def refuse_to_prune(self, path: str, folders: Collection[str]) -> bool:
        """Whether a file lies below one of ``folders``, below which nothing is to be pruned."""
        above = next(folders_above(path, folders), None)
        if above is not None:
            self._refused[above] = self._refused.get(above, 0) + 1
        return above is not None

    def show(self) -> None:
        """Tell the caller how far it is, where that is further than before."""
        now = (self._done, self._failures)
        if self._progress is not None and now != self._shown:
            self._shown = now
            self._progress(self._done, self._total, self._failures)

    def so_far(self) -> str:
        """How far it is, in words."""
        return f"{self._done} of {self._total} done, {self._failures} failed"

    def report(self) -> IndexReport:
        """What became of all files, in the order of the sources."""
        names = {what: tuple(name for _, name in sorted(ids)) for what, ids in self._ids.items()}
        in_order = sorted(self._warnings, key=lambda entry: entry[0])
        warnings = [warning for _, warning in in_order]
        for folder, count in self._refused.items():
            said = (
                f"holds no video at all, as when a disk is not mounted: its {count} videos stay "
                "in the gallery; to drop them, delete the folder's entries with Retriever.remove"
            )
            warnings.append(FailedVideo(folder, said))
        return IndexReport(
            **names,
            duplicates={path: name for _, path, name in sorted(self._duplicates)},
            pruned=tuple(sorted(self._pruned)),
            failed=tuple(f for _, f in sorted(self._failed, key=lambda entry: entry[0])),
            warnings=tuple(warnings),
            seconds=time.monotonic() - self._started,
        )
