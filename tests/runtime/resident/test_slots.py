"""Which rows are where: the bookkeeping of a resident gallery, without a device."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.runtime.gallery.store import FeatureKeys
from xclip_deploy.runtime.resident.slots import MISSING, SlotKeys, View, runs

KEYS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12)


def keys_of(pairs: list[tuple[int, int]]) -> FeatureKeys:
    return np.array(pairs, np.uint64).reshape(-1, 2)


def test_rows_are_found_by_their_features_and_new_ones_fill_holes() -> None:
    slots = SlotKeys()
    slots.note(np.arange(5), keys_of([(n, 0) for n in range(5)]))
    wanted = keys_of([(4, 0), (9, 0), (0, 0), (9, 1)])
    assert slots.find(wanted).tolist() == [4, MISSING, 0, MISSING]
    used = slots.used([View(np.array([7, 8]), np.array([0, 4]))])
    assert slots.free(used, 2).tolist() == [1, 2]
    assert slots.free(used, 5).tolist() == [1, 2, 3, 5, 6]
    slots.forget(np.array([0, 9]))
    assert slots.find(wanted).tolist() == [4, MISSING, MISSING, MISSING]


@given(held=KEYS, wanted=KEYS, guesses=st.permutations(range(-4, 15)), is_guessed=st.booleans())
def test_each_row_finds_a_slot_of_its_own(
    held: list[tuple[int, int]],
    wanted: list[tuple[int, int]],
    guesses: list[int],
    is_guessed: bool,
) -> None:
    """Whatever was guessed: wrong guesses cost time alone."""
    slots = SlotKeys()
    slots.note(np.arange(len(held)), keys_of(held))
    guess = np.maximum(np.array(guesses[: len(wanted)], np.int64), MISSING)
    found = slots.find(keys_of(wanted), guess if is_guessed else None).tolist()
    there = [slot for slot in found if slot != MISSING]
    assert len(set(there)) == len(there)
    assert all(held[slot] == wanted[n] for n, slot in enumerate(found) if slot != MISSING)
    for key in set(wanted):
        slots_found = sum(wanted[n] == key for n, slot in enumerate(found) if slot != MISSING)
        assert slots_found == min(held.count(key), wanted.count(key))


def test_a_view_orders_slots_by_row_and_leaves_tombstones_out() -> None:
    view = View(np.array([10, 20, 30]), np.array([4, 0, 2]))
    assert view.num_slots == 5
    assert not view.is_in_order
    assert view.mask is not None
    assert view.mask.tolist() == [True, False, True, False, True]
    assert view.ranks.tolist() == [1, 3, 2, 4, 0]
    assert view.slots_of(np.array([30, 10])).tolist() == [2, 4]
    assert view.rows_of(np.array([0, 4])).tolist() == [20, 10]
    assert view.guess(np.array([5, 20, 31])).tolist() == [MISSING, 0, MISSING]
    dense = View(np.array([10, 20]), np.array([0, 1]))
    assert dense.is_in_order
    assert dense.mask is None


def test_runs_of_slots() -> None:
    found = [(run.start, run.stop) for run in runs(np.array([3, 4, 5, 9, 8]))]
    assert found == [(0, 3), (3, 4), (4, 5)]
    assert list(runs(np.empty(0, np.int64))) == []
