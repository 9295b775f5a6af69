"""Explanations over HTTP equal those of a Retriever."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from xclip_deploy import Retriever
from xclip_deploy.runtime.evidence import Explanation
from xclip_deploy.wire import API, EvidenceModel, ExplanationModel

OpenService = Callable[..., TestClient]
TEXT = "a red square moves left"


@pytest.fixture(scope="module")
def retriever(api: TestClient) -> Retriever:
    found = api.app.state.service.served.writer  # type: ignore[attr-defined]
    assert isinstance(found, Retriever)
    return found


def explained(client: TestClient, **content: Any) -> EvidenceModel:
    response = client.post(f"{API}/explain", json=content)
    assert response.status_code == 200, response.text
    return EvidenceModel.model_validate_json(response.content)


def handles(client: TestClient, **options: Any) -> list[dict[str, Any]]:
    response = client.post(f"{API}/search", json={"text": TEXT, **options})
    hits: list[dict[str, Any]] = response.json()["hits"]
    return hits


def check(model: ExplanationModel, expected: Explanation) -> None:
    restored = model.explanation()
    assert restored.score == expected.score
    assert dict(restored.grains) == dict(expected.grains)
    assert restored.words == expected.words
    assert restored.frames == expected.frames
    assert restored.best_moment == expected.best_moment
    assert restored.points == expected.points
    assert restored.missing_words == expected.missing_words
    assert str(restored) == str(expected) == model.summary
    np.testing.assert_array_equal(restored.word_frame_similarity, expected.word_frame_similarity)
    np.testing.assert_array_equal(model.similarity, expected.word_frame_similarity)
    mine, its = restored.decomposition, expected.decomposition
    np.testing.assert_array_equal(mine.similarity, its.similarity)
    for name, part in its.contributions.items():
        np.testing.assert_array_equal(mine.contributions[name], part)
    first, other = mine.attention.words_first, its.attention.words_first
    assert first is not None
    assert other is not None
    np.testing.assert_array_equal(first.joint, other.joint)
    for name in ("segment", "num_segments", "start_s", "end_s", "query"):
        assert getattr(restored, name) == getattr(expected, name), name


def test_an_explanation_is_whole(api: TestClient, retriever: Retriever) -> None:
    hit = retriever.search(TEXT, 1)[0]
    found = explained(api, query=TEXT, hit={"video": handles(api, k=1)[0]["handle"]})
    assert found.contrast is None
    assert found.explanation is not None
    check(found.explanation, retriever.explain(TEXT, hit.id))
    assert found.explanation.has_media
    assert found.explanation.name == Path(str(hit.path)).name
    assert "/" not in found.model_dump_json()
    shape = (len(found.explanation.words), len(found.explanation.frames))
    assert np.shape(found.explanation.similarity) == shape


def test_a_segment_is_explained(api: TestClient, retriever: Retriever) -> None:
    hits = retriever.search(TEXT, 9, within="numbers.mp4", group="moment", nms=None)
    handle = handles(api, within="numbers.mp4")[0]["handle"]
    for hit in hits[:2]:
        found = explained(api, query=TEXT, hit={"video": handle, "segment": hit.segment})
        assert found.explanation is not None
        check(found.explanation, retriever.explain(TEXT, hit))
    best = explained(api, query=TEXT, hit={"video": handle}).explanation
    assert best is not None
    assert best.segment == hits[0].segment


def test_the_order_of_two_videos_is_explained(api: TestClient, retriever: Retriever) -> None:
    hits = retriever.search(TEXT, 2)
    first, second = (each["handle"] for each in handles(api, k=2))
    found = explained(api, query=TEXT, hit={"video": first}, other={"video": second}).contrast
    assert found is not None
    expected = retriever.explain(TEXT, hits[0].id, hits[1].id)
    check(found.first, expected.first)
    check(found.second, expected.second)
    assert found.difference == expected.difference
    assert found.grains == expected.grains
    assert [word.points for word in found.words] == [word.points for word in expected.words]
    assert found.summary == str(expected)
    assert found.contrast().difference == expected.difference
    assert "/" not in found.model_dump_json()


@pytest.mark.parametrize("segment", [None, 1])
def test_an_explanation_is_drawn(api: TestClient, segment: int | None) -> None:
    pytest.importorskip("matplotlib")
    within = {} if segment is None else {"within": "numbers.mp4"}
    name = {"video": handles(api, **within)[0]["handle"], "segment": segment}
    response = api.post(f"{API}/explain.png", json={"query": TEXT, "hit": name})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(response.content)) as picture:
        assert picture.format == "PNG"
        assert picture.width > 500
    data = api.app.state.service.settings.data  # type: ignore[attr-defined]
    assert list((data / "queries").iterdir()) == []


def test_a_picture_of_a_video_that_is_gone_has_grey_boxes(
    open_service: OpenService, videos_path: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    client = open_service()
    retriever = client.app.state.service.served.writer  # type: ignore[attr-defined]
    path = tmp_path / "clip.mp4"
    path.write_bytes((videos_path / "shapes" / "train" / "0002.mp4").read_bytes() + b"\0")
    retriever.add(path, workers=1, metadata={"caption": "gone", "split": "gone"})
    path.unlink()
    handle = handles(client, where="split = 'gone'")[0]["handle"]
    content = {"query": TEXT, "hit": {"video": handle}}
    response = client.post(f"{API}/explain.png", json=content)
    assert response.status_code == 200, response.text
    assert response.content.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (422, {"query": "!", "hit": {"video": "0" * 64}, "more": 1}),
        (422, {"query": TEXT}),
        (422, {"query": "", "hit": {"video": "0" * 64}}),
        (404, {"query": TEXT, "hit": {"video": "0" * 64}}),
    ],
)
def test_bad_questions_are_refused(api: TestClient, status: int, content: dict[str, Any]) -> None:
    for address in ("explain", "explain.png"):
        assert api.post(f"{API}/{address}", json=content).status_code == status


def test_a_segment_that_is_not_there_is_refused(api: TestClient) -> None:
    name = {"video": handles(api, k=1)[0]["handle"], "segment": 77}
    response = api.post(f"{API}/explain", json={"query": TEXT, "hit": name})
    assert response.status_code == 404
    assert "/" not in response.json()["error"]["message"]
