"""Attention over similarities (AOSM) in NumPy, for what looks inside a score or before one.

Formula: Ma et al., "X-CLIP", ACM MM 2022, section 3.3, as ``training/scorer.py`` has it.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.features import FloatArray
from xclip_deploy.runtime.grains import TEMPERATURE

Wide = npt.NDArray[np.float64]
AnyFloats = TypeVar("AnyFloats", npt.NDArray[np.float32], npt.NDArray[np.float64])
_Mask = npt.NDArray[np.bool_]


def attend(x: AnyFloats, matrix: FloatArray, is_valid: _Mask | None = None) -> AnyFloats:
    """Weights of AOSM over the last axis: softmax(x / 0.01) M, 0 where not ``is_valid``.

    ``x``: [..., n]; ``matrix``: M [n, n]; ``is_valid``: bool [n]. Returns [..., n],
    in the precision of ``x``.
    """
    scaled = x / TEMPERATURE
    if is_valid is not None:
        scaled = np.where(is_valid, scaled, -np.inf)
    # The largest becomes 0, so that nothing overflows.
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    mixed: AnyFloats = powers / powers.sum(axis=-1, keepdims=True) @ matrix.astype(x.dtype)
    return mixed if is_valid is None else mixed * is_valid


def project(features: Wide, matrix: FloatArray | None) -> Wide:
    """``features`` [..., D] times a matrix [D, D], or as they are where the model has none."""
    return features if matrix is None else features @ matrix.astype(np.float64)
