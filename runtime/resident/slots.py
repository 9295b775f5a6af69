"""Slots of a resident gallery: which rows of a snapshot they hold, and which are free.

A slot keeps the key of the features that were uploaded to it, see :meth:`Snapshot.feature_keys`.
A later snapshot finds most of its rows by their keys, and only the others are uploaded. They take
the slots that no living snapshot uses, then new ones at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xclip_deploy.runtime.arrays import BoolArray, Int64Array
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.gallery.store import FeatureKeys

MISSING = -1
"""Slot of a row whose features are in none."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class View:
    """The rows of one snapshot, and the slot of each."""

    rows: Rows
    """All rows [N], ascending."""
    slots: Int64Array
    """Slot of each row [N]."""

    @cached_property
    def num_slots(self) -> int:
        """Slots that a scan of the snapshot reads: up to the last one in use."""
        return int(self.slots.max(initial=-1)) + 1

    @cached_property
    def is_in_order(self) -> bool:
        """Whether the slots ascend with the rows, so that ties need no ranks."""
        return bool((np.diff(self.slots) > 0).all())

    @cached_property
    def mask(self) -> BoolArray | None:
        """The slots that hold a row, bool [num_slots]; None where all do."""
        return None if self.num_slots == len(self.rows) else self.mask_of(self.slots)

    @cached_property
    def places(self) -> Int64Array:
        """Place in ``rows`` of each slot [num_slots]; -1 for a slot that holds none."""
        places = np.full(self.num_slots, -1, np.int64)
        places[self.slots] = np.arange(len(self.rows))
        return places

    @cached_property
    def ranks(self) -> Int64Array:
        """Order of the slots [num_slots] by row. Slots that hold none come last, in their order."""
        ranks: Int64Array = self.places.copy()
        is_empty = ranks < 0
        ranks[is_empty] = len(self.rows) + np.arange(int(is_empty.sum()))
        return np.asarray(ranks, np.int64)

    def guess(self, rows: Rows) -> Int64Array:
        """Return the slots of those of ``rows`` that are here, :data:`MISSING` for others."""
        if not len(self.rows):
            return np.full(len(rows), MISSING, np.int64)
        places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[places] == rows, self.slots[places], MISSING)

    def slots_of(self, rows: Rows) -> Int64Array:
        """Return the slots of existing rows."""
        slots: Int64Array = self.slots[np.searchsorted(self.rows, rows)]
        return slots

    def rows_of(self, slots: Int64Array) -> Rows:
        """Return the rows in slots of :attr:`mask`."""
        rows: Rows = self.rows[self.places[slots]]
        return rows

    def mask_of(self, slots: Int64Array) -> BoolArray:
        """Return a mask that allows some slots alone, bool [num_slots]."""
        mask = np.zeros(self.num_slots, np.bool_)
        mask[slots] = True
        return mask


class SlotKeys:
    """Keys of the features that the slots hold."""

    def __init__(self) -> None:
        self._keys = np.empty((0, 2), np.uint64)
        self._is_filled = np.empty(0, np.bool_)

    def __len__(self) -> int:
        """Return the number of slots that were ever filled: later ones hold garbage."""
        return len(self._keys)

    def find(self, keys: FeatureKeys, guess: Int64Array | None = None) -> Int64Array:
        """Return a slot of its own for each key [N], :data:`MISSING` where none holds it.

        ``guess``: slots that probably hold the keys, each once, or :data:`MISSING`. Right guesses
        save the search, which takes half a second for a million keys.
        """
        found = np.full(len(keys), MISSING, np.int64)
        is_open = self._is_filled.copy()
        if guess is not None:
            places = np.flatnonzero((guess != MISSING) & (guess < len(self)))
            slots = guess[places]
            is_right = self._is_filled[slots] & (self._keys[slots] == keys[places]).all(axis=1)
            found[places[is_right]] = slots[is_right]
            is_open[slots[is_right]] = False
        left = np.flatnonzero(found == MISSING)
        filled = np.flatnonzero(is_open)
        if not len(filled) or not len(left):
            return found
        wanted_keys = keys[left]
        held, wanted = _mixed(self._keys[filled]), _mixed(wanted_keys)
        by_held, by_wanted = np.argsort(held, kind="stable"), np.argsort(wanted, kind="stable")
        held, ordered = held[by_held], wanted[by_wanted]
        # Of rows with equal keys, the nth one takes the nth slot.
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        counts = np.diff(np.r_[starts, len(ordered)])
        nth = np.arange(len(ordered)) - np.repeat(starts, counts)
        at = np.searchsorted(held, ordered) + nth
        is_there = at < len(held)
        at[~is_there] = 0
        slots = filled[by_held[at]]
        is_there &= (self._keys[slots] == wanted_keys[by_wanted]).all(axis=1)
        found[left[by_wanted[is_there]]] = slots[is_there]
        return found

    def free(self, used: BoolArray, count: int) -> Int64Array:
        """Return ``count`` slots that are not ``used`` [len], ascending; new ones last."""
        free = np.flatnonzero(~used)[:count]
        more = len(self) + np.arange(count - len(free))
        return np.concatenate([free, more])

    def forget(self, slots: Int64Array) -> None:
        """Note that slots are about to be written: until :meth:`note`, they hold no features."""
        self._is_filled[slots[slots < len(self)]] = False

    def note(self, slots: Int64Array, keys: FeatureKeys) -> None:
        """Note what slots hold now. No slot between old and new ones may be left out."""
        more = int(slots.max(initial=-1)) + 1 - len(self)
        if more > 0:
            self._keys = np.concatenate([self._keys, np.zeros((more, 2), np.uint64)])
            self._is_filled = np.concatenate([self._is_filled, np.zeros(more, np.bool_)])
        self._keys[slots] = keys
        self._is_filled[slots] = True

    def cut(self, num_slots: int) -> None:
        """Forget the slots from ``num_slots`` on."""
        self._keys, self._is_filled = self._keys[:num_slots], self._is_filled[:num_slots]

    def used(self, views: Iterable[View]) -> BoolArray:
        """Tell for each slot whether one of ``views`` uses it."""
        used = np.zeros(len(self), np.bool_)
        for view in views:
            used[view.slots] = True
        return used

    def move(self, sources: Int64Array, targets: Int64Array) -> None:
        """Note that the features of ``sources`` were copied to ``targets``."""
        self.note(targets, self._keys[sources])


def runs(slots: Int64Array) -> Iterator[slice]:
    """Yield the places of slots that follow each other, one slice a run."""
    edges = np.flatnonzero(np.diff(slots) != 1) + 1
    bounds = [0, *edges.tolist(), len(slots)]
    for start, stop in itertools.pairwise(bounds):
        if start < stop:
            yield slice(start, stop)


def _mixed(keys: FeatureKeys) -> FeatureKeys:
    """Mix both halves of keys into one number each: uint64 [N]. Different keys may collide."""
    mixed: FeatureKeys = keys[:, 0] * _MIX ^ keys[:, 1]
    return mixed
