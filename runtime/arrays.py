"""Types of NumPy arrays, and functions to cast, check and slice them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError

AnyArray: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
Float32Array: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]
Int64Array: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

_SIGN_AND_REST = np.int32(-0x70002000)
"""Mask 0x8FFFE000: sign, exponent and mantissa of an FP16 that is shifted into an FP32."""
_CACHED_NUMBERS = 1 << 17
_EXPONENTS = np.float32(2.0**112)
"""Factor between the exponents of FP16, biased by 15, and of FP32, biased by 127."""


class Rows:
    """Arrays that make up one along their first axis, and are not joined yet.

    Joining frames costs as much as copying them into pinned memory, which comes next on a GPU.
    """

    def __init__(self, arrays: Sequence[AnyArray], dtype: str) -> None:
        """Keep at least one array [n, ...]. All have one shape beyond their first axis."""
        self._arrays = [np.ascontiguousarray(array, dtype=dtype) for array in arrays]
        self.shape: tuple[int, ...] = (
            sum(map(len, self._arrays)),
            *self._arrays[0].shape[1:],
        )
        if any(array.shape[1:] != self.shape[1:] for array in self._arrays):
            raise ValueError("arrays of several shapes make up no array")
        self.nbytes = sum(array.nbytes for array in self._arrays)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Rows:
        """Return a range of rows, which has one at least."""
        start, stop, _ = rows.indices(len(self))
        found, place = [], 0
        for array in self._arrays:
            part = array[max(0, start - place) : max(0, stop - place)]
            place += len(array)
            if len(part):
                found.append(part)
        return Rows(found, self._arrays[0].dtype.name)

    def parts(self, nbytes: int) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Return the content as bytes, at most ``nbytes`` at a time, each with its place."""
        place = 0
        for array in self._arrays:
            flat = array.reshape(-1).view(np.uint8)
            for part in slices(len(flat), nbytes):
                yield place + part.start, flat[part]
            place += len(flat)


def first_best(values: FloatArray, tolerance: float = 1e-6) -> int:
    """Return the first place of [n] whose value is within ``tolerance`` of the largest.

    Equal frames have similarities that differ by rounding, in FP32 by about 1e-7. The first of
    them is the best, however the similarities were computed.
    """
    return int(first_best_each(values, tolerance))


def first_best_each(values: FloatArray, tolerance: float = 1e-6) -> npt.NDArray[np.intp]:
    """Return what :func:`first_best` does of each row of [..., n]."""
    is_best = values >= values.max(axis=-1, keepdims=True) - tolerance
    found: npt.NDArray[np.intp] = is_best.argmax(axis=-1)
    return found


def to_float32(array: FloatArray) -> Float32Array:
    """Return the same numbers in FP32. An FP32 array is returned itself.

    FP16 numbers must be finite. For them this takes 0.3 to 0.8 ns a number, and NumPy's cast 2 to
    5 ns.
    """
    if array.dtype != np.float16:
        return array.astype(np.float32, copy=False)
    numbers = np.ascontiguousarray(array).reshape(-1).view(np.int16)
    wide = np.empty(numbers.size, dtype=np.float32)
    # A block stays in the cache through all four steps.
    for block in slices(numbers.size, _CACHED_NUMBERS):
        part = wide[block]
        bits = part.view(np.int32)
        bits[...] = numbers[block]
        bits <<= 13
        bits &= _SIGN_AND_REST
        part *= _EXPONENTS  # right for subnormal numbers too
    return wide.reshape(array.shape)


def check_finite(name: str, array: FloatArray) -> None:
    """Refuse NaN and infinity, which would poison every ranking. Raises InvalidArgumentError."""
    if not np.isfinite(array).all():
        raise InvalidArgumentError(f"{name} holds NaN or infinity")


def slices(total: int, step: int) -> Iterator[slice]:
    """Cut ``range(total)`` into slices of ``step``, at least 1. The last may be shorter."""
    step = max(1, step)
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))
