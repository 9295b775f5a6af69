"""Galleries in shards, and programs that use them on a cluster, for tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from segment_samples import together

from xclip_deploy import Bundle, Gallery, GalleryVideo, VideoFeatures
from xclip_deploy.runtime.cluster import create_shards, publish_shards
from xclip_deploy.runtime.gallery.thumbnails import ThumbnailStore, thumbnail_key

PROGRAMS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
Video = tuple[list[GalleryVideo], VideoFeatures]


@dataclass
class Nodes:
    """A cluster of several nodes, which runs."""

    address: str
    process: subprocess.Popen[str]

    def processes(self, title: str) -> list[int]:
        """Return the processes of the cluster whose command begins with ``title``."""
        found = []
        for each in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                command = each.cmdline()  # empty once the process has ended
                if command and Path(command[0]).name.startswith(title):
                    found.append(each.pid)
        return found


@contextmanager
def running_nodes(count: int, **environment: str) -> Iterator[Nodes]:
    """Run a cluster of ``count`` nodes, with more variables of the environment."""
    with subprocess.Popen(
        [sys.executable, PROGRAMS / "cluster_nodes.py", str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **environment},
    ) as process:
        assert process.stdout is not None
        first = next(line for line in process.stdout if line.startswith("address "))
        yield Nodes(first.split()[1], process)
        process.communicate(timeout=60)


def write_shards(path: Path, bundle: Bundle, videos: Sequence[Video], count: int) -> None:
    """Divide videos into shards, and publish them."""
    create_shards(path, bundle.manifest, count)
    for number in range(count):
        shard = Gallery.open(path / f"shard-{number:03d}")
        shard.add(*together(videos[number::count]))
        shard.close()
    publish_shards(path)


def line_of(program: str, *arguments: object, timeout_s: float = 240) -> dict[str, Any]:
    """Run a program of ``tests/packages``, and read the line of JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, *map(str, (PROGRAMS / program, *arguments))],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Ray's own messages precede it.
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    outcome: dict[str, Any] = json.loads(lines[-1])
    return outcome


def divide(whole: Path, place: Path, bundle: Bundle, count: int) -> None:
    """Divide a gallery into shards, each with the thumbnails of its own videos; publish them."""
    gallery = Gallery.open(whole)
    videos = [gallery.segments(video.id) for video in gallery.videos()]
    snapshot = gallery.snapshot()
    parts = [
        (rows, snapshot.features(snapshot.segments([rows[0].id])[rows[0].id])) for rows in videos
    ]
    write_shards(place, bundle, parts, count)
    assert gallery.thumbnails is not None
    kept = ThumbnailStore(gallery.thumbnails)
    for number in range(count):
        folder = place / f"shard-{number:03d}" / gallery.thumbnails.name
        for row in (row for rows in videos[number::count] for row in rows):
            assert row.content_sha256 is not None
            assert row.start_s is not None
            picture = kept.get(thumbnail_key(row.content_sha256, row.start_s))
            assert picture is not None
            target = folder / picture.relative_to(gallery.thumbnails)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, target)
    gallery.close()
