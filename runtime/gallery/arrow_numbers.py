"""Numbers between Arrow and NumPy, without a copy and without pandas.

PyArrow's own conversions, ``pa.array``, ``pa.scalar`` and ``to_numpy``, import pandas where it is
installed, though none of its objects is there. A search of a small gallery took a sixth of its time
for that import. These functions read and wrap the buffers themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xclip_deploy.runtime.arrays import BoolArray


def to_numbers(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return numbers or truth values as an array [N], read-only and uncopied if it is one chunk.

    As in PyArrow's ``to_numpy``, null makes NaN and floating-point numbers of integers.
    """
    array = in_one_piece(column)
    if pa.types.is_boolean(array.type) and not array.null_count:
        truth: npt.NDArray[Any] = np.from_dlpack(array.cast(pa.uint8()))
        return truth.view(np.bool_)
    if array.null_count or not _is_number(array.type):
        if not pa.types.is_floating(array.type):
            converted: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
            return converted
        with_nan: npt.NDArray[Any] = _values(array).copy()
        with_nan[is_null(array)] = np.nan
        return with_nan
    numbers: npt.NDArray[Any] = np.from_dlpack(array)
    return numbers


def with_zeros(array: pa.Array) -> npt.NDArray[Any]:
    """Return numbers or truth values as numbers [N], with 0 for null."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if not array.null_count:
        return to_numbers(array)
    values: npt.NDArray[Any] = _values(array).copy()
    values[is_null(array)] = 0
    return values


def is_null(array: pa.Array) -> BoolArray:
    """Tell for each value whether it is null: bool [N]."""
    if not array.null_count:
        return np.zeros(len(array), np.bool_)
    found: BoolArray = to_numbers(array.is_null())
    return found


def from_numbers(numbers: npt.NDArray[Any]) -> pa.Array:
    """Return an array of numbers [N] as an Arrow array, uncopied if it is contiguous."""
    numbers = np.ascontiguousarray(numbers)
    kind = pa.from_numpy_dtype(numbers.dtype)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def in_one_piece(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, uncopied if it is one chunk."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])


def _values(array: pa.Array) -> npt.NDArray[Any]:
    """Return the numbers that the buffer holds, whatever they are where null is."""
    values = np.frombuffer(array.buffers()[1], array.type.to_pandas_dtype())
    return values[array.offset : array.offset + len(array)]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
