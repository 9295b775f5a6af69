"""The lock that captures of CUDA graphs take alone."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from stand_in_device import Device, install
from xclip_deploy.runtime.cuda.gate import CAPTURES, Gate
from xclip_deploy.runtime.cuda.runtime_api import Cuda, open_cuda


def test_readers_share_and_a_writer_is_alone() -> None:
    gate, order = Gate(), []

    def use(entry: AbstractContextManager[None], word: str) -> None:
        with entry:
            order.append(word)

    with ThreadPoolExecutor(2) as pool:
        with gate.shared():
            pool.submit(use, gate.shared(), "beside").result(30)
            writer = pool.submit(use, gate.alone(), "alone")
            while not gate.is_awaited:
                time.sleep(0.001)
            later = pool.submit(use, gate.shared(), "after the writer")
            # A finalizer may free memory here, while a writer waits for this very thread.
            use(gate.shared(), "inside once more")
        writer.result(30)
        later.result(30)
    assert order == ["beside", "inside once more", "alone", "after the writer"]


def test_a_thread_inside_is_not_let_wait_for_itself() -> None:
    gate = Gate()
    with gate.alone(), gate.shared():
        pass
    for entered in (gate.shared, gate.alone):
        with entered(), pytest.raises(RuntimeError, match="would wait for itself"), gate.alone():
            pass
    with gate.alone():  # it was left by all
        pass


@pytest.fixture
def cuda(device: Device, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    install(monkeypatch, device)
    return open_cuda()


def test_calls_that_would_end_a_capture_wait_for_it(cuda: Cuda) -> None:
    """Those of other threads; the thread that captures goes on."""
    stream = cuda.create_stream()

    def others() -> None:
        cuda.select()
        cuda.synchronize(stream)
        cuda.destroy_stream(cuda.create_stream())
        cuda.memory()
        cuda.free(cuda.allocate(8))

    with ThreadPoolExecutor(1) as pool:
        with CAPTURES.alone():
            cuda.synchronize(stream)
            waiting = pool.submit(others)
            time.sleep(0.05)
            assert not waiting.done()
        waiting.result(30)
    cuda.destroy_stream(stream)
