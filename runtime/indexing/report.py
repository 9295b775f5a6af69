"""What an indexing run did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xclip_deploy.runtime.results import FailedVideo


@dataclass(frozen=True)
class IndexReport:
    """What became of every file that was to be indexed."""

    indexed: tuple[str, ...] = ()
    """Ids of videos that are new in the gallery."""
    changed: tuple[str, ...] = ()
    """Ids of videos that were encoded anew."""
    unchanged: tuple[str, ...] = ()
    """Ids of videos that were there and stayed as they were, metadata apart; once for each of
    their files that was found unchanged."""
    duplicates: Mapping[str, str] = field(default_factory=dict)
    """Path to the id of the video with the same content, under which it is now listed."""
    pruned: tuple[str, ...] = ()
    """Paths of files that disappeared and are no longer listed."""
    failed: tuple[FailedVideo, ...] = ()
    """Files that could not be indexed."""
    warnings: tuple[FailedVideo, ...] = ()
    """Files that were indexed though something was wrong with them."""
    seconds: float = 0.0
    """From first to last."""

    @property
    def added(self) -> tuple[str, ...]:
        """Ids of the videos that were encoded: new ones, then changed ones."""
        return self.indexed + self.changed

    @property
    def skipped(self) -> tuple[str, ...]:
        """Ids of the videos that were there already."""
        return self.unchanged

    def to_dict(self) -> dict[str, Any]:
        """As plain dictionaries, lists and numbers, for JSON."""
        return {
            "indexed": list(self.indexed),
            "changed": list(self.changed),
            "unchanged": list(self.unchanged),
            "duplicates": dict(self.duplicates),
            "pruned": list(self.pruned),
            "failed": [{"path": video.path, "reason": video.reason} for video in self.failed],
            "warnings": [{"path": video.path, "reason": video.reason} for video in self.warnings],
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        lines = [f"failed: {video.reason}" for video in self.failed]  # which names the path
        lines += [f"warning: {video.path}: {video.reason}" for video in self.warnings]
        counts = [f"{len(self.indexed)} indexed", f"{len(self.unchanged)} unchanged"]
        more = {"changed": self.changed, "duplicates": self.duplicates, "pruned": self.pruned}
        counts += [f"{len(files)} {name}" for name, files in more.items() if files]
        lines.append(f"{', '.join(counts)}, {len(self.failed)} failed in {self.seconds:.1f} s")
        return "\n".join(lines)
