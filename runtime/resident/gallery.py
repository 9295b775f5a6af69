"""Features of a gallery in GPU memory: uploaded once, then followed change by change.

Every living snapshot that was uploaded has a view: the slot of each of its rows. A newer snapshot
finds most of its rows in slots already. Slots that no living snapshot uses are tombstones. New rows
take them first, and masks leave out the rest. Many tombstones are closed up by moving the last
slots into them. Rows that are added to the gallery come before a snapshot that has them; their
slots await it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet, ref

import numpy as np

from xclip_deploy.errors import ClosedError, DeviceMemoryError, SessionError
from xclip_deploy.runtime.arrays import AnyArray, BoolArray, Int64Array
from xclip_deploy.runtime.cuda.gate import Gate
from xclip_deploy.runtime.cuda.memory import DeviceArray, DeviceBuffer, DeviceMemory
from xclip_deploy.runtime.cuda.uploading import Uploader
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.gallery.store import FeatureKeys
from xclip_deploy.runtime.resident.layout import ArrayLayout, Layout, MemoryBound, room_text
from xclip_deploy.runtime.resident.reading import read_missing
from xclip_deploy.runtime.resident.scan import ScanArrays
from xclip_deploy.runtime.resident.slots import MISSING, SlotKeys, View, runs
from xclip_deploy.runtime.sessions.backend import close_all

TOMBSTONE_SHARE = 0.25
"""Share of the slots that may be tombstones before they are closed up."""
LEAST_TOMBSTONES = 1024
"""Tombstones that are never closed up: a scan passes over them in microseconds."""
_NO_SLOTS: Int64Array = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Resident:
    """A snapshot on the GPU. Valid while it is leased."""

    view: View
    arrays: ScanArrays
    holds_frames: bool
    """Whether all features of the model's grains are there; else ``video_features`` alone are."""


class DeviceGallery:
    """Slots in GPU memory, for every snapshot of one gallery. Safe to use from several threads."""

    def __init__(self, layout: Layout, memory: DeviceMemory, bound: MemoryBound) -> None:
        """Begin empty."""
        self._layout, self._memory, self._bound = layout, memory, bound
        self._changing = threading.Lock()
        """Held while slots are written and moved."""
        self._gate = Gate()
        """Entered by scans; closed while arrays or slots that they read are replaced."""
        self._views: WeakKeyDictionary[Snapshot, View] = WeakKeyDictionary()
        self._dropped: WeakSet[Snapshot] = WeakSet()
        self._ranks: list[tuple[ref[Snapshot], DeviceBuffer]] = []
        self._ranks_of: WeakKeyDictionary[Snapshot, DeviceArray] = WeakKeyDictionary()
        self._keys = SlotKeys()
        self._newest: View | None = None
        """View of the snapshot that came last, dead or alive; its slots may have changed."""
        self._buffers: dict[str, DeviceBuffer] = {}
        self._capacity = 0
        self._holds_frames = True
        self._awaiting = (_NO_SLOTS, _NO_SLOTS)
        """Slots of added rows that no snapshot has: those before and after the last one came."""
        self._is_closed = False

    @property
    def nbytes(self) -> int:
        """GPU memory held, room for growth included, bytes."""
        return self._memory.held_bytes

    @property
    def holds_frames(self) -> bool:
        """Whether the frames' features are resident too, where the model reads them."""
        return self._holds_frames

    def has(self, snapshot: Snapshot) -> bool:
        """Tell whether a snapshot can be leased."""
        return snapshot in self._views

    def was_dropped(self, snapshot: Snapshot) -> bool:
        """Tell whether a snapshot made room for a newer one."""
        return snapshot in self._dropped

    @property
    def is_empty(self) -> bool:
        """Whether nothing is resident."""
        return not len(self._keys)

    @contextmanager
    def lease(self, snapshot: Snapshot) -> Iterator[Resident | None]:
        """Keep a snapshot in place while it is scanned; None if it is not resident."""
        with self._gate.shared():
            view = self._views.get(snapshot)
            if view is None or not len(view.rows):
                yield None
                return
            count = view.num_slots
            arrays = {
                each.name: DeviceArray(
                    self._buffers[each.name].address, (count, *each.shape), each.dtype
                )
                for each in self._arrays()
            }
            yield Resident(
                view,
                ScanArrays(
                    arrays["video_features"],
                    arrays.get("frame_features"),
                    arrays.get("num_frames"),
                    self._ranks_of.get(snapshot),
                ),
                self._holds_frames,
            )

    def hold(self, snapshot: Snapshot, timeout_s: float = -1) -> bool:
        """Upload what a snapshot has and the GPU lacks.

        ``timeout_s``: how long to wait for another thread's upload; -1 for no limit. Returns
        whether the snapshot is resident: not after the time is up, nor for one that made room for
        a newer one. Raises DeviceMemoryError where not even ``video_features`` fit, GalleryError
        where they cannot be read, SessionError. After a failure, other snapshots are as before.
        """
        if not self._changing.acquire(timeout=timeout_s):
            return self.has(snapshot)
        try:
            self._check_open()
            if snapshot not in self._views and snapshot not in self._dropped:
                self._free_ranks()
                self._follow(snapshot)
            return snapshot in self._views
        finally:
            self._changing.release()

    def add(self, keys: FeatureKeys, features: VideoFeatures, timeout_s: float = -1) -> bool:
        """Upload rows that were added to the gallery, so that :meth:`hold` need not read them.

        ``keys``: key of each row's features [N, 2], as :meth:`Snapshot.feature_keys` will return.
        ``timeout_s``: as for :meth:`hold`. Returns whether they were uploaded: not where nothing is
        resident yet, nor where they do not fit beside the rest. Raises SessionError.
        """
        if not self._changing.acquire(timeout=timeout_s):
            return False
        try:
            if self._is_closed or self.is_empty:
                return False
            used = self._used()
            if self._newest is not None:  # its snapshot ended with the addition, and its rows stay
                used[self._newest.slots] = True
            target = self._keys.free(used, len(keys))
            if not self._grow(max(len(self._keys), int(target.max(initial=-1)) + 1)):
                return False
            self._keys.forget(target)
            with Uploader(self._memory.cuda) as uploader:
                self._write(uploader, vars(features), target)
                uploader.finish()
            self._keys.note(target, keys)
            earlier, later = self._awaiting
            self._awaiting = earlier, np.concatenate([later, target])
            return True
        finally:
            self._changing.release()

    def close(self) -> None:
        """Wait for scans, and free everything. Raises SessionError."""
        self._is_closed = True  # ends an upload of another thread
        with self._changing:
            failure = self._clear()
        if failure is not None:
            raise failure

    # -- following the gallery; the caller holds ``_changing`` ------------------------------

    def _follow(self, snapshot: Snapshot) -> None:
        rows, keys = snapshot.feature_keys()
        # Rows of LanceDB keep their numbers until the gallery is compacted.
        newest = self._newest
        slots = self._keys.find(keys, None if newest is None else newest.guess(rows))
        used = self._used()
        used[slots[slots != MISSING]] = True
        # A snapshot from before an addition may come after it. The one after that has the rows, or
        # they were removed meanwhile.
        self._awaiting = np.setdiff1d(self._awaiting[1], slots), _NO_SLOTS
        missing = np.flatnonzero(slots == MISSING)
        target = self._keys.free(used, len(missing))
        needed = max(len(self._keys), int(target.max(initial=-1)) + 1)
        if not self._grow(needed):
            self._begin_anew(len(rows))
            missing = target = np.arange(len(rows))
        try:
            slots[missing] = target
            self._keys.forget(target)
            self._upload(snapshot, rows, missing, slots)
            self._keys.note(target, keys[missing])
            view = View(rows, slots)
            self._rank(snapshot, view)
        except BaseException:
            if not len(self._keys):
                self._clear()  # half a gallery is useless, and others may need its memory
            raise
        self._views[snapshot] = self._newest = view
        self._close_up()

    def _upload(
        self, snapshot: Snapshot, rows: Rows, missing: Int64Array, slots: Int64Array
    ) -> None:
        """Read the features of ``rows[missing]``, and copy them to their slots."""
        done = 0
        with Uploader(self._memory.cuda) as uploader:
            with_frames = len(self._arrays()) > 1
            for part, features in read_missing(snapshot, rows, missing, with_frames=with_frames):
                self._check_open()
                self._write(uploader, features, slots[np.searchsorted(rows, part)])
                done += len(part)
            uploader.finish()
        if done != len(missing):
            raise SessionError(
                f"the gallery gave {done} of {len(missing)} videos for the GPU; its files were "
                "changed while it was open: open it again"
            )

    def _used(self) -> BoolArray:
        """Tell for each slot whether a snapshot uses it, or may soon."""
        used = self._keys.used(self._views.values())
        for slots in self._awaiting:
            used[slots] = True
        return used

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError("the resident gallery is closed; open another retriever")

    def _write(
        self, uploader: Uploader, features: Mapping[str, AnyArray], slots: Int64Array
    ) -> None:
        for each in self._arrays():
            values = features[each.name]
            address = self._buffers[each.name].address
            for run in runs(slots):
                at = address + int(slots[run.start]) * each.slot_bytes
                uploader.put(at, values[run], each.dtype)

    def _rank(self, snapshot: Snapshot, view: View) -> None:
        """Upload the rows' order as ranks, unless the slots are in that order."""
        if view.is_in_order:
            return
        each = self._layout.ranks
        buffer = DeviceBuffer(self._memory, "the gallery (ranks)")
        buffer.hold(max(1, view.num_slots) * each.slot_bytes)
        self._ranks.append((ref(snapshot), buffer))
        with Uploader(self._memory.cuda) as uploader:
            uploader.put(buffer.address, view.ranks, each.dtype)
            uploader.finish()
        self._ranks_of[snapshot] = DeviceArray(buffer.address, (view.num_slots,), each.dtype)

    def _free_ranks(self) -> None:
        """Free the ranks of snapshots that nobody uses any more."""
        gone = [buffer for snapshot, buffer in self._ranks if snapshot() is None]
        self._ranks = [pair for pair in self._ranks if pair[0]() is not None]
        failure = close_all(gone)
        if failure is not None:
            raise failure

    # -- memory ----------------------------------------------------------------------------

    def _arrays(self) -> Sequence[ArrayLayout]:
        return self._layout.arrays(with_frames=self._holds_frames)

    def _grow(self, num_slots: int) -> bool:
        """Make room for ``num_slots``, keeping what is there; return False if it does not fit."""
        if num_slots <= self._capacity:
            return True
        if not len(self._keys):
            return False  # there is nothing to keep
        size = sum(each.slot_bytes for each in self._arrays())
        buffers: dict[str, DeviceBuffer] = {}
        for capacity in _capacities(num_slots):
            if capacity * size > self._bound.left(self._memory):
                continue
            try:
                buffers = self._allocate(capacity, self._holds_frames)
                break
            except DeviceMemoryError:
                continue
        if not buffers:
            return False
        try:
            with Uploader(self._memory.cuda) as uploader:
                for each in self._arrays():
                    old, new = self._buffers[each.name], buffers[each.name]
                    uploader.copy(new.address, old.address, len(self._keys) * each.slot_bytes)
                uploader.finish()
        except BaseException:
            close_all(buffers.values())
            raise
        with self._gate.alone():
            old_buffers, self._buffers, self._capacity = self._buffers, buffers, capacity
        failure = close_all(old_buffers.values())
        if failure is not None:
            raise failure
        return True

    def _begin_anew(self, num_rows: int) -> None:
        """Free everything, and make room for ``num_rows`` alone, without frames if need be."""
        failure = self._clear()
        if failure is not None:
            raise failure
        last: DeviceMemoryError | None = None
        for with_frames in (True, False):
            size = sum(each.slot_bytes for each in self._layout.arrays(with_frames=with_frames))
            for capacity in _capacities(max(1, num_rows)):
                if capacity * size > self._bound.left(self._memory):
                    continue
                try:
                    self._buffers = self._allocate(capacity, with_frames)
                except DeviceMemoryError as error:
                    last = error
                    continue
                self._capacity, self._holds_frames = capacity, with_frames
                return
        raise DeviceMemoryError(
            room_text(self._layout, num_rows, self._bound, self._memory)
        ) from last

    def _allocate(self, capacity: int, with_frames: bool) -> dict[str, DeviceBuffer]:
        buffers: dict[str, DeviceBuffer] = {}
        try:
            for each in self._layout.arrays(with_frames=with_frames):
                buffers[each.name] = DeviceBuffer(self._memory, f"the gallery ({each.name})")
                buffers[each.name].hold(capacity * each.slot_bytes)
        except BaseException:
            close_all(buffers.values())
            raise
        return buffers

    def _close_up(self) -> None:
        """Move the last slots into tombstones if these are many."""
        used = self._used()
        count, num_used = len(used), int(used.sum())
        if count - num_used <= max(LEAST_TOMBSTONES, TOMBSTONE_SHARE * count):
            return
        holes = np.flatnonzero(~used[:num_used])
        last = num_used + np.flatnonzero(used[num_used:])
        self._keys.forget(holes)
        with Uploader(self._memory.cuda) as uploader:
            for each in self._arrays():
                address = self._buffers[each.name].address
                for source, target in zip(last.tolist(), holes.tolist(), strict=True):
                    to, origin = (address + slot * each.slot_bytes for slot in (target, source))
                    uploader.copy(to, origin, each.slot_bytes)
            uploader.finish()
        now = np.arange(count)
        now[last] = holes
        with self._gate.alone():
            self._keys.move(last, holes)
            self._keys.cut(num_used)
            self._awaiting = now[self._awaiting[0]], now[self._awaiting[1]]
            moved = {
                snapshot: View(view.rows, now[view.slots]) for snapshot, view in self._views.items()
            }
            self._views.clear()
            self._newest = None
            self._ranks_of.clear()
            failure = close_all(buffer for _, buffer in self._ranks)
            self._ranks.clear()
            if failure is not None:
                raise failure
            for snapshot, view in moved.items():
                self._rank(snapshot, view)
                self._views[snapshot] = self._newest = view

    def _clear(self) -> SessionError | None:
        """Free all memory, and forget all snapshots; return the first failure."""
        with self._gate.alone():
            for snapshot in list(self._views):
                self._dropped.add(snapshot)
            self._views.clear()
            self._ranks_of.clear()
            self._keys, self._newest = SlotKeys(), None
            self._awaiting = (_NO_SLOTS, _NO_SLOTS)
            buffers = [*self._buffers.values(), *(buffer for _, buffer in self._ranks)]
            self._buffers, self._capacity, self._holds_frames = {}, 0, True
            self._ranks.clear()
            return close_all(buffers)


def _capacities(num_slots: int) -> tuple[int, int]:
    """Return the slots to allocate: with room for growth or, where that does not fit, without."""
    return num_slots + num_slots // 8, num_slots
