"""Coroutines give what the methods give."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xclip_deploy import (
    AsyncRetriever,
    Bundle,
    GalleryVideo,
    Retriever,
    ShardedRetriever,
    VideoFeatures,
)
from xclip_deploy.errors import ClosedError, InvalidArgumentError


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
    seen: list[bool] = []
    monkeypatch.setattr(retriever, "refresh", lambda: seen.append(released.wait(30)))

    async def run() -> None:
        async with AsyncRetriever(retriever) as served:
            waiting = asyncio.create_task(served.refresh())
            await asyncio.sleep(0)
            released.set()
            await waiting

    asyncio.run(run())
    assert seen == [True]


def test_errors_come_through(retriever: Retriever) -> None:
    async def run() -> None:
        async with AsyncRetriever(retriever) as served:
            with pytest.raises(InvalidArgumentError, match="holds no word"):
                await served.search(" ")

    asyncio.run(run())
    with pytest.raises(InvalidArgumentError, match="max_concurrency is 0"):
        AsyncRetriever(retriever, max_concurrency=0)


# The same as a Retriever


def public_methods(kind: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_method_is_there_with_the_same_arguments() -> None:
    expected, found = public_methods(Retriever), public_methods(AsyncRetriever)
    assert set(found) == set(expected)
    assert len(found) > 15
    for name, method in found.items():
        assert inspect.iscoroutinefunction(method), name
        assert inspect.signature(method) == inspect.signature(expected[name]), name
        assert f":meth:`Retriever.{name}`" in (method.__doc__ or "") or name == "close"


WRITING = {"add", "add_features", "estimate", "remove", "save"}


def test_a_gallery_in_shards_has_the_methods_that_do_not_write() -> None:
    expected, found = public_methods(ShardedRetriever), public_methods(AsyncRetriever)
    assert set(found) - WRITING == set(expected) - {"states"}
    for name in set(found) - WRITING:
        assert inspect.signature(found[name]) == inspect.signature(expected[name]), name


def test_the_constructors_take_the_same() -> None:
    expected = dict(inspect.signature(Retriever).parameters)
    found = dict(inspect.signature(AsyncRetriever).parameters)
    assert found.pop("max_concurrency").default == 4
    assert list(found) == list(expected)
    assert {name: found[name].default for name in found} == {
        name: expected[name].default for name in expected
    }


def test_every_method_calls_the_one_of_its_name(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every argument in its place: what is passed is what arrives."""
    calls: list[tuple[str, dict[str, Any]]] = []

    async def run() -> None:
        served = AsyncRetriever(retriever)
        for name, method in public_methods(Retriever).items():
            if name == "close":
                continue
            signature = inspect.signature(method)
            given = {parameter: object() for parameter in list(signature.parameters)[1:]}

            def note(*args: Any, name: str = name, **options: Any) -> str:
                bound = inspect.signature(public_methods(Retriever)[name]).bind(
                    None, *args, **options
                )
                calls.append((name, dict(list(bound.arguments.items())[1:])))
                return name

            monkeypatch.setattr(retriever, name, note)
            result = await getattr(served, name)(**given)
            assert result in (name, None)
            assert calls.pop() == (name, given)

    asyncio.run(run())


def test_a_long_addition_holds_no_search_up(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three additions wait, and one thread is enough for searches to go on."""
    release = threading.Event()
    monkeypatch.setattr(retriever, "add", lambda *_args, **_options: release.wait(60))

    async def run() -> None:
        async with AsyncRetriever(retriever, max_concurrency=1) as served:
            additions = [asyncio.create_task(served.add("videos")) for _ in range(3)]
            for _ in range(5):
                found = await asyncio.wait_for(served.search("a man"), 30)
                assert len(found) == 5
            assert not any(task.done() for task in additions)
            release.set()
            assert all(await asyncio.gather(*additions))

    asyncio.run(run())


def test_from_a_bundle_and_a_gallery(retriever: Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "gallery")
    path = str(retriever.bundle.path)

    async def run() -> None:
        opened = AsyncRetriever(path, tmp_path / "gallery", device="cpu", max_concurrency=2)
        async with opened as served:
            found = await asyncio.create_task(served.search("a man", where="num_frames = 1"))
            assert len(found) == len(served) == 5
            assert served
        with pytest.raises(ClosedError):
            len(opened.retriever)

    asyncio.run(run())
    with pytest.raises(InvalidArgumentError, match="beside an opened one"):
        AsyncRetriever(retriever, device="cpu")


def test_closed_means_closed(retriever: Retriever) -> None:
    async def run() -> None:
        served = AsyncRetriever(retriever)
        assert repr(served) == f"<AsyncRetriever of {retriever!r}, 4 at a time>"
        await served.close()
        await served.close()
        assert repr(served).endswith(", closed>")
        with pytest.raises(ClosedError, match=r"this AsyncRetriever of .* is closed; open"):
            await served.search("a man")
        with pytest.raises(ClosedError):
            await served.add("videos")
        with pytest.raises(ClosedError):
            await served.__aenter__()

    asyncio.run(run())
    with pytest.raises(ClosedError, match="this Retriever of"):
        retriever.search("a man")


def test_pickling_is_refused(retriever: Retriever) -> None:
    served = AsyncRetriever(retriever)
    for duplicate in (pickle.dumps, copy.copy):
        with pytest.raises(InvalidArgumentError, match=r"open it in the worker: AsyncRetriever\("):
            duplicate(served)
