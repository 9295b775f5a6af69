"""Coroutines give what the methods give."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from xclip_deploy import AsyncRetriever, Bundle, GalleryVideo, Retriever, VideoFeatures
from xclip_deploy.errors import InvalidArgumentError


@pytest.fixture
def retriever(bundle: Bundle) -> Iterator[Retriever]:
    config = bundle.manifest.model
    rng = np.random.default_rng(3)
    frames = rng.standard_normal((5, config.max_frames, config.embed_dim))
    frames /= np.linalg.norm(frames, axis=-1, keepdims=True)
    videos = [GalleryVideo(id=f"v{n}", frame_times_s=(0.0,)) for n in range(5)]
    with Retriever(bundle, device="cpu") as made:
        made.add_features(videos, VideoFeatures(frames[:, 0], frames, np.ones(5, np.int32)))
        yield made


def test_many_at_once(retriever: Retriever) -> None:
    texts = [f"a man {n}" for n in range(12)]

    async def run() -> list[list[str]]:
        async with AsyncRetriever(retriever, max_concurrency=3) as served:
            assert len(served) == 5
            found = await asyncio.gather(*(served.search(text, k=5) for text in texts))
            await served.remove("v0")
            assert len(await served.search("a man")) == 4
            return [[hit.id for hit in hits] for hits in found]

    expected = [[hit.id for hit in hits] for hits in retriever.search_batch(texts, k=5)]
    assert asyncio.run(run()) == expected


def test_the_loop_goes_on_meanwhile(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits for what the loop does later would never end if it held the loop."""
    released = threading.Event()
    monkeypatch.setattr(retriever, "refresh", lambda: released.wait(30))

    async def run() -> bool:
        served = AsyncRetriever(retriever)
        waiting = served.refresh()
        await asyncio.sleep(0)
        released.set()
        result = await waiting
        await served.close()
        return bool(result)

    assert asyncio.run(run())


def test_errors_come_through(retriever: Retriever) -> None:
    async def run() -> None:
        async with AsyncRetriever(retriever) as served:
            with pytest.raises(InvalidArgumentError, match="holds no word"):
                await served.search(" ")

    asyncio.run(run())
    with pytest.raises(InvalidArgumentError, match="max_concurrency is 0"):
        AsyncRetriever(retriever, max_concurrency=0)
