"""Thumbnails, single frames, and the frames of a moment."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_samples import CLIPS, SAMPLES, Media, picture_of
from numbered_movies import number_in, write_movie
from running_services import OpenService, service_in

from xclip_deploy.runtime.moments import frame_at, frames_between
from xclip_deploy.wire import API


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "vfr.mkv"])
@pytest.mark.parametrize("time_s", [0.0, 3.5, 11.9])
def test_a_frame_is_the_one_on_display(media: Media, name: str, time_s: float) -> None:
    found = media.get(name, "frame", time_s=time_s)
    assert found.status_code == 200, found.text
    assert found.headers["content-type"] == "image/jpeg"
    assert number_in(picture_of(found.content)) == round(time_s * 10)


def test_a_frame_of_a_variable_rate(media: Media) -> None:
    found = media.get("vfr.mkv", "frame", time_s=3.0)
    assert number_in(picture_of(found.content)) == 8  # on display from 2.6 s to 3.9 s


@pytest.mark.parametrize("name", [Path(name).name for name in CLIPS])
def test_png_loses_nothing(media: Media, name: str) -> None:
    found = media.get(name, "frame", time_s=0.05, format="png", max_side=64)
    expected = frame_at(media.path(name), 0.05, max_side=64)
    np.testing.assert_array_equal(picture_of(found.content), expected)


def test_a_thumbnail_that_indexing_kept(media: Media, samples_gallery: Path) -> None:
    found = media.get("h264.mp4", "thumbnail", start_s=4)
    stored = next(samples_gallery.rglob(f"{media.handles['h264.mp4']}-4000.webp"))
    assert found.headers["content-type"] == "image/webp"
    assert found.content == stored.read_bytes()


def test_a_thumbnail_that_is_made_is_kept(media: Media) -> None:
    first = media.get("h264.mp4", "thumbnail", start_s=1.0, time_s=2.5)
    assert number_in(picture_of(first.content)) == 25
    keys = media.library.cache.keys()
    again = media.get("h264.mp4", "thumbnail", start_s=1.001, time_s=2.5)
    assert again.content == first.content
    assert sorted(media.library.cache.keys()) == sorted(keys)


def test_the_frames_of_a_moment(media: Media) -> None:
    found = media.get("hevc.mp4", "frames", start_s=2.0, end_s=3.0)
    assert found.status_code == 200, found.text
    with np.load(io.BytesIO(found.content), allow_pickle=False) as arrays:
        frames, times_s = arrays["frames"], arrays["times_s"]
    expected, expected_s = frames_between(media.path("hevc.mp4"), 2.0, 3.0)
    np.testing.assert_array_equal(frames, expected)
    np.testing.assert_array_equal(times_s, expected_s)
    assert [number_in(frame) for frame in frames] == list(range(20, 30))


def test_frames_are_thinned(media: Media) -> None:
    found = media.get("h264.mp4", "frames", start_s=0, end_s=12, max_frames=4, max_side=32)
    with np.load(io.BytesIO(found.content)) as arrays:
        assert arrays["frames"].shape == (4, 32, 32, 3)
    assert list((media.library.cache._unfinished).iterdir()) == []


@pytest.mark.parametrize(
    ("what", "query", "status"),
    [
        ("frame", {"time_s": 13}, 422),
        ("frame", {"time_s": "nan"}, 422),
        ("frame", {"time_s": "inf"}, 422),
        ("frame", {"time_s": -1}, 422),
        ("frame", {"time_s": 1, "max_side": 8}, 422),
        ("frame", {"time_s": 1, "format": "svg"}, 422),
        ("frame", {}, 422),
        ("frames", {"start_s": 3, "end_s": 3}, 422),
        ("frames", {"start_s": 5, "end_s": 3}, 422),
        ("frames", {"start_s": 0, "end_s": 601}, 422),
        ("frames", {"start_s": 0, "end_s": 2, "max_frames": 257}, 422),
        ("thumbnail", {"start_s": 100}, 422),
    ],
)
def test_what_is_not_in_the_video(
    media: Media, what: str, query: dict[str, Any], status: int
) -> None:
    found = media.get("h264.mp4", what, **query)
    assert found.status_code == status, found.text
    assert str(media.path("h264.mp4").parent) not in found.text


def test_an_upload_is_opened_under_the_limits_of_uploads(open_service: OpenService) -> None:
    """Its codec was allowed when it was added; the file may say something else later."""
    client = open_service()
    service = service_in(client)
    folders = {"upload": service.uploads.folder / ("0" * 64), "own": service.settings.data.parent}
    statuses = {}
    for seconds, (name, folder) in enumerate(folders.items(), 2):
        folder.mkdir(exist_ok=True)
        path = write_movie(folder / "rare.avi", seconds, codecs=("ffv1", "aac"), sounds=())
        service.served.writer.add([path], workers=1)
        address = f"{API}/videos/{hashlib.sha256(path.read_bytes()).hexdigest()}"
        asked = ("frame?time_s=1", "playable?start_s=0&end_s=1", "cut?start_s=0&end_s=1")
        statuses[name] = [client.get(f"{address}/{each}").status_code for each in asked]
    assert statuses == {"upload": [422] * 3, "own": [200] * 3}


@pytest.mark.parametrize("handle", ["0" * 64, "h264.mp4", "id-Li4vLi4vZXRjL3Bhc3N3ZA", "%2e%2e"])
@pytest.mark.parametrize("what", ["media", "thumbnail", "playable", "frame?time_s=0"])
def test_names_that_are_no_video(media: Media, handle: str, what: str) -> None:
    assert media.client.get(f"/api/v1/videos/{handle}/{what}").status_code == 404


def test_a_browser_that_has_a_picture_gets_none(media: Media) -> None:
    queries: dict[str, dict[str, Any]] = {"frame": {"time_s": 1}, "thumbnail": {"start_s": 4}}
    for what, query in queries.items():
        first = media.get("h264.mp4", what, **query)
        assert "immutable" in first.headers["cache-control"]
        assert first.headers["x-content-type-options"] == "nosniff"
        again = media.get("h264.mp4", what, {"If-None-Match": first.headers["etag"]}, **query)
        assert (again.status_code, again.content) == (304, b"")
        other = media.get("h264.mp4", what, {"If-None-Match": '"other"'}, **query)
        assert other.status_code == 200
