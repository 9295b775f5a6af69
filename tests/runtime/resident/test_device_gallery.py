"""A gallery on the stand-in device holds what its snapshots hold, whatever happens between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gallery_samples import DIM, FRAMES, NOTHING_IN_MEMORY, lance_store, rows_of, sample
from held_galleries import assert_holds

from stand_in_device import Device
from xclip_deploy.errors import ClosedError
from xclip_deploy.runtime.gallery import GalleryStore
from xclip_deploy.runtime.gallery.memory_store import MemoryStore
from xclip_deploy.runtime.resident import gallery as gallery_module
from xclip_deploy.runtime.resident.gallery import DeviceGallery

SLOT_BYTES = 2 * DIM + 2 * FRAMES * DIM + 4


def test_a_gallery_is_uploaded_once(
    device: Device, make: Callable[..., DeviceGallery], store: GalleryStore
) -> None:
    store.put(*sample([f"v{n}" for n in range(50)]), replace=False)
    gallery, snapshot = make(), store.snapshot()
    assert not gallery.has(snapshot)
    for _ in range(3):
        assert gallery.hold(snapshot)
        assert_holds(device, gallery, snapshot)
    assert device.bytes_to_device == 50 * SLOT_BYTES
    gallery.close()
    assert device.used_bytes == 0
    with pytest.raises(ClosedError, match="open another"):
        gallery.hold(snapshot)


def test_changes_alone_are_uploaded(
    device: Device, make: Callable[..., DeviceGallery], store: GalleryStore
) -> None:
    names = [f"v{n}" for n in range(50)]
    store.put(*sample(names), replace=False)
    gallery, first = make(), store.snapshot()
    gallery.hold(first)
    uploaded = device.bytes_to_device
    store.remove(names[:7])
    store.put(*sample(["new", "v20"], seed=1), replace=True)
    store.update(store.snapshot().videos(rows_of(store.snapshot(), ["v30"])))
    second = store.snapshot()
    assert gallery.hold(second)
    ranks = 4 * 52
    assert device.bytes_to_device - uploaded <= 2 * SLOT_BYTES + ranks
    assert_holds(device, gallery, second)
    assert_holds(device, gallery, first)  # whoever began to search in it goes on
    del first
    store.put(*sample(["newer"], seed=2), replace=False)
    third = store.snapshot()
    assert gallery.hold(third)
    with gallery.lease(third) as resident:
        assert resident is not None
        assert resident.view.num_slots <= 52  # the removed videos' slots are taken again
    assert_holds(device, gallery, third)
    assert_holds(device, gallery, second)


def test_added_rows_are_uploaded_as_they_are_added(
    device: Device, make: Callable[..., DeviceGallery], store: GalleryStore
) -> None:
    """A snapshot that has them finds them, and nothing is read from the store."""
    gallery = make()
    early = sample(["early"], seed=9)
    assert not gallery.add(store.put(*early, replace=False), early[1]), "nothing is resident yet"
    first = store.snapshot()
    gallery.hold(first)
    added = []
    for n in range(4):  # the gallery grows meanwhile
        part = sample([f"{n}-{m}" for m in range(5)], seed=n)
        added.append((store.put(*part, replace=False), part[1]))
    twins = sample(["left", "right"], seed=8)  # equal features are two rows all the same
    twins[1].video_features[1] = twins[1].video_features[0]
    twins[1].frame_features[1] = twins[1].frame_features[0]
    twins[1].num_frames[1] = twins[1].num_frames[0]
    videos = [
        video.model_copy(update={"frame_times_s": twins[0][0].frame_times_s}) for video in twins[0]
    ]
    added.append((store.put(videos, twins[1], replace=False), twins[1]))
    for keys, features in added:
        uploaded = device.bytes_to_device
        assert gallery.add(keys, features)
        assert device.bytes_to_device - uploaded == len(keys) * SLOT_BYTES
    uploaded = device.bytes_to_device
    second = store.snapshot()
    assert gallery.hold(second)
    assert device.bytes_to_device == uploaded
    for snapshot in (first, second):
        assert_holds(device, gallery, snapshot)


def test_added_rows_take_no_slot_of_the_last_snapshot(
    device: Device, make: Callable[..., DeviceGallery], store: GalleryStore
) -> None:
    """Nobody holds that snapshot any more, but the next one has its rows too."""
    store.put(*sample([f"v{n}" for n in range(30)]), replace=False)
    gallery = make()
    gallery.hold(store.snapshot())
    part = sample(["a", "b"], seed=1)
    gallery.add(store.put(*part, replace=False), part[1])
    assert device.bytes_to_device == 32 * SLOT_BYTES
    gallery.hold(store.snapshot())
    assert device.bytes_to_device == 32 * SLOT_BYTES
    assert_holds(device, gallery, store.snapshot())


def test_added_rows_await_their_snapshot(
    device: Device, make: Callable[..., DeviceGallery], store: GalleryStore
) -> None:
    """A snapshot from before them may come first. What was removed meanwhile is overwritten."""
    store.put(*sample(["a", "b"]), replace=False)
    gallery = make()
    gallery.hold(store.snapshot())
    store.remove(["a"])
    older = store.snapshot()
    wanted, gone = sample(["wanted"], seed=1), sample(["gone"], seed=2)
    gallery.add(store.put(*wanted, replace=False), wanted[1])
    gallery.add(store.put(*gone, replace=False), gone[1])
    store.remove(["gone"])
    gallery.hold(older)
    newer = store.snapshot()
    other = sample(["other"], seed=3)
    gallery.add(store.put(*other, replace=False), other[1])
    uploaded = device.bytes_to_device
    gallery.hold(newer)
    assert device.bytes_to_device - uploaded <= 4 * 5  # ranks
    newest = store.snapshot()
    gallery.hold(newest)
    assert device.bytes_to_device - uploaded <= 2 * 4 * 5
    for snapshot in (older, newer, newest):
        assert_holds(device, gallery, snapshot)
    for n in range(3):
        part = sample([f"n{n}"], seed=4 + n)
        gallery.add(store.put(*part, replace=False), part[1])
        gallery.hold(store.snapshot())
    with gallery.lease(store.snapshot()) as resident:
        assert resident is not None
        # b, wanted, other, and n0 to n2, one of them in the slot of what was removed.
        assert resident.view.num_slots == 6
    assert_holds(device, gallery, store.snapshot())


def test_added_rows_move_as_others_do(
    device: Device,
    make: Callable[..., DeviceGallery],
    store: GalleryStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Closing up keeps what awaits its snapshot."""
    monkeypatch.setattr(gallery_module, "LEAST_TOMBSTONES", 3)
    names = [f"v{n}" for n in range(40)]
    store.put(*sample(names), replace=False)
    gallery = make()
    gallery.hold(store.snapshot())
    store.remove(names[5:25])
    older = store.snapshot()
    part = sample([f"n{n}" for n in range(30)], seed=1)
    gallery.add(store.put(*part, replace=False), part[1])
    gallery.hold(older)
    uploaded = device.bytes_to_device
    gallery.hold(store.snapshot())
    assert device.bytes_to_device - uploaded <= 2 * 4 * 70  # ranks
    assert_holds(device, gallery, older)
    assert_holds(device, gallery, store.snapshot())


def test_added_rows_that_do_not_fit_are_left_out(
    device: Device, make: Callable[..., DeviceGallery], store: GalleryStore
) -> None:
    store.put(*sample(["a", "b"]), replace=False)
    gallery = make(4 * SLOT_BYTES)
    snapshot = store.snapshot()
    gallery.hold(snapshot)
    part = sample([f"n{n}" for n in range(9)], seed=1)
    uploaded = device.bytes_to_device
    assert not gallery.add(store.put(*part, replace=False), part[1])
    assert device.bytes_to_device == uploaded
    assert_holds(device, gallery, snapshot)
    gallery.close()
    assert not gallery.add(np.zeros((9, 2), np.uint64), part[1])


def test_what_was_removed_and_comes_back_is_not_uploaded_again(
    device: Device, make: Callable[..., DeviceGallery], tmp_path: Path
) -> None:
    store = lance_store(tmp_path / "gallery", NOTHING_IN_MEMORY)
    store.put(*sample(["a", "b", "c"]), replace=False)
    gallery = make()
    gallery.hold(store.snapshot())
    store.optimize(lambda _what: None)  # all rows move
    store.remove(["a"])
    gallery.hold(store.snapshot())
    uploaded = device.bytes_to_device
    videos, features = sample(["a", "b", "c"])
    store.put(videos[:1], features[:1], replace=False)
    gallery.hold(store.snapshot())
    assert device.bytes_to_device - uploaded <= 4 * 4  # ranks
    assert_holds(device, gallery, store.snapshot())


def test_many_tombstones_are_closed_up(
    device: Device,
    make: Callable[..., DeviceGallery],
    store: GalleryStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gallery_module, "LEAST_TOMBSTONES", 3)
    names = [f"v{n}" for n in range(40)]
    store.put(*sample(names), replace=False)
    gallery = make()
    gallery.hold(store.snapshot())
    uploaded = device.bytes_to_device
    store.remove(names[5:25])
    snapshot = store.snapshot()
    gallery.hold(snapshot)
    with gallery.lease(snapshot) as resident:
        assert resident is not None
        assert resident.view.num_slots == 20
        assert resident.view.mask is None
    assert_holds(device, gallery, snapshot)
    assert device.bytes_to_device - uploaded <= 2 * 4 * 40  # ranks, before and after
    store.put(*sample(["x", "y"], seed=3), replace=False)
    gallery.hold(store.snapshot())
    assert_holds(device, gallery, store.snapshot())
    assert_holds(device, gallery, snapshot)


def test_growth_keeps_what_is_there(
    device: Device, make: Callable[..., DeviceGallery], store: GalleryStore
) -> None:
    gallery, kept = make(), []
    for n in range(6):
        store.put(*sample([f"{n}-{m}" for m in range(20)], seed=n), replace=False)
        kept.append(store.snapshot())
        gallery.hold(kept[-1])
    assert device.bytes_to_device == 120 * SLOT_BYTES
    for snapshot in kept:
        assert_holds(device, gallery, snapshot)


def test_a_gallery_beside_its_successor_makes_room(
    device: Device, make: Callable[..., DeviceGallery]
) -> None:
    """Within the bound there is room for one state alone: the newer one stays."""
    store = MemoryStore(DIM, FRAMES)
    store.put(*sample([f"a{n}" for n in range(40)]), replace=False)
    gallery = make(60 * SLOT_BYTES)
    first = store.snapshot()
    gallery.hold(first)
    store.remove([f"a{n}" for n in range(40)])
    store.put(*sample([f"b{n}" for n in range(50)], seed=1), replace=False)
    second = store.snapshot()
    assert gallery.hold(second)
    assert_holds(device, gallery, second)
    assert not gallery.hold(first)
    assert gallery.was_dropped(first)
    with gallery.lease(first) as resident:
        assert resident is None
    assert device.most_used_bytes <= 60 * SLOT_BYTES


def test_frames_that_do_not_fit_stay_away(
    device: Device, make: Callable[..., DeviceGallery], store: GalleryStore
) -> None:
    store.put(*sample([f"v{n}" for n in range(50)]), replace=False)
    gallery = make(49 * SLOT_BYTES)
    assert gallery.hold(store.snapshot())
    assert not gallery.holds_frames
    with gallery.lease(store.snapshot()) as resident:
        assert resident is not None
        assert resident.arrays.frame_features is None
    assert_holds(device, gallery, store.snapshot())
    assert device.bytes_to_device == 50 * 2 * DIM
