"""Requests that share runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from xclip_deploy.service.batching import Batcher
from xclip_deploy.service.errors import Refusal

Run = Callable[[Sequence[int]], Sequence[int | BaseException]]


class Recorder:
    """Doubles numbers and records its runs; the first ``held`` runs wait for ``release``."""

    def __init__(self, held: int = 0) -> None:
        self.runs: list[list[int]] = []
        self.release = threading.Event()
        self._held = held

    def __call__(self, items: Sequence[int]) -> list[int | BaseException]:
        self.runs.append(list(items))
        if len(self.runs) <= self._held:
            assert self.release.wait(10)
        return [ValueError(str(item)) if item < 0 else 2 * item for item in items]


def batcher(run: Run, **options: Any) -> Batcher[int, int]:
    values = {"lanes": 1, "max_batch": 4, "wait_s": 0.05, "max_waiting": 8, **options}
    return Batcher(run, **values)


def in_loop(run: Run, work: Callable[[Batcher[int, int]], Any], **options: Any) -> Any:
    async def main() -> Any:
        tested = batcher(run, **options)
        try:
            return await work(tested)
        finally:
            tested.close()

    return asyncio.run(main())


def test_items_that_come_together_share_a_run() -> None:
    run = Recorder()

    async def work(tested: Batcher[int, int]) -> list[int]:
        return await asyncio.gather(*(tested.submit(n) for n in range(3)))

    assert in_loop(run, work) == [0, 2, 4]
    assert run.runs == [[0, 1, 2]]


def test_a_full_batch_does_not_wait() -> None:
    run = Recorder()

    async def work(tested: Batcher[int, int]) -> list[int]:
        return await asyncio.wait_for(asyncio.gather(*(tested.submit(n) for n in range(4))), 5)

    assert in_loop(run, work, wait_s=3600) == [0, 2, 4, 6]
    assert run.runs == [[0, 1, 2, 3]]


def test_one_item_waits_no_longer_than_allowed() -> None:
    run = Recorder()

    async def work(tested: Batcher[int, int]) -> float:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        assert await tested.submit(21) == 42
        return loop.time() - began_s

    assert in_loop(run, work, wait_s=0.05) >= 0.045


def test_items_gather_while_a_run_keeps_the_thread() -> None:
    run = Recorder(held=1)

    async def work(tested: Batcher[int, int]) -> list[int]:
        first = asyncio.create_task(tested.submit(0))
        while not run.runs:
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(tested.submit(n)) for n in range(1, 7)]
        await asyncio.sleep(0.02)
        run.release.set()
        return await asyncio.gather(first, *rest)

    assert in_loop(run, work, wait_s=0) == [0, 2, 4, 6, 8, 10, 12]
    assert run.runs == [[0], [1, 2, 3, 4], [5, 6]]


def test_two_threads_run_side_by_side() -> None:
    both = threading.Barrier(2, timeout=10)

    def run(items: Sequence[int]) -> list[int]:
        both.wait()
        return list(items)

    async def work(tested: Batcher[int, int]) -> list[int]:
        return list(await asyncio.gather(tested.submit(1), tested.submit(2)))

    assert in_loop(run, work, lanes=2, max_batch=1) == [1, 2]


def test_a_bad_item_fails_alone() -> None:
    async def work(tested: Batcher[int, int]) -> list[Any]:
        asked = [tested.submit(n) for n in (1, -2, 3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    good, bad, other = in_loop(Recorder(), work)
    assert (good, other) == (2, 6)
    assert isinstance(bad, ValueError)


def test_an_error_of_the_run_reaches_every_item() -> None:
    def run(items: Sequence[int]) -> list[int]:
        raise RuntimeError("broken")

    async def work(tested: Batcher[int, int]) -> list[Any]:
        first = await asyncio.gather(*(tested.submit(n) for n in range(2)), return_exceptions=True)
        with pytest.raises(RuntimeError, match="broken"):  # the thread is free again
            await tested.submit(5)
        return first

    assert [str(error) for error in in_loop(run, work)] == ["broken", "broken"]


def test_too_many_are_refused_and_the_others_answered() -> None:
    run = Recorder(held=1)

    async def work(tested: Batcher[int, int]) -> list[Any]:
        first = asyncio.create_task(tested.submit(0))
        while not run.runs:
            await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(tested.submit(n)) for n in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as refused:
            await tested.submit(3)
        assert (refused.value.status, refused.value.retry_after_s) == (429, 1.0)
        with pytest.raises(Refusal):
            await tested.submit_all([3, 4])
        run.release.set()
        return await asyncio.gather(first, *waiting)

    assert in_loop(run, work, max_waiting=2, wait_s=0) == [0, 2, 4]


def test_a_large_batch_is_admitted_where_nothing_waits() -> None:
    async def work(tested: Batcher[int, int]) -> list[int]:
        return await tested.submit_all(list(range(10)))

    run = Recorder()
    assert in_loop(run, work, max_waiting=2) == list(range(0, 20, 2))
    assert [len(items) for items in run.runs] == [4, 4, 2]


def test_an_item_whose_client_went_away_is_not_run() -> None:
    run = Recorder(held=1)
    changes: list[int] = []

    async def work(tested: Batcher[int, int]) -> int:
        first = asyncio.create_task(tested.submit(0))
        while not run.runs:
            await asyncio.sleep(0.001)
        gone = asyncio.create_task(tested.submit(1))
        kept = asyncio.create_task(tested.submit(2))
        await asyncio.sleep(0)
        gone.cancel()
        run.release.set()
        await first
        return await kept

    assert in_loop(run, work, wait_s=0, on_change=changes.append) == 4
    assert run.runs == [[0], [2]]
    assert changes[-1] == 0
    assert max(changes) == 2


def test_free_threads_share_what_waits() -> None:
    run = Recorder()

    async def work(tested: Batcher[int, int]) -> list[int]:
        return await tested.submit_all(list(range(12)))

    assert in_loop(run, work, lanes=2, max_batch=12) == list(range(0, 24, 2))
    assert sorted(run.runs) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
