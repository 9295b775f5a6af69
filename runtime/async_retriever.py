"""A retriever for servers that run on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.retriever import Retriever

P = ParamSpec("P")
T = TypeVar("T")


class AsyncRetriever:
    """The methods of a :class:`Retriever` as coroutines, on threads of its own.

    >>> async with AsyncRetriever(Retriever("xclip-bundle", "xclip-gallery")) as retriever:
    ...     hits = await retriever.search("a dog on a leash", k=5)      # doctest: +SKIP

    Each takes what the method of the same name takes, and raises what it raises. NumPy, ONNX
    Runtime and LanceDB let other threads run while they compute. A coroutine that is cancelled
    stops waiting; what it started is finished.
    """

    def __init__(self, retriever: Retriever, *, max_concurrency: int = 4) -> None:
        """``max_concurrency``: how many calls may be under way; others wait their turn."""
        if max_concurrency < 1:
            raise InvalidArgumentError(f"max_concurrency is {max_concurrency}: expected at least 1")
        self.retriever = retriever
        self._threads = ThreadPoolExecutor(max_concurrency, thread_name_prefix="retriever")
        run = self._run
        self.search = run(retriever.search)
        self.search_batch = run(retriever.search_batch)
        self.search_by_video = run(retriever.search_by_video)
        self.search_by_image = run(retriever.search_by_image)
        self.explain = run(retriever.explain)
        self.add = run(retriever.add)
        self.add_features = run(retriever.add_features)
        self.remove = run(retriever.remove)
        self.refresh = run(retriever.refresh)
        self.warm_up = run(retriever.warm_up)
        self.encode_texts = run(retriever.encode_texts)
        self.query_bank = run(retriever.query_bank)

    def __len__(self) -> int:
        """Number of videos in the gallery."""
        return len(self.retriever)

    async def close(self) -> None:
        """Wait for calls that are under way, then free the inference sessions."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._threads.shutdown)
        await loop.run_in_executor(None, self.retriever.close)

    async def __aenter__(self) -> AsyncRetriever:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def _run(self, method: Callable[P, T]) -> Callable[P, asyncio.Future[T]]:
        def call(*args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
            loop = asyncio.get_running_loop()
            return loop.run_in_executor(self._threads, partial(method, *args, **kwargs))

        call.__doc__ = method.__doc__
        return call
