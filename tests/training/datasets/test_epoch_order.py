from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.training.datasets.epoch_order import epoch_order


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments for which there is at least one batch."""
    world_size = draw(st.integers(1, 4))
    batch_size = world_size * draw(st.integers(1, 5))
    return {
        "num_pairs": draw(st.integers(batch_size, 120)),
        "batch_size": batch_size,
        "seed": draw(st.integers(0, 2**40)),
        "epoch": draw(st.integers(0, 100)),
        "world_size": world_size,
    }


@given(arguments())
def test_every_pair_at_most_once_and_only_the_remainder_left_out(given: dict[str, Any]) -> None:
    order = epoch_order(**given | {"world_size": 1})
    assert order.dtype == np.int64
    assert order.shape == (given["num_pairs"] // given["batch_size"], given["batch_size"])
    assert len(np.unique(order)) == order.size
    assert order.min() >= 0
    assert order.max() < given["num_pairs"]


@given(arguments())
def test_ranks_part_the_batch_of_one_rank(given: dict[str, Any]) -> None:
    whole = epoch_order(**given | {"world_size": 1})
    ranks = [epoch_order(**given, rank=rank) for rank in range(given["world_size"])]
    np.testing.assert_array_equal(np.concatenate(ranks, axis=1), whole)
    np.testing.assert_array_equal(epoch_order(**given | {"world_size": 1}), whole)


def test_the_order_is_the_same_for_ever() -> None:
    # Runs are resumed with other versions of NumPy.
    order = epoch_order(10, 5, seed=7, epoch=3)
    assert order.tolist() == [[2, 4, 7, 3, 5], [1, 8, 9, 0, 6]]


def test_epochs_and_seeds_differ() -> None:
    orders = {
        tuple(epoch_order(40, 4, seed=seed, epoch=epoch).ravel())
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


def test_the_remainder_differs_between_epochs() -> None:
    left_out = Counter[int]()
    for epoch in range(30):
        left_out.update(np.setdiff1d(np.arange(11), epoch_order(11, 5, seed=0, epoch=epoch)))
    assert sum(left_out.values()) == 30
    assert len(left_out) > 5


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 9, "world_size": 2}, "batch_size is 9 for 2 ranks"),
        ({"rank": 1}, "rank is 1"),
        ({"rank": -1}, "rank is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"epoch": -1}, "epoch -1"),
        ({"num_pairs": 7}, "7 pairs give no batch of 8"),
        ({"num_pairs": 0}, "0 pairs give no batch of 8"),
    ],
)
def test_arguments_out_of_range(changes: dict[str, Any], found: str) -> None:
    given: dict[str, Any] = {"num_pairs": 20, "batch_size": 8, "seed": 0, "epoch": 0}
    with pytest.raises(InvalidArgumentError, match=found):
        epoch_order(**given | changes)
