"""Videos are found by their handles, in galleries of any size and as they change."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from xclip_deploy import Bundle
from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, Snapshot
from xclip_deploy.service.media.files import MediaLookup
from xclip_deploy.service.records import VideoRecords


def add(gallery: Gallery, numbers: range) -> None:
    shape = (len(numbers), gallery.model.max_frames, gallery.model.embed_dim)
    frames = np.zeros(shape, np.float16)
    frames[..., 0] = 1
    videos = [
        GalleryVideo(
            id=f"/videos/{number}.mp4",
            path=f"/videos/{number}.mp4",
            content_sha256=content(number),
            frame_times_s=tuple(map(float, range(shape[1]))),
        )
        for number in numbers
    ]
    counts = np.full(len(numbers), shape[1], np.int32)
    gallery.add(videos, VideoFeatures(frames[:, 0], frames, counts))


def content(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_videos_are_found_with_an_index_and_beside_it(bundle: Bundle, tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "gallery", bundle.manifest, create=True)
    add(gallery, range(20))
    lookup = MediaLookup(lambda: VideoRecords([gallery.snapshot()]))
    assert lookup.find(content(3)).files[0].path == "/videos/3.mp4"
    gallery.optimize()
    add(gallery, range(20, 30))
    gallery.remove(["/videos/3.mp4"])
    assert [lookup.find(content(n)).name for n in (2, 19, 25)] == ["2.mp4", "19.mp4", "25.mp4"]
    for name in (content(3), content(99), "", "id-", "id-%%", "/videos/3.mp4", "/videos/4.mp4"):
        with pytest.raises(GalleryError, match="no video"):
            lookup.find(name)
    gallery.close()


def test_a_video_is_looked_up_once_a_snapshot(bundle: Bundle, tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "gallery", bundle.manifest, create=True)
    add(gallery, range(3))
    asked: list[str] = []

    class Counted:
        def __init__(self, snapshot: Snapshot) -> None:
            self._snapshot = snapshot

        def find_content(self, hashes: list[str]) -> dict[str, int]:
            asked.extend(hashes)
            return self._snapshot.find_content(hashes)

        def __getattr__(self, name: str) -> object:
            return getattr(self._snapshot, name)

    def records() -> VideoRecords:
        return VideoRecords([Counted(gallery.snapshot())])  # type: ignore[list-item]

    counted = [records()]
    lookup = MediaLookup(lambda: counted[0])
    found = [lookup.find(content(1)) for _ in range(3)]
    assert asked == [content(1)]
    assert found[0] is found[2]
    counted[0] = records()
    lookup.find(content(1))
    assert asked == [content(1)] * 2
    gallery.close()
