"""The cast against NumPy's."""

from __future__ import annotations

import numpy as np

from xclip_deploy.runtime.arrays import to_float32


def test_every_finite_number() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    found = to_float32(finite)
    assert found.dtype == np.float32
    # Bit by bit: minus zero stays minus zero.
    np.testing.assert_array_equal(found.view(np.uint32), finite.astype(np.float32).view(np.uint32))


def test_shapes_and_other_types() -> None:
    array = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    np.testing.assert_array_equal(to_float32(array[:, ::2].T), array[:, ::2].T)
    assert to_float32(np.empty((0, 5), np.float16)).shape == (0, 5)
    wide = np.ones(3, np.float32)
    assert to_float32(wide) is wide
    assert to_float32(np.ones(3)).dtype == np.float32


def test_arrays_of_several_blocks() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    array = np.concatenate([np.roll(finite, n) for n in range(5)])[:-7]  # 317,433 numbers
    np.testing.assert_array_equal(to_float32(array), array.astype(np.float32))
