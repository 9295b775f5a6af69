"""Searches over HTTP equal those of a Retriever."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from xclip_deploy import Retriever
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.wire import API, BatchModel, ResultsModel

OpenService = Callable[..., TestClient]
TEXTS = ["a red square moves left", "a green circle", "numbers count up", "a blue star spins"]


@pytest.fixture(scope="module")
def retriever(api: TestClient) -> Retriever:
    """A retriever on the gallery of the service; the service's own, as it changes nothing."""
    found = api.app.state.service.served.writer  # type: ignore[attr-defined]
    assert isinstance(found, Retriever)
    return found


def asked(client: TestClient, address: str = "search", **content: Any) -> ResultsModel:
    response = client.post(f"{API}/{address}", json=content)
    assert response.status_code == 200, response.text
    return ResultsModel.model_validate_json(response.content)


def refused(client: TestClient, status: int, address: str = "search", **content: Any) -> str:
    response = client.post(f"{API}/{address}", json=content)
    assert response.status_code == status, response.text
    return str(response.json()["error"]["message"])


def check(found: ResultsModel, expected: SearchResults, *, tolerance: float = 0.0) -> None:
    """Compare every field; numbers of a batch may differ by rounding."""

    def close(one: Any, other: Any) -> bool:
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(close(one[n], other[n]) for n in one)
        if one is None or other is None:
            return one is other
        return bool(one == pytest.approx(other, abs=tolerance, rel=0))

    for name in ("num_scored", "num_videos", "num_segments", "truncated_tokens", "method"):
        assert getattr(found, name) == getattr(expected, name), name
    assert len(found.hits) == len(expected)
    for hit, other in zip(found.hits, expected, strict=True):
        assert hit.handle == other.media.content_sha256  # type: ignore[union-attr]
        assert (hit.id, hit.path, hit.paths) == (hit.handle, None, [])
        assert hit.name == Path(other.path or "").name
        for name in ("rank", "segment", "start_s", "end_s", "duration_s", "best_frame_time_s"):
            assert getattr(hit, name) == getattr(other, name), name
        assert hit.metadata == dict(other.metadata)
        assert close(hit.score, other.score)
        assert close(hit.grains, None if other.grains is None else other.grains.to_dict())
        assert close(hit.confidence, other.confidence)
        assert (hit.range is None) == (other.range is None)
        if hit.range is not None and other.range is not None:
            assert hit.range.model_dump() == pytest.approx(vars(other.range), abs=tolerance)
        assert len(hit.moments) == len(other.moments)
        for moment, its in zip(hit.moments, other.moments, strict=True):
            assert (moment.segment, moment.start_s, moment.end_s) == (
                its.segment,
                its.start_s,
                its.end_s,
            )
            assert close(moment.score, its.score)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": 2, "offset": 1},
    {"group": "moment", "nms": None, "k": 20},
    {"per_video": 2, "refine": False},
    {"where": "split = 'none' or caption like '%red%'"},
    {"from_s": 8, "to_s": "0:24"},
    {"exact": False, "candidates": 3},
    {"confidence": True},
    {"min_score": 0.0},
    {"deduplicate": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=[",".join(each) or "plain" for each in OPTIONS])
def test_a_search_equals_the_retriever_s(
    api: TestClient, retriever: Retriever, options: dict[str, Any]
) -> None:
    check(asked(api, text=TEXTS[0], **options), retriever.search(TEXTS[0], **options))


def test_a_query_bank_calibrates(api: TestClient, retriever: Retriever) -> None:
    bank = retriever.query_bank(TEXTS)
    expected = retriever.search(TEXTS[1], query_bank=bank, confidence=True)
    found = asked(api, text=TEXTS[1], query_bank=TEXTS, confidence=True)
    check(found, expected)
    assert found.note == expected.note


def test_a_video_is_searched_within_by_handle_and_by_file_name(
    api: TestClient, retriever: Retriever
) -> None:
    expected = retriever.search(TEXTS[2], within="numbers.mp4", group="moment")
    assert len(expected) > 1
    handle = asked(api, text=TEXTS[2], within="numbers.mp4", k=1).hits[0].handle
    for name in ("numbers.mp4", handle):
        check(asked(api, text=TEXTS[2], within=name, group="moment"), expected)
    message = refused(api, 404, text=TEXTS[2], within="nothing.mp4")
    assert "nothing.mp4" in message
    empty = asked(api, text=TEXTS[2], within=handle, from_s=100)
    assert "/" not in empty.note
    assert "holds nothing" in empty.note


def test_a_batch_equals_the_retriever_s(api: TestClient, retriever: Retriever) -> None:
    response = api.post(f"{API}/search/batch", json={"texts": TEXTS, "k": 5})
    found = BatchModel.model_validate_json(response.content).results
    expected = retriever.search_batch(TEXTS, 5)
    for each, results in zip(found, expected, strict=True):
        check(each, results, tolerance=1e-4)


def test_concurrent_searches_share_runs_and_equal_lone_ones(
    open_service: OpenService,
) -> None:
    client = open_service(batch_wait_ms=60_000, max_batch=8, refresh_s=3600.0)
    service = client.app.state.service  # type: ignore[attr-defined]
    # Two have options of their own, and one is bad.
    bodies: list[dict[str, Any]] = [{"text": f"{text} {n}"} for text in TEXTS for n in range(2)]
    bodies[1] |= {"k": 3}
    bodies[2] |= {"group": "moment"}
    bodies[5] = {"text": "a star", "where": "nothing = 3"}
    with ThreadPoolExecutor(len(bodies)) as threads:
        answers = list(threads.map(lambda body: client.post(f"{API}/search", json=body), bodies))
    assert [answer.status_code for answer in answers] == [200] * 5 + [422] + [200] * 2
    for body, answer in zip(bodies, answers, strict=True):
        if answer.status_code == 200:
            found = ResultsModel.model_validate_json(answer.content)
            check(found, service.served.writer.search(**body), tolerance=1e-4)
    assert "nothing" in answers[5].json()["error"]["message"]
    # All were encoded at once, and the six with equal options searched at once.
    metrics = service.metrics.text().decode()
    assert 'xclip_batch_size_sum{stage="encode_text"} 8.0' in metrics
    assert 'xclip_batch_size_bucket{le="2.0",stage="encode_text"} 0.0' in metrics


def test_too_many_searches_are_told_to_come_back(open_service: OpenService) -> None:
    client = open_service(max_waiting=1, batch_wait_ms=2000, max_batch=64)
    with ThreadPoolExecutor(4) as threads:
        answers = list(
            threads.map(lambda text: client.post(f"{API}/search", json={"text": text}), TEXTS)
        )
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 429, 429, 429]
    busy = next(answer for answer in answers if answer.status_code == 429)
    assert busy.headers["Retry-After"] == "1"
    assert busy.json()["error"]["kind"] == "TooManyWaiting"


def test_a_text_that_is_too_long_is_told(api: TestClient, retriever: Retriever) -> None:
    long = " ".join(["a red square"] * 40)
    found = asked(api, text=long)
    check(found, retriever.search(long))
    assert found.truncated_tokens > 0
    assert any("longer than the model reads" in each for each in found.warnings)
    banked = asked(api, text="a star", query_bank=[long, "a circle"])
    assert any("query bank" in each for each in banked.warnings)


def test_a_video_of_the_gallery_is_searched_by(api: TestClient, retriever: Retriever) -> None:
    first = asked(api, text=TEXTS[0], where="split <> 'none'", k=1).hits[0]
    found = asked(api, video=first.handle, k=3)
    assert found.hits[0].handle == first.handle
    assert found.hits[0].score == pytest.approx(1, abs=1e-3)
    assert found.hits[0].grains is None
    assert not found.warnings
    path = next(hit.path for hit in retriever.search(TEXTS[0]) if hit.path.endswith(first.name))  # type: ignore[union-attr]
    expected = retriever.search_by_video(str(path), 3)
    assert [hit.name for hit in found.hits] == [Path(str(hit.path)).name for hit in expected]
    scores = [hit.score for hit in found.hits]
    assert scores == pytest.approx([hit.score for hit in expected], abs=2e-3)
    both = asked(api, text=TEXTS[0], video=first.handle, video_weight=0.3)
    expected = retriever.search(TEXTS[0], video=str(path), video_weight=0.3)
    scores = [hit.score for hit in both.hits]
    assert scores == pytest.approx([hit.score for hit in expected], abs=0.05)


def test_a_long_video_is_searched_by_a_segment_or_by_the_mean(api: TestClient) -> None:
    long = asked(api, text=TEXTS[2], within="numbers.mp4", k=1).hits[0]
    one = asked(api, video=long.handle, segment=2, group="moment", nms=None, k=1)
    assert (one.hits[0].handle, one.hits[0].segment) == (long.handle, 2)
    assert one.hits[0].score == pytest.approx(1, abs=1e-3)
    mean = asked(api, video=long.handle)
    assert any("mean of its 5 segments" in each for each in mean.warnings)
    assert all(-1 <= hit.score <= 1 for hit in mean.hits)
    assert "no segment 99" in refused(api, 404, video=long.handle, segment=99)


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (422, {}),
        (422, {"text": "  "}),
        (422, {"text": "a star", "k": 0}),
        (422, {"text": "a star", "unknown": 1}),
        (422, {"text": "a star", "min_score": "NaN"}),
        (422, {"text": "a star", "where": "id like '/%'"}),
        (422, {"text": "a star", "where": 'duration_s > 1 and "ID" is not null'}),
        (422, {"text": "a star", "where": "caption ="}),
        (422, {"text": "a star", "from_s": 9, "to_s": 3}),
        (422, {"text": "a star", "segment": 0}),
        (404, {"video": "0" * 64}),
        (404, {"video": "/etc/passwd"}),
    ],
)
def test_bad_requests_are_refused(api: TestClient, status: int, content: dict[str, Any]) -> None:
    refused(api, status, **content)


def test_a_bank_for_a_video_alone_is_refused(api: TestClient) -> None:
    first = asked(api, text=TEXTS[0], k=1).hits[0]
    assert "query_bank" in refused(api, 422, video=first.handle, query_bank=["a star"])


def test_a_text_in_a_filter_may_name_the_column_of_paths(api: TestClient) -> None:
    assert not asked(api, text="a star", where="caption = 'id'").hits


def test_paths_are_shown_where_the_service_shows_them(open_service: OpenService) -> None:
    client = open_service(show_paths=True)
    retriever = client.app.state.service.served.writer  # type: ignore[attr-defined]
    found = asked(client, text=TEXTS[0], where="id like '/%'", k=2)
    expected = retriever.search(TEXTS[0], 2)
    assert [hit.id for hit in found.hits] == [hit.id for hit in expected]
    assert [hit.path for hit in found.hits] == [hit.path for hit in expected]
    assert asked(client, video=found.hits[0].id, k=1).hits[0].id == found.hits[0].id


def test_a_model_of_its_own_gives_the_same_results(open_service: OpenService) -> None:
    client = open_service(session=None)
    service = client.app.state.service  # type: ignore[attr-defined]
    assert service.served.model is not service.served.writer.model
    check(asked(client, text=TEXTS[3]), service.served.writer.search(TEXTS[3]), tolerance=1e-4)


def test_near_identical_videos_are_named_without_paths(
    open_service: OpenService, videos_path: Path
) -> None:
    client = open_service()
    retriever = client.app.state.service.served.writer  # type: ignore[attr-defined]
    clip = np.zeros((4, 64, 64, 3), np.uint8)
    retriever.gallery.remove(where="duration_s > 0")
    retriever.add([clip, clip], ids=["/secret/a.mp4", "/secret/b.mp4"])
    found = asked(client, text="black", deduplicate=True)
    (hit,) = found.hits
    (other,) = hit.near_identical
    assert hit.handle.startswith("path-")
    assert other.startswith("path-")
    assert asked(client, video=other, k=1).hits
    assert "secret" not in found.model_dump_json()
