"""Places of rows are those of a binary search, whatever was removed in between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.runtime.gallery.row_places import RowPlaces

_FRAGMENT = 1 << 32


@given(
    st.sets(st.integers(0, 60), min_size=1), st.sets(st.integers(0, 60)), st.integers(0, 1 << 20)
)
def test_places_are_those_of_a_binary_search(
    first: set[int], second: set[int], fragment: int
) -> None:
    later = (fragment + 1) * _FRAGMENT
    rows = np.array([*sorted(first), *(later + row for row in sorted(second))], np.int64)
    asked = np.random.default_rng(len(rows)).permutation(np.repeat(rows, 2))
    found = RowPlaces(rows).of(asked)
    assert found.tolist() == np.searchsorted(rows, asked).tolist()
    assert found.dtype == np.int64


def test_no_rows() -> None:
    places = RowPlaces(np.empty(0, np.int64))
    assert places.of(np.empty(0, np.int64)).tolist() == []
    with pytest.raises(IndexError):
        places.of(np.array([3]))
