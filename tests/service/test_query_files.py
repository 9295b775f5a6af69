"""Searches by uploaded images and videos."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from xclip_deploy import Retriever
from xclip_deploy.wire import API, ResultsModel, VideoFeaturesModel

OpenService = Callable[..., TestClient]


@pytest.fixture(scope="module")
def retriever(api: TestClient) -> Retriever:
    found = api.app.state.service.served.writer  # type: ignore[attr-defined]
    assert isinstance(found, Retriever)
    return found


def send(
    client: TestClient, what: str, content: bytes, name: str = "query.bin", **fields: str
) -> Any:
    return client.post(f"{API}/{what}", files={"file": (name, content)}, data=fields)


def left_over(client: TestClient) -> list[str]:
    settings = client.app.state.service.settings  # type: ignore[attr-defined]
    return [path.name for path in (settings.data / "queries").iterdir()]


def png(side: int = 96) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 255, (side, side, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_an_image_is_searched_by(api: TestClient, retriever: Retriever, tmp_path: Path) -> None:
    (tmp_path / "query.png").write_bytes(png())
    expected = retriever.search_by_image(tmp_path / "query.png", 4)
    options = json.dumps({"k": 4})
    response = send(api, "search/image", png(), "../../x.png", options=options)
    assert response.status_code == 200, response.text
    found = ResultsModel.model_validate_json(response.content)
    assert [hit.score for hit in found.hits] == [hit.score for hit in expected]
    assert [hit.start_s for hit in found.hits] == [hit.start_s for hit in expected]
    assert left_over(api) == []


def test_a_video_is_searched_by_alone_and_with_a_text(
    api: TestClient, retriever: Retriever, videos_path: Path
) -> None:
    path = videos_path / "shapes" / "train" / "0001.mp4"
    expected = retriever.search_by_video(path, 3)
    response = send(api, "search/video", path.read_bytes(), "0001.mp4", options='{"k": 3}')
    assert response.status_code == 200, response.text
    found = ResultsModel.model_validate_json(response.content)
    assert [hit.score for hit in found.hits] == [hit.score for hit in expected]
    assert found.hits[0].name == "0001.mp4"
    assert found.warnings == []
    fields = {"text": "a red star", "options": '{"video_weight": 0.25, "group": "moment"}'}
    response = send(api, "search/video", path.read_bytes(), **fields)
    found = ResultsModel.model_validate_json(response.content)
    both = retriever.search("a red star", video=path, video_weight=0.25, group="moment")
    assert [hit.score for hit in found.hits] == [hit.score for hit in both]
    assert left_over(api) == []


def test_a_video_that_is_thinned_out_is_told(api: TestClient, videos_path: Path) -> None:
    content = (videos_path / "numbers.mp4").read_bytes()
    response = send(api, "search/video", content)
    assert response.status_code == 200, response.text
    (warning,) = response.json()["warnings"]
    assert "are seen in" in warning
    encoded = send(api, "encode/videos", content)
    assert "are seen in" in json.loads(encoded.headers["X-Warnings"])[0]


def test_videos_are_embedded(api: TestClient, retriever: Retriever, videos_path: Path) -> None:
    paths = [videos_path / "shapes" / "train" / f"000{n}.mp4" for n in range(2)]
    files = [("file", (path.name, path.read_bytes())) for path in paths]
    response = api.post(f"{API}/encode/videos", files=files)
    assert response.status_code == 200, response.text
    found = VideoFeaturesModel.model_validate_json(response.content).features()
    expected = retriever.encode_videos(paths)
    for name, values in vars(expected).items():
        np.testing.assert_allclose(getattr(found, name), values, atol=1e-5)
    assert left_over(api) == []


@pytest.mark.parametrize(
    ("what", "content", "status", "said"),
    [
        ("search/image", b"no image", 415, "no image"),
        ("search/image", b"", 422, "empty"),
        ("search/image", b"\x89PNG\r\n\x1a\n" + b"broken" * 50, 422, "cannot be read as an image"),
        ("search/video", b"no video", 422, "the file"),
        ("search/video", b"#EXTM3U\nfile:///etc/passwd\n", 422, "the file"),
        ("encode/videos", b"x" * 2000, 422, "the file"),
    ],
)
def test_bad_files_are_refused_and_removed(
    api: TestClient, what: str, content: bytes, status: int, said: str
) -> None:
    response = send(api, what, content)
    assert response.status_code == status, response.text
    message = response.json()["error"]["message"]
    assert said in message
    data = api.app.state.service.settings.data  # type: ignore[attr-defined]
    assert str(data) not in message
    assert left_over(api) == []
    assert api.get("/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"options": "{"}, "JSON"),
        ({"options": '{"k": 0}'}, "k"),
        ({"options": '{"where": "id = 3"}'}, "paths"),
        ({"other": "1"}, "other"),
        ({"options": '{"query_bank": ["a"]}'}, "query_bank"),
        ({"options": "[" * 100_000}, "options"),
    ],
)
def test_bad_fields_are_refused(api: TestClient, fields: dict[str, str], said: str) -> None:
    response = send(api, "search/video", b"anything", **fields)
    assert response.status_code == 422, response.text
    assert said in response.json()["error"]["message"]
    assert left_over(api) == []


def test_forms_without_a_file_or_with_two_are_refused(api: TestClient) -> None:
    response = api.post(f"{API}/search/image", files={"options": (None, "{}")})
    assert response.status_code == 422
    files = [("file", ("a.png", png())), ("file", ("b.png", png()))]
    assert api.post(f"{API}/search/image", files=files).status_code == 413
    assert left_over(api) == []


def test_files_above_the_limit_are_refused(open_service: OpenService) -> None:
    client = open_service(max_query_bytes=10_000)
    response = send(client, "search/image", png(200))
    assert response.status_code == 413
    assert left_over(client) == []


def test_what_a_killed_service_left_is_removed(
    open_service: OpenService, settings_of: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "queries"
    folder.mkdir(parents=True)
    (folder / "old.mp4").write_bytes(b"left over")
    client = open_service(data=tmp_path / "data")
    assert left_over(client) == []


def test_several_images_at_once(api: TestClient) -> None:
    statuses: list[int] = []

    def work() -> None:
        statuses.append(send(api, "search/image", png()).status_code)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 4
    assert left_over(api) == []
