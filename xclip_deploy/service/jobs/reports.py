"""Progress and outcome of a job as clients see them: without paths, and bounded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from xclip_deploy.runtime.failures import FailedVideo
from xclip_deploy.runtime.gallery import GalleryVideo, Snapshot
from xclip_deploy.runtime.indexing import IndexReport
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.service.errors import redacted, shortened
from xclip_deploy.service.naming import handle_of, names_of
from xclip_deploy.wire import ProgressModel, ReportModel
from xclip_deploy.wire.jobs import FailureModel

Item = TypeVar("Item")
MAX_NAMED = 10_000
"""Most files that one list of a report names; a warning tells how many more there are."""
MAX_VIDEOS = 1000
"""Most handles of a job."""


def progress_model(progress: Progress) -> ProgressModel:
    """Return the state of a running job."""
    return ProgressModel(
        stage=progress.stage,
        done=progress.done,
        total=progress.total,
        failed=progress.failed,
        step=progress.step,
        fraction=progress.fraction,
        note=shortened(progress.note),
    )


class ReportWriter:
    """A report's names for clients: those of the gallery as it is after the job."""

    def __init__(self, snapshot: Snapshot, folders: Sequence[Path], *, show_paths: bool) -> None:
        self._snapshot = snapshot
        self._folders = folders
        self._show_paths = show_paths
        self._more: list[FailureModel] = []

    def write(self, report: IndexReport) -> ReportModel:
        """Return the report as clients see it."""
        warnings = self._failures("warnings", report.warnings)
        model = ReportModel(
            indexed=self._ids("indexed", report.indexed),
            changed=self._ids("changed", report.changed),
            unchanged=self._ids("unchanged", report.unchanged),
            duplicates=self._duplicates(report),
            pruned=self._paths("pruned", report.pruned),
            failed=self._failures("failed", report.failed),
            warnings=warnings,
            passed_over=self._paths("passed_over", report.passed_over),
            seconds=report.seconds,
        )
        more = list({each.reason: each for each in self._more}.values())
        return model.model_copy(update={"warnings": [*warnings, *more]})

    def handles(self, report: IndexReport) -> tuple[str, ...]:
        """Return the names in addresses of the videos that are in the gallery now."""
        ids = [*report.indexed, *report.changed, *report.unchanged, *report.duplicates.values()]
        named = list(dict.fromkeys(ids))[:MAX_VIDEOS]
        videos = self._videos(named)
        return tuple(dict.fromkeys(handle_of(videos[each]) for each in named if each in videos))

    def _duplicates(self, report: IndexReport) -> dict[str, str]:
        ids = self._ids("duplicates", list(report.duplicates.values()))
        named: dict[str, str] = {}
        for path, video_id in zip(
            self._first("duplicates", list(report.duplicates)), ids, strict=True
        ):
            name, count = self._path(path), 1
            while name in named:  # files of several folders may have one name
                count += 1
                name = f"{self._path(path)} ({count})"
            named[name] = video_id
        return named

    def _ids(self, what: str, ids: Sequence[str]) -> list[str]:
        named = self._first(what, ids)
        videos = self._videos(named)
        return [
            names_of(videos[each], show_paths=self._show_paths).id
            if each in videos
            else self._path(each)  # somebody removed the video meanwhile
            for each in named
        ]

    def _videos(self, ids: Sequence[str]) -> dict[str, GalleryVideo]:
        rows = self._snapshot.find(list(dict.fromkeys(ids)))
        if not rows:
            return {}
        found = self._snapshot.videos(np.array(sorted(rows.values()), np.int64))
        return {video.id: video for video in found}

    def _paths(self, what: str, paths: Iterable[str]) -> list[str]:
        return [self._path(path) for path in self._first(what, list(paths))]

    def _path(self, path: str) -> str:
        return path if self._show_paths else Path(path).name

    def _failures(self, what: str, videos: Sequence[FailedVideo]) -> list[FailureModel]:
        return [
            FailureModel(
                name=self._path(video.path),
                reason=shortened(
                    video.reason if self._show_paths else redacted(video.reason, self._folders)
                ),
            )
            for video in self._first(what, list(videos))
        ]

    def _first(self, what: str, items: Sequence[Item]) -> Sequence[Item]:
        if len(items) > MAX_NAMED:
            left = len(items) - MAX_NAMED
            self._more.append(
                FailureModel(name=what, reason=f"{left} more under {what!r} are not named here")
            )
        return items[:MAX_NAMED]
