"""Clients of the real service give what a Retriever gives on the same gallery."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from running_services import OpenLive, served

from xclip_deploy import AsyncClient, Client, Retriever
from xclip_deploy.errors import (
    ClosedError,
    GalleryError,
    InvalidArgumentError,
    ServiceAccessError,
    ServiceError,
    VideoError,
)
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.service import ServiceSettings, create_app

QUERIES = ("a red square moves left", "a blue circle", "numbers")


@pytest.fixture(scope="module")
def settings(settings_of: Callable[..., ServiceSettings]) -> ServiceSettings:
    return settings_of(show_paths=True)


@pytest.fixture(scope="module")
def address(settings: ServiceSettings) -> Iterator[str]:
    with served(settings) as served_at:
        yield served_at


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address) as made:
        yield made


@pytest.fixture(scope="module")
def local(settings: ServiceSettings) -> Iterator[Retriever]:
    with Retriever(settings.bundle, settings.gallery, session=settings.session) as retriever:
        yield retriever


def comparable(results: Any) -> Any:
    """Results in numbers that do not depend on which queries shared a run."""
    content = results.to_dict()
    for hit in content["hits"]:
        for part in (hit, *hit["moments"]):
            part["score"] = round(part["score"], 3)
            grains = part["grains"] or {}
            part["grains"] = {k: v if v is None else round(v, 4) for k, v in grains.items()}
    return content


OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": 2, "offset": 1},
    {"group": "moment", "per_video": 2, "nms": None, "k": 20},
    {"where": "split = 'train'", "exact": True, "candidates": 20},
    {"min_score": 0.0, "deduplicate": 0.99},
    {"from_s": "0:08", "to_s": 20, "refine": False},
    {"confidence": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_searches_are_the_same(client: Client, local: Retriever, options: dict[str, Any]) -> None:
    expected = [comparable(each) for each in local.search_batch(QUERIES, **options)]
    assert [comparable(client.search(text, **options)) for text in QUERIES] == expected
    assert [comparable(each) for each in client.search_batch(QUERIES, **options)] == expected


def test_more_texts_than_one_request_takes(client: Client) -> None:
    texts = [f"a circle {n}" for n in range(70)]
    found = client.search_batch(texts, k=1)
    assert len(found) == 70
    features = client.encode_texts(texts)
    assert len(features) == 70
    assert client.search_batch([]) == []


def test_a_query_bank(client: Client, local: Retriever) -> None:
    bank = ["a square", "a triangle"]
    expected = local.search(QUERIES[0], query_bank=local.query_bank(bank))
    for given in (client.query_bank(bank), bank):
        found = client.search(QUERIES[0], query_bank=given)
        assert comparable(found) == comparable(expected)
    with pytest.raises(InvalidArgumentError, match="QueryBank"):
        client.search(QUERIES[0], query_bank=local.query_bank(bank))  # type: ignore[arg-type]


def test_searches_by_videos_and_images(client: Client, local: Retriever, videos_path: Path) -> None:
    clip = videos_path / "shapes" / "train" / "0000.mp4"
    expected = comparable(local.search_by_video(clip))
    assert comparable(client.search_by_video(clip)) == expected
    assert comparable(client.search_by_video(str(clip))) == expected
    hit = client.search_by_video(clip, k=1)[0]
    for indexed in (hit, hit.id):
        assert client.search_by_video(indexed, k=1)[0].id == hit.id
    both = local.search("a circle", video=clip, video_weight=0.3)
    assert comparable(client.search("a circle", video=clip, video_weight=0.3)) == comparable(both)
    assert client.search("a circle", video=hit, video_weight=1.0)[0].id == hit.id
    picture = hit.thumbnail()
    expected = comparable(local.search_by_image(picture))
    assert comparable(client.search_by_image(picture)) == expected
    with pytest.raises(GalleryError, match="nor is there a local file"):
        client.search_by_video("no-such-video")
    with pytest.raises(VideoError):
        client.search_by_video(__file__)


def test_media_of_hits(client: Client, local: Retriever, tmp_path: Path) -> None:
    hit = client.search("numbers", where="split = 'none'", group="moment", k=1)[0]
    mine = local.search("numbers", where="split = 'none'", group="moment", k=1)[0]
    assert np.array_equal(hit.thumbnail(), mine.thumbnail())
    frames, times = hit.frames(max_frames=5)
    expected, expected_times = mine.frames(max_frames=5)
    assert np.array_equal(frames, expected)
    assert times == pytest.approx(expected_times)
    for name, mode in (("a.mp4", "exact"), ("b.mkv", "copy"), ("c.webm", "exact")):
        there = hit.cut(tmp_path / name, mode=mode)  # type: ignore[arg-type]
        here = mine.cut(tmp_path / f"local-{name}", mode=mode)  # type: ignore[arg-type]
        assert (there.start_s, there.end_s) == pytest.approx((here.start_s, here.end_s), abs=2e-3)
        assert (there.has_sound, there.mode) == (here.has_sound, here.mode)
        assert there.path.stat().st_size == pytest.approx(here.path.stat().st_size, rel=0.05)
    copied = pickle.loads(pickle.dumps(hit))
    assert copied == hit
    with pytest.raises(ClosedError, match="search again"):
        copied.thumbnail()


def test_explanations_are_the_same(client: Client, local: Retriever, tmp_path: Path) -> None:
    hits = client.search(QUERIES[0], k=2)
    mine = local.search(QUERIES[0], k=2)
    one, other = client.explain(QUERIES[0], hits[0]), local.explain(QUERIES[0], mine[0])
    assert {**one.to_dict(), "path": None} == {**other.to_dict(), "path": None}
    assert np.array_equal(one.word_frame_similarity, other.word_frame_similarity)
    two = client.explain(QUERIES[0], hits[0], hits[1].id)
    assert str(two) == str(local.explain(QUERIES[0], mine[0], mine[1].id))
    for each in (one, two):
        client.plot_explanation(each, tmp_path / "why.png")
        assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")
    object.__setattr__(one, "score", one.score + 1)
    (tmp_path / "why.png").unlink()
    with pytest.raises(ServiceError, match="scores have changed"):
        client.plot_explanation(one, tmp_path / "why.png")
    assert not (tmp_path / "why.png").exists()


def test_embeddings_and_scores_are_the_same(
    client: Client, local: Retriever, videos_path: Path
) -> None:
    clips = [videos_path / "shapes" / "train" / f"000{n}.mp4" for n in (0, 1)]
    texts, videos = client.encode_texts(QUERIES), client.encode_videos(clips)
    for found, expected in (
        (texts, local.encode_texts(QUERIES)),
        (videos, local.encode_videos(clips)),
    ):
        for name, array in vars(expected).items():
            assert getattr(found, name).dtype == array.dtype
            np.testing.assert_allclose(getattr(found, name), array, atol=1e-5)
    scores, expected_scores = client.score(texts, videos), local.score(texts, videos)
    np.testing.assert_allclose(scores.logits, expected_scores.logits, atol=1e-4)
    assert list(scores.grains) == list(expected_scores.grains)
    ids = [video.id for video in client.all_videos("split = 'train'")][:2]
    assert client.score(QUERIES, ids).logits.shape == (3, 2)


def test_the_gallery_is_described(client: Client, local: Retriever) -> None:
    stats = client.stats()
    assert (stats.num_videos, stats.num_segments) == (7, local.gallery.stats().num_segments)
    page = client.list_videos(limit=3, offset=2)
    assert (len(page.videos), page.total, page.next_offset) == (3, 7, 5)
    videos = client.all_videos()
    assert len(videos) == 7
    for name in (videos[0].id, videos[0].handle):
        found = client.get_video(name)
        assert found.handle == videos[0].handle
        assert found.segments
    client.refresh()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda client: client.search(" "), InvalidArgumentError),
        (lambda client: client.search("a", where="nonsense ="), InvalidArgumentError),
        (lambda client: client.search("a", k=0), InvalidArgumentError),
        (lambda client: client.search("a", k=10**6), InvalidArgumentError),
        (lambda client: client.search("a", nonsense=1), InvalidArgumentError),
        (lambda client: client.search("x" * 20_000), InvalidArgumentError),
        (lambda client: client.get_video("a/../b"), GalleryError),
        (lambda client: client.get_video(""), InvalidArgumentError),
        (lambda client: client.explain("a", "no-such-id"), GalleryError),
        (lambda client: client.remove(), InvalidArgumentError),
        (lambda client: client.remove("no-such-id"), GalleryError),
        (lambda client: client.add("/etc/passwd"), ServiceError),
        (lambda client: client.job("no-such-job"), ServiceError),
        (lambda client: client.encode_videos([]), InvalidArgumentError),
    ],
)
def test_errors_are_those_of_a_retriever(
    client: Client, call: Callable[[Client], object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        call(client)


def test_videos_are_uploaded_awaited_found_and_removed(
    open_live: OpenLive, videos_path: Path
) -> None:
    address = open_live(token="a-token-of-16-characters", roots=(videos_path,))
    with pytest.raises(ServiceAccessError), Client(address, token="another-one") as stranger:
        stranger.stats()
    clip = videos_path / "shapes" / "val"
    files = sorted(clip.glob("*.mp4"))
    with Client(address, token="a-token-of-16-characters") as client:
        assert client.remove(where="split = 'val'") == 1
        seen: list[Progress] = []
        job = client.upload(files, metadata={"caption": "new", "split": "val"}, segment="8s")
        report = job.wait(60, progress=seen.append)
        assert len(report.indexed) == 1, report
        assert job.state == "done"
        assert job.videos
        assert seen[-1].done == 1
        hit = client.search("new", where="caption = 'new'")[0]
        assert hit.thumbnail().ndim == 3
        states = list(client.job(job.id).events())
        assert states[-1].state == "done"
        assert [each.id for each in client.jobs()] == [job.id]
        again = client.add(videos_path / "shapes" / "test", segment="8s").wait(60)
        assert len(again.unchanged) + len(again.duplicates) + len(again.indexed) == 1, again
        assert client.remove(hit) == 1
        assert len(client.search("new", where="caption = 'new'")) == 0


def test_coroutines_give_the_same(address: str, client: Client, tmp_path: Path) -> None:
    async def go() -> None:
        async with AsyncClient(address) as made:
            found = await asyncio.gather(*(made.search(text) for text in QUERIES * 4))
            expected = [comparable(client.search(text)) for text in QUERIES * 4]
            assert [comparable(each) for each in found] == expected
            hit = found[0][0]
            assert np.array_equal(
                await made.thumbnail(hit), client.search(QUERIES[0])[0].thumbnail()
            )
            frames, times = await made.frames(hit, max_frames=3)
            assert len(frames) == len(times) <= 3
            cut = await made.cut(hit, tmp_path / "a.mp4")
            assert cut.path.stat().st_size > 0
            explained = await made.explain(QUERIES[0], hit)
            assert explained.video_id == hit.id
            await made.plot_explanation(explained, tmp_path / "why.png")
            assert len(await made.all_videos()) == 7

    asyncio.run(go())


def test_in_one_process(settings_of: Callable[..., ServiceSettings], client: Client) -> None:
    """The application answers without a socket, as in tests of those who use the client."""
    app = create_app(settings_of())

    async def go() -> None:
        async with app.router.lifespan_context(app):
            transport = httpx2.ASGITransport(app)
            async with AsyncClient("http://127.0.0.1:8000", transport=transport) as made:
                found = await made.search(QUERIES[0])
                assert [hit.score for hit in found] == pytest.approx(
                    [hit.score for hit in client.search(QUERIES[0])], abs=1e-3
                )
                assert all(hit.path is None for hit in found)

    asyncio.run(go())
