"""The report of an indexing run, and the counts behind it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xclip_deploy.runtime.failures import FailedVideo
from xclip_deploy.runtime.indexing.records import Placed, Task
from xclip_deploy.runtime.indexing.sources import Sources
from xclip_deploy.runtime.presentation import brief, html_table
from xclip_deploy.runtime.progress import Progress, ProgressFunction
from xclip_deploy.runtime.video.finding import count_by_suffix, is_known_other

_NAMED = 10
"""Most files that the report names one by one because their endings are not known."""


@dataclass(frozen=True)
class IndexReport:
    """The outcome of every file of an indexing run."""

    indexed: tuple[str, ...] = ()
    """Ids of videos that are new in the gallery."""
    changed: tuple[str, ...] = ()
    """Ids of videos that were encoded again."""
    unchanged: tuple[str, ...] = ()
    """Ids of videos that stayed as they were, apart from metadata; once for each unchanged
    file."""
    duplicates: Mapping[str, str] = field(default_factory=dict)
    """Path to the id of the video with the same content, which now lists that path."""
    pruned: tuple[str, ...] = ()
    """Paths of files that disappeared and were removed."""
    failed: tuple[FailedVideo, ...] = ()
    """Files that could not be indexed."""
    warnings: tuple[FailedVideo, ...] = ()
    """Files that were indexed despite a fault."""
    passed_over: tuple[str, ...] = ()
    """Paths of files below the folders that are no videos, hidden ones apart."""
    seconds: float = 0.0
    """Duration of the run."""

    @property
    def added(self) -> tuple[str, ...]:
        """Ids of the encoded videos: new ones, then changed ones."""
        return self.indexed + self.changed

    @property
    def skipped(self) -> tuple[str, ...]:
        """Ids of the videos that were there already."""
        return self.unchanged

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and numbers, for JSON."""
        return {
            "indexed": list(self.indexed),
            "changed": list(self.changed),
            "unchanged": list(self.unchanged),
            "duplicates": dict(self.duplicates),
            "pruned": list(self.pruned),
            "failed": [{"path": video.path, "reason": video.reason} for video in self.failed],
            "warnings": [{"path": video.path, "reason": video.reason} for video in self.warnings],
            "passed_over": list(self.passed_over),
            "seconds": round(self.seconds, 3),
        }

    def __repr__(self) -> str:
        counts = {name: number for name, number in self._counts().items() if number}
        return brief(self, **counts, seconds=self.seconds)

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = list(self._counts().items())
        rows += [("failed", f"{video.path}: {video.reason}") for video in self.failed]
        rows += [("warning", f"{video.path}: {video.reason}") for video in self.warnings]
        return html_table(f"Indexed in {self.seconds:.1f} s", ("", "files"), rows, len(rows))

    def _counts(self) -> dict[str, int]:
        names = ("indexed", "changed", "unchanged", "duplicates", "pruned", "failed", "warnings")
        return {name: len(getattr(self, name)) for name in (*names, "passed_over")}

    def __str__(self) -> str:
        lines = [f"failed: {video.reason}" for video in self.failed]  # which names the path
        lines += [f"warning: {video.path}: {video.reason}" for video in self.warnings]
        if self.passed_over:
            kinds = count_by_suffix(self.passed_over)
            is_one = len(self.passed_over) == 1
            what = "file that is no video" if is_one else "files that are no videos"
            lines.append(f"passed over {len(self.passed_over):,} {what}: {kinds}")
            # An ending that is none of the known ones may hide a video.
            unknown = [path for path in self.passed_over if not is_known_other(path)]
            lines += [f"passed over: {path}" for path in unknown[:_NAMED]]
            if len(unknown) > _NAMED:
                lines.append(f"passed over: {len(unknown) - _NAMED} more of unknown endings")
        counts = [f"{len(self.indexed)} indexed", f"{len(self.unchanged)} unchanged"]
        more = {"changed": self.changed, "duplicates": self.duplicates, "pruned": self.pruned}
        counts += [
            f"{len(files)} {name.removesuffix('s') if len(files) == 1 else name}"
            for name, files in more.items()
            if files
        ]
        lines.append(f"{', '.join(counts)}, {len(self.failed)} failed in {self.seconds:.1f} s")
        return "\n".join(lines)


class Tally:
    """The outcomes so far."""

    def __init__(self, sources: Sources, progress: ProgressFunction) -> None:
        self._started = time.monotonic()
        self._progress = progress
        self._total = len(sources.videos) + len(sources.failed)
        self._done = self._failures = len(sources.failed)
        self._shown = (self._done, self._failures, "")
        self._ids: dict[str, list[tuple[int, str]]] = {
            "indexed": [],
            "changed": [],
            "unchanged": [],
        }
        self._duplicates: list[tuple[int, str, str]] = []
        self._passed_over = sources.passed_over
        self._failed = [(-1, failure) for failure in sources.failed]
        self._warnings: list[tuple[int, FailedVideo]] = []
        self._others: list[FailedVideo] = []
        self._read: set[int] = set()
        self.pruned: list[str] = []
        """Paths of files that were removed."""
        self.kept: Counter[str] = Counter()
        """Folders without videos, with the number of their files that stay listed."""

    def read(self, task: Task) -> None:
        """Note that a file was read, for the first time or again."""
        if task.order not in self._read:
            self._read.add(task.order)
            self._done += 1

    def place(self, *files: Placed) -> None:
        """Note that files were committed, or are in the gallery as they are; report progress."""
        for placed in files:
            task = placed.task
            if placed.what == "duplicate":
                self._duplicates.append((task.order, task.source.path, placed.video_id))
            else:
                self._ids[placed.what].append((task.order, placed.video_id))
            if placed.warning is not None:
                self.warn(task, placed.warning)
            self.read(task)
            self._read.discard(task.order)  # a placed file is not read again
        self.show()

    def fail(self, task: Task, reason: str) -> None:
        """Note that a file cannot be indexed."""
        self._failed.append((task.order, FailedVideo(task.source.path, reason)))
        self._failures += 1
        self.read(task)
        self._read.discard(task.order)

    def warn(self, task: Task, reason: str) -> None:
        """Note a fault of a file that is indexed all the same."""
        self._warnings.append((task.order, FailedVideo(task.source.path, reason)))

    def warn_of(self, path: str, reason: str) -> None:
        """Note a fault of something that is not one of the files."""
        self._others.append(FailedVideo(path, reason))

    def show(self, note: str = "") -> None:
        """Report progress to the caller if there is any. ``note``: where a long video is."""
        now = (self._done, self._failures, note)
        if now != self._shown:
            self._shown = now
            progress = Progress("videos", self._done, self._total, self._failures, note=note)
            self._progress(progress)

    def so_far(self) -> str:
        """Describe the progress in words."""
        return f"{self._done} of {self._total} done, {self._failures} failed"

    def report(self) -> IndexReport:
        """Make the report, in the order of the sources."""
        names = {what: tuple(name for _, name in sorted(ids)) for what, ids in self._ids.items()}
        in_order = sorted(self._warnings, key=lambda entry: entry[0])
        warnings = [*(warning for _, warning in in_order), *self._others]
        for folder, count in self.kept.items():
            said = (
                f"holds no video at all, as when a disk is not mounted: its {count} videos stay "
                "in the gallery; to drop them, delete the folder's entries with Retriever.remove"
            )
            warnings.append(FailedVideo(folder, said))
        return IndexReport(
            **names,
            duplicates={path: name for _, path, name in sorted(self._duplicates)},
            pruned=tuple(sorted(self.pruned)),
            failed=tuple(f for _, f in sorted(self._failed, key=lambda entry: entry[0])),
            warnings=tuple(warnings),
            passed_over=self._passed_over,
            seconds=time.monotonic() - self._started,
        )
