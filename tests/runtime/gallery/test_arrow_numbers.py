"""Conversions between Arrow and NumPy, held against PyArrow's own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from xclip_deploy.runtime.gallery.arrow_numbers import (
    from_numbers,
    in_one_piece,
    is_null,
    to_numbers,
    with_zeros,
)

ARRAYS = {
    "words": pa.array([1, 2**64 - 1, 3], pa.uint64()),
    "half": pa.array(np.array([0.5, -2, 65504], np.float16)),
    "truth": pa.array([True, False, True]),
    "real": pa.array([0.1, None, 0.3]),
    "whole": pa.array([1, None, 3], pa.int32()),
    "truth-or-null": pa.array([True, None, False]),
    "empty": pa.array([], pa.float16()),
    "slice": pa.array([9, 1, None, 3, 9], pa.float64()).slice(1, 3),
    "slice-of-truth": pa.array([True] * 3 + [False] * 8).slice(2, 5),
}


@pytest.mark.parametrize("name", list(ARRAYS))
def test_numbers_are_those_of_pyarrow(name: str) -> None:
    array = ARRAYS[name]
    expected = array.to_numpy(zero_copy_only=False)
    for column in (array, pa.chunked_array([array]), pa.chunked_array([array, array])):
        found = to_numbers(column)
        repeats = len(column) // len(array) if len(array) else 1
        np.testing.assert_array_equal(found, np.tile(expected, repeats))
        assert found.dtype == expected.dtype
    np.testing.assert_array_equal(is_null(array), array.is_null().to_numpy(zero_copy_only=False))
    numbers = array.cast(pa.uint8()) if pa.types.is_boolean(array.type) else array
    filled = with_zeros(array)
    np.testing.assert_array_equal(filled, numbers.fill_null(0).to_numpy())


def test_numbers_go_there_and_back() -> None:
    for dtype in (np.float16, np.uint64, np.int32):
        numbers = np.arange(20, dtype=dtype)[::2]
        array = from_numbers(numbers)
        assert array.equals(pa.array(numbers))
        np.testing.assert_array_equal(to_numbers(array), numbers)


def test_a_column_without_chunks_keeps_its_type() -> None:
    kind = pa.list_(pa.float16(), 3)
    assert in_one_piece(pa.chunked_array([], kind)).type == kind
    assert to_numbers(pa.chunked_array([], pa.uint64())).shape == (0,)


def test_a_number_is_not_copied() -> None:
    numbers = np.arange(5, dtype=np.float16)
    assert np.shares_memory(to_numbers(from_numbers(numbers)), numbers)
