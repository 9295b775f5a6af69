"""Names of videos: no client learns a path, or can guess one."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from xclip_deploy import Bundle
from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.service.naming import find_id, names_of, videos_with_content
from xclip_deploy.service.records import VideoRecords

CONTENT = "c" * 64
PATH = "/home/ann/secret.mp4"
VIDEOS = (
    GalleryVideo(id=PATH, path=PATH, frame_times_s=(0.0,)),
    GalleryVideo(id="/features/alone", frame_times_s=(0.0,)),
    GalleryVideo(id="cam1/0034", path="/a/34.mp4", content_sha256=CONTENT, frame_times_s=(0.0,)),
    GalleryVideo(id="copy", path="/b/34.mp4", content_sha256=CONTENT, frame_times_s=(0.0,)),
    GalleryVideo(id="mine", frame_times_s=(0.0,)),
)


@pytest.fixture(params=["memory", "lancedb"])
def gallery(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> Iterator[Gallery]:
    manifest = bundle.manifest
    opened = (
        Gallery(manifest)
        if request.param == "memory"
        else Gallery.open(tmp_path / "gallery", manifest, create=True)
    )
    shape = (len(VIDEOS), manifest.model.max_frames, manifest.model.embed_dim)
    frames = np.zeros(shape, np.float16)
    frames[..., 0] = 1
    opened.add(VIDEOS, VideoFeatures(frames[:, 0], frames, np.ones(len(VIDEOS), np.int32)))
    yield opened
    opened.close()


def records_of(gallery: Gallery) -> VideoRecords:
    return VideoRecords([gallery.snapshot()])


def encoded(video_id: str) -> str:
    return "id-" + base64.urlsafe_b64encode(video_id.encode()).decode().rstrip("=")


def test_names_tell_no_path_and_are_found(gallery: Gallery) -> None:
    records = records_of(gallery)
    for video in VIDEOS[:2]:
        names = names_of(video, show_paths=False)
        assert names.id == names.handle
        assert find_id(records, names.handle) == video.id
        for told in (names.id, names.name):
            assert "/" not in told
            assert encoded(video.id) not in told
    assert names_of(VIDEOS[0], show_paths=False).name == "secret.mp4"
    assert find_id(records, names_of(VIDEOS[4], show_paths=False).handle) == "mine"


@pytest.mark.parametrize("name", [PATH, encoded(PATH), "path-" + "0" * 64, "path-x", CONTENT[1:]])
def test_paths_cannot_be_guessed(gallery: Gallery, name: str) -> None:
    with pytest.raises(GalleryError, match="no video"):
        find_id(records_of(gallery), name)


@pytest.mark.parametrize("name", [PATH, encoded(PATH)])
def test_paths_are_names_where_they_are_shown(gallery: Gallery, name: str) -> None:
    assert find_id(records_of(gallery), name, show_paths=True) == PATH


def test_ids_with_slashes_are_found_by_their_encoded_name(gallery: Gallery) -> None:
    assert find_id(records_of(gallery), encoded("cam1/0034")) == "cam1/0034"


def test_all_videos_with_a_content_are_found(gallery: Gallery) -> None:
    """An upload is removed only where none of them lists it."""
    found = videos_with_content(records_of(gallery), CONTENT)
    assert {video.id for video in found} == {"cam1/0034", "copy"}
    assert videos_with_content(records_of(gallery), "0" * 64) == []
