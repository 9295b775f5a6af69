"""Embeddings and scores over HTTP."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from fastapi import Response
from starlette.testclient import TestClient

from xclip_deploy import Retriever
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.service.routes import encoding
from xclip_deploy.wire import (
    API,
    ArrayModel,
    ScoresModel,
    TextFeaturesModel,
    VideoFeaturesModel,
)

TEXTS = ["a red square moves left", "numbers count up"]


@pytest.fixture(scope="module")
def retriever(api: TestClient) -> Retriever:
    found = api.app.state.service.served.writer  # type: ignore[attr-defined]
    assert isinstance(found, Retriever)
    return found


def post(client: TestClient, address: str, **content: Any) -> Any:
    response = client.post(f"{API}/{address}", json=content)
    assert response.status_code == 200, response.text
    return response


def test_texts_are_embedded(api: TestClient, retriever: Retriever) -> None:
    response = post(api, "encode/texts", texts=TEXTS)
    found = TextFeaturesModel.model_validate_json(response.content).features()
    for name, values in vars(retriever.encode_texts(TEXTS)).items():
        np.testing.assert_array_equal(getattr(found, name), values)
    assert "X-Warnings" not in response.headers


def test_texts_that_are_too_long_are_named(api: TestClient) -> None:
    response = post(api, "encode/texts", texts=["a star", "word " * 100])
    (warning,) = json.loads(response.headers["X-Warnings"])
    assert warning.startswith("text 1: ")


def test_more_warnings_than_a_header_holds() -> None:
    """The header stays a list that can be read, and tells how many are missing."""
    response = Response()
    encoding._warn(response, [f"file {n}: {'é' * 100}" for n in range(40)])
    header = response.headers["X-Warnings"]
    *kept, last = json.loads(header)
    assert len(header) < 8000
    assert last == f"and {40 - len(kept)} more"
    assert len(kept) > 5


def scores(client: TestClient, **content: Any) -> ScoresModel:
    return ScoresModel.model_validate_json(post(client, "score", **content).content)


def test_embeddings_are_scored(api: TestClient, retriever: Retriever) -> None:
    texts = retriever.encode_texts(TEXTS)
    snapshot = retriever.gallery.snapshot()
    stored = snapshot.features(snapshot.rows())
    videos = VideoFeatures(
        stored.video_features.astype(np.float32),
        stored.frame_features.astype(np.float32),
        stored.num_frames,
    )
    expected = retriever.score(texts, videos)
    found = scores(
        api,
        texts=TextFeaturesModel.of(texts).model_dump(),
        videos=VideoFeaturesModel.of(videos).model_dump(),
    )
    np.testing.assert_allclose(found.logits.array(), expected.logits, atol=1e-4)
    for name, values in expected.grains.items():
        np.testing.assert_allclose(found.grains[name].array(), values, atol=1e-5)


def test_videos_of_the_gallery_score_as_their_best_segments(
    api: TestClient, retriever: Retriever
) -> None:
    handles = [video["handle"] for video in api.get(f"{API}/videos").json()["videos"]]
    found = scores(api, texts=TEXTS, videos=handles)
    assert found.logits.shape == [2, 7]
    for row, text in zip(found.logits.array(), TEXTS, strict=True):
        hits = retriever.search(text, 10, exact=True)
        expected = {hit.media.content_sha256: hit.score for hit in hits}  # type: ignore[union-attr]
        assert dict(zip(handles, row.tolist(), strict=True)) == pytest.approx(expected, abs=1e-4)


def _spoilt(features: TextFeatures, value: float) -> dict[str, Any]:
    words = features.word_features.copy()
    words[0, 0, 0] = value
    spoilt = TextFeatures(features.sentence_features, words, features.num_words)
    return TextFeaturesModel.of(spoilt).model_dump()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 5.0])
def test_embeddings_of_no_model_are_refused_and_leave_the_service_ready(
    api: TestClient, retriever: Retriever, value: float
) -> None:
    texts = _spoilt(retriever.encode_texts(TEXTS), value)
    handle = api.get(f"{API}/videos").json()["videos"][0]["handle"]
    response = api.post(f"{API}/score", json={"texts": texts, "videos": [handle]})
    assert response.status_code == 422, response.text
    assert api.get("/health/ready").status_code == 200


def test_embeddings_of_another_shape_are_refused(api: TestClient, retriever: Retriever) -> None:
    handle = api.get(f"{API}/videos").json()["videos"][0]["handle"]
    good = TextFeaturesModel.of(retriever.encode_texts(TEXTS)).model_dump()
    short = ArrayModel.of(np.eye(2, 3, dtype=np.float32)).model_dump()
    for changes in (
        {"sentence_features": short},
        {"num_words": ArrayModel.of(np.array([1, 99], np.int32)).model_dump()},
        {"num_words": ArrayModel.of(np.array([1], np.int32)).model_dump()},
        {"sentence_features": {"dtype": "float32", "shape": [2, 8], "data": "AAAA"}},
    ):
        body = {"texts": {**good, **changes}, "videos": [handle]}
        response = api.post(f"{API}/score", json=body)
        assert response.status_code == 422, response.text


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (422, {"texts": [], "videos": ["0" * 64]}),
        (422, {"texts": ["a"], "videos": []}),
        (404, {"texts": ["a"], "videos": ["0" * 64]}),
        (422, {"texts": ["a"] * 65, "videos": ["0" * 64]}),
    ],
)
def test_bad_requests_are_refused(api: TestClient, status: int, content: dict[str, Any]) -> None:
    assert api.post(f"{API}/score", json=content).status_code == status
