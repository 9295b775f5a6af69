"""Galleries on a device that is full, fails, or changes while threads read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gallery_samples import DIM, FRAMES, sample
from held_galleries import assert_holds

from stand_in_device import Device
from xclip_deploy.errors import ClosedError, DeviceMemoryError, SessionError
from xclip_deploy.runtime.gallery import GalleryStore, Snapshot
from xclip_deploy.runtime.gallery.memory_store import MemoryStore
from xclip_deploy.runtime.resident import gallery as gallery_module
from xclip_deploy.runtime.resident import reading
from xclip_deploy.runtime.resident.gallery import DeviceGallery


def test_a_refusal_names_what_is_needed_and_what_is_free(
    device: Device, make: Callable[..., DeviceGallery], store: GalleryStore
) -> None:
    store.put(*sample([f"v{n}" for n in range(50)]), replace=False)
    gallery = make(1000)
    with pytest.raises(DeviceMemoryError) as caught:
        gallery.hold(store.snapshot())
    for part in ("50 rows", "0.0 MB", "gallery_memory_bytes", "resident_gallery=False"):
        assert part in str(caught.value)
    assert device.used_bytes == 0
    full = make()
    device.total_bytes = 1500  # another process fills the GPU
    with pytest.raises(DeviceMemoryError, match="80% of what is free"):
        full.hold(store.snapshot())
    device.total_bytes = 1 << 30
    assert full.hold(store.snapshot())
    assert_holds(device, full, store.snapshot())


def test_another_process_takes_the_memory_meanwhile(
    device: Device, make: Callable[..., DeviceGallery], store: GalleryStore
) -> None:
    """Free memory is a guess: allocations fail all the same, and the next smaller way is taken."""
    store.put(*sample([f"v{n}" for n in range(50)]), replace=False)
    gallery = make()
    for _ in range(2):  # with room for growth, and without
        device.fail("cudaMalloc", "cudaErrorMemoryAllocation")
    assert gallery.hold(store.snapshot())
    assert not gallery.holds_frames
    assert_holds(device, gallery, store.snapshot())


USED = (
    "cudaMalloc",
    "cudaHostAlloc",
    "cudaStreamCreateWithFlags",
    "cudaMemcpyAsync",
    "cudaStreamSynchronize",
    "cudaMemGetInfo",
    "cudaFree",
    "cudaFreeHost",
    "cudaStreamDestroy",
    "cudaSetDevice",
)


@pytest.mark.parametrize("function", USED)
def test_a_failure_at_every_call_leaves_what_was_there(
    device: Device,
    make: Callable[..., DeviceGallery],
    function: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Upload, changes, growth and closing up: whichever call fails, snapshots are as they were."""
    monkeypatch.setattr(gallery_module, "LEAST_TOMBSTONES", 2)
    names = [f"v{n}" for n in range(12)]
    for after in range(60):
        store = MemoryStore(DIM, FRAMES)
        gallery = make()
        device.calls.clear()
        device.fail(function, "cudaErrorLaunchFailure", after)
        kept: list[Snapshot] = []
        num_failed = 0
        for step in range(4):
            if step == 2:
                store.remove(names[:8])
                kept.clear()
            else:
                store.put(*sample([f"{step}{n}" for n in names], seed=step), replace=False)
            if step == 0:
                store.put(*sample(names), replace=False)
            kept.append(store.snapshot())
            try:
                gallery.hold(kept[-1])
            except SessionError:
                num_failed += 1
                for snapshot in kept:
                    if gallery.has(snapshot):
                        assert_holds(device, gallery, snapshot)
                assert gallery.hold(kept[-1])
            assert_holds(device, gallery, kept[-1])
        has_failed = not device._faults[function]
        device._faults.clear()
        gallery.close()
        assert device.used_bytes == 0
        if not has_failed:
            assert after > 0
            return
        # What frees memory may fail unseen by the gallery, where something else failed before.
        assert num_failed <= 1
    pytest.fail("there were more calls than expected")


def test_threads_hold_and_read_while_the_gallery_changes(
    device: Device, make: Callable[..., DeviceGallery]
) -> None:
    store = MemoryStore(DIM, FRAMES)
    store.put(*sample([f"v{n}" for n in range(30)]), replace=False)
    gallery, is_done = make(), threading.Event()

    def read() -> int:
        count = 0
        while not is_done.is_set() or not count:
            snapshot = store.snapshot()
            assert gallery.hold(snapshot)
            assert_holds(device, gallery, snapshot)
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(read) for _ in range(3)]
        try:
            for n in range(25):
                store.put(*sample([f"n{n}-{m}" for m in range(4)], seed=n), replace=False)
                store.remove([f"v{n}"])
        finally:
            is_done.set()
        assert all(job.result() for job in jobs)


def test_closing_ends_an_upload(
    device: Device, make: Callable[..., DeviceGallery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READ_ROWS", 2)
    store = MemoryStore(DIM, FRAMES)
    store.put(*sample([f"v{n}" for n in range(30)]), replace=False)
    gallery = make()
    snapshot = store.snapshot()
    has_begun, may_go_on = threading.Event(), threading.Event()
    scan = snapshot.scan

    def slow(count: int) -> Any:
        for part in scan(count):
            has_begun.set()
            assert may_go_on.wait(10)
            yield part

    monkeypatch.setattr(snapshot, "scan", slow)
    with ThreadPoolExecutor(2) as pool:
        upload = pool.submit(gallery.hold, snapshot)
        assert has_begun.wait(10)
        assert not gallery.hold(snapshot, timeout_s=0.01)
        closing = pool.submit(gallery.close)
        while not gallery._is_closed:
            pass
        may_go_on.set()
        with pytest.raises(ClosedError):
            upload.result()
        closing.result()
    assert device.used_bytes == 0
