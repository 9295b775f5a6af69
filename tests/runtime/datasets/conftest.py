"""Small datasets as they lie on people's disks. No video is decoded, so they are empty files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy.runtime.datasets.catalogue import open_dataset
from xclip_deploy.runtime.datasets.split import Split


@dataclass(frozen=True)
class Disk:
    """A folder of annotations and one of videos."""

    annotations: Path
    videos: Path

    def write(self, name: str, content: str | bytes) -> Path:
        """Write an annotation file."""
        path = self.annotations / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def write_json(self, name: str, content: Any) -> Path:
        return self.write(name, json.dumps(content))

    def add_videos(self, *names: str) -> None:
        """Make videos, in subfolders where a name has a slash."""
        for name in names:
            path = self.videos / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def open(self, name: str, split: str, **options: Any) -> Split:
        return open_dataset(name, split, self.annotations, self.videos, **options)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    disk = Disk(tmp_path / "annotations", tmp_path / "videos")
    disk.annotations.mkdir()
    disk.videos.mkdir()
    return disk


@pytest.fixture
def captions_by_id() -> Callable[[Split], dict[str, list[str]]]:
    """What a split says of each video, after a check that it is well formed."""

    def collect(split: Split) -> dict[str, list[str]]:
        owners = split.video_of_caption
        assert owners.dtype == "int64"
        assert owners.shape == (len(split.captions),)
        assert sorted(set(owners.tolist())) == list(range(len(split.videos)))
        assert owners.tolist() == sorted(owners.tolist())
        found: dict[str, list[str]] = {video.id: [] for video in split.videos}
        assert len(found) == len(split.videos)
        for caption, owner in zip(split.captions, owners, strict=True):
            found[split.videos[owner].id].append(caption)
        return found

    return collect
