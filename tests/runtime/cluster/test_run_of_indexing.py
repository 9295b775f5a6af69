"""A run that indexes into shards, with an encoder of this process in place of Ray's actors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_samples import mounted

from xclip_deploy import Bundle, Gallery
from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.cluster import ActorOptions, create_shards, read_shards
from xclip_deploy.runtime.cluster.encoding import EncodedPart, EncoderActor, EncoderOptions
from xclip_deploy.runtime.cluster.indexing import _Run
from xclip_deploy.runtime.cluster.routing import Part, shard_of
from xclip_deploy.runtime.indexing.report import IndexReport
from xclip_deploy.runtime.indexing.sources import open_sources
from xclip_deploy.runtime.progress import ignore_progress
from xclip_deploy.runtime.video.segmentation import Segmentation

SHARDS = 2


class HereDispatcher:
    """Reads one part at a time by an encoder of this process.

    ``before_part``: called with the number of each part.
    """

    def __init__(
        self, actor: EncoderActor, before_part: Callable[[int], None] = lambda _n: None
    ) -> None:
        self._actor = actor
        self._todo: deque[Part] = deque()
        self._before_part = before_part
        self._parts = 0
        self.encoded: list[str] = []
        self.noted: list[str] = []

    def add(self, part: Part) -> None:
        self._todo.append(part)

    def note(self, content_sha256: str) -> None:
        self.noted.append(content_sha256)

    @property
    def is_done(self) -> bool:
        return not self._todo

    def take(self, _on_loss: Callable[[str], None]) -> list[tuple[Part, EncodedPart]]:
        self._before_part(self._parts)
        self._parts += 1
        part = self._todo.popleft()
        found = self._actor.encode(part.paths, np.empty(0, np.uint64), is_forced=part.is_forced)
        self.encoded += [each.file.path for each in found.files if each.encoded is not None]
        return [(part, found)]

    def stop(self) -> None:
        pass


def run(
    bundle: Bundle,
    gallery: Path,
    folder: Path,
    before_part: Callable[[int], None] = lambda _n: None,
    on_planned: Callable[[], None] = lambda: None,
) -> tuple[IndexReport, HereDispatcher]:
    """Index a folder as ``index_shards`` does, a file in each part."""
    shards = create_shards(gallery, bundle.manifest, SHARDS)
    galleries = [Gallery.open(gallery / entry.path) for entry in shards.shards]
    run = _Run(open_sources([folder]), galleries, gallery, ignore_progress)
    plan = run.plan("update", prune=True)
    on_planned()
    options = EncoderOptions(bundle.manifest.fingerprint, Segmentation("whole"))
    actor = EncoderActor(str(bundle.path), ActorOptions(), options)
    actor.encode([], np.empty(0, np.uint64), run.stored)
    dispatcher: Any = HereDispatcher(actor, before_part)
    try:
        return run.run(dispatcher, plan, prune=True), dispatcher
    finally:
        actor._pool.close()
        for each in galleries:
            each.close()


@pytest.fixture
def folder(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six videos of different contents. Every file is a part and a commit of its own."""
    monkeypatch.setattr("xclip_deploy.runtime.cluster.indexing._FILES_PER_PART", 1)
    monkeypatch.setattr("xclip_deploy.runtime.cluster.indexing._COMMIT_S", -1)
    folder = tmp_path / "videos"
    folder.mkdir()
    film = (clips / "edge_cases" / "torchcodec_test_non_zero_start.mp4").read_bytes()
    for number in range(6):
        (folder / f"v{number}.mp4").write_bytes(film + bytes(number))
    return folder


def published_paths(gallery: Path) -> list[str]:
    """Return the names of the files in the published versions."""
    shards = read_shards(gallery)
    found: list[str] = []
    for number, entry in enumerate(shards.shards):
        opened = Gallery.open(gallery / entry.path, version=entry.version)
        for video in opened:
            assert shard_of(str(video.content_sha256), SHARDS) == number
            found += [Path(file.path).name for file in video.files]
        opened.close()
    assert shards.num_videos == len(found)
    return sorted(found)


def test_an_interrupted_run_publishes_what_it_committed(
    bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    def interrupt(part: int) -> None:
        if part == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bundle, tmp_path / "G", folder, interrupt)
    assert published_paths(tmp_path / "G") == ["v0.mp4", "v1.mp4", "v2.mp4"]
    report, dispatcher = run(bundle, tmp_path / "G", folder)
    assert [Path(path).name for path in dispatcher.encoded] == ["v3.mp4", "v4.mp4", "v5.mp4"]
    assert len(report.unchanged) == len(report.indexed) == 3
    assert published_paths(tmp_path / "G") == [f"v{n}.mp4" for n in range(6)]
    # Other names: the contents are known.
    for path in sorted(folder.iterdir()):
        path.rename(path.with_name(f"z{path.name}"))
    _, dispatcher = run(bundle, tmp_path / "G", folder)
    assert dispatcher.encoded == []
    assert published_paths(tmp_path / "G") == [f"zv{n}.mp4" for n in range(6)]


def test_a_content_that_was_removed_meanwhile_is_read_after_all(
    bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    run(bundle, tmp_path / "G", folder)
    (folder / "v0.mp4").rename(folder / "w0.mp4")

    def remove() -> None:
        for place in (tmp_path / "G").glob("shard-*"):
            opened = Gallery.open(place)
            opened.remove([video.id for video in opened if video.id.endswith("v0.mp4")])
            opened.close()

    _, dispatcher = run(bundle, tmp_path / "G", folder, on_planned=remove)
    assert dispatcher.encoded == [str(folder / "w0.mp4")]
    assert published_paths(tmp_path / "G") == [f"v{n}.mp4" for n in range(1, 6)] + ["w0.mp4"]


def test_a_full_disk_keeps_what_was_committed(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"

    def fill(part: int) -> None:
        if part == 2:
            with suppress(OSError), (disk / "full").open("wb", 0) as file:
                while True:
                    file.write(bytes(4096))

    with mounted(disk, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        with pytest.raises(GalleryError, match="the disk is full; what was committed"):
            run(bundle, disk / "G", folder, fill)
        (disk / "full").unlink()
        report, dispatcher = run(bundle, disk / "G", folder)
        assert len(dispatcher.encoded) == 4
        assert len(report.unchanged) == 2
        assert published_paths(disk / "G") == [f"v{n}.mp4" for n in range(6)]
