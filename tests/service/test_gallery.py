"""The gallery over HTTP: summary, listing, removal and the writes of others."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from xclip_deploy import Retriever
from xclip_deploy.wire import API, GalleryModel, VideoModel, VideoPage

OpenService = Callable[..., TestClient]


def page(client: TestClient, **params: Any) -> VideoPage:
    response = client.get(f"{API}/videos", params=params)
    assert response.status_code == 200, response.text
    return VideoPage.model_validate_json(response.content)


def test_the_gallery_is_described(api: TestClient) -> None:
    response = api.get(f"{API}/gallery")
    model = GalleryModel.model_validate_json(response.content)
    stats = api.app.state.service.served.writer.gallery.stats()  # type: ignore[attr-defined]
    assert (model.num_videos, model.num_segments) == (7, stats.num_segments)
    assert model.total_duration_s == stats.total_duration_s
    assert model.metadata == dict(stats.metadata)
    assert (model.can_upload, model.can_add_paths) == (True, False)
    assert "/" not in response.text


def test_videos_are_listed_page_by_page(api: TestClient) -> None:
    whole = page(api)
    assert (len(whole.videos), whole.total, whole.next_offset) == (7, 7, None)
    first, second = page(api, limit=4), page(api, limit=4, offset=4)
    assert first.next_offset == 4
    assert first.videos + second.videos == whole.videos
    assert page(api, offset=100).videos == []
    some = page(api, where="split = 'none'")
    assert [video.name for video in some.videos] == ["numbers.mp4"]
    assert (some.total, some.videos[0].num_segments) == (1, 5)
    assert all(video.path is None and video.id == video.handle for video in whole.videos)


def test_a_video_has_its_segments(api: TestClient) -> None:
    handle = page(api, where="split = 'none'").videos[0].handle
    response = api.get(f"{API}/videos/{handle}")
    video = VideoModel.model_validate_json(response.content)
    assert video.segments is not None
    assert [each.segment for each in video.segments] == list(range(5))
    assert [each.start_s for each in video.segments] == [0, 8, 16, 24, 32]
    assert "/" not in response.text


@pytest.mark.parametrize(
    ("status", "address", "params"),
    [
        (404, "videos/" + "0" * 64, {}),
        (404, "videos/id-!!!", {}),
        (422, "videos", {"where": "id like '/home%'"}),
        (422, "videos", {"where": "((("}),
        (422, "videos", {"limit": 0}),
        (422, "videos", {"offset": -1}),
    ],
)
def test_bad_requests_are_refused(
    api: TestClient, status: int, address: str, params: dict[str, Any]
) -> None:
    assert api.get(f"{API}/{address}", params=params).status_code == status


def test_a_path_is_no_name_unless_paths_are_shown(
    api: TestClient, open_service: OpenService
) -> None:
    service = api.app.state.service  # type: ignore[attr-defined]
    path = service.served.writer.gallery.videos(limit=1)[0].path
    body = {"text": "a star", "within": path}
    assert api.post(f"{API}/search", json=body).status_code == 404
    # Nor is it one in the form of handles for videos without a content.
    encoded = "id-" + base64.urlsafe_b64encode(path.encode()).decode().rstrip("=")
    assert api.get(f"{API}/videos/{encoded}").status_code == 404
    assert api.get(f"{API}/videos/{encoded}/media").status_code == 404
    shown = open_service(show_paths=True)
    assert shown.post(f"{API}/search", json=body).status_code == 200


def test_videos_are_removed(open_service: OpenService) -> None:
    client = open_service()
    videos = page(client).videos
    found = client.delete(f"{API}/videos/{videos[0].handle}")
    assert found.json() == {"num_removed": 1}
    assert client.delete(f"{API}/videos/{videos[0].handle}").status_code == 404
    # All or none.
    names = [videos[1].handle, "0" * 64]
    assert client.post(f"{API}/videos/remove", json={"videos": names}).status_code == 404
    assert page(client).total == 6
    names = [videos[1].handle, videos[1].handle]
    done = client.post(f"{API}/videos/remove", json={"videos": names})
    assert done.json() == {"num_removed": 1}
    done = client.post(f"{API}/videos/remove", json={"where": "split = 'none'"})
    assert done.json() == {"num_removed": 1}
    hits = client.post(f"{API}/search", json={"text": "numbers"}).json()["hits"]
    assert len(hits) == page(client).total == 4
    for body in ({}, {"videos": ["a"], "where": "duration_s > 0"}, {"where": "id <> ''"}):
        assert client.post(f"{API}/videos/remove", json=body).status_code == 422


def test_a_read_only_service_removes_nothing(open_service: OpenService) -> None:
    client = open_service(read_only=True)
    handle = page(client).videos[0].handle
    assert client.delete(f"{API}/videos/{handle}").status_code == 403
    body = {"where": "duration_s > 0"}
    assert client.post(f"{API}/videos/remove", json=body).status_code == 403
    assert page(client).total == 7
    assert not client.get(f"{API}/gallery").json()["can_upload"]


def test_the_writes_of_others_are_seen_after_a_refresh(
    open_service: OpenService, bundle_path: Path
) -> None:
    client = open_service(refresh_s=3600.0)
    settings = client.app.state.service.settings  # type: ignore[attr-defined]
    before = client.get(f"{API}/gallery").json()
    with Retriever(bundle_path, settings.gallery, device="cpu") as other:
        other.remove(where="split = 'none'")
    assert client.post(f"{API}/gallery/refresh").status_code == 204
    after = client.get(f"{API}/gallery").json()
    assert (before["num_videos"], after["num_videos"]) == (7, 6)
    assert page(client).total == 6
