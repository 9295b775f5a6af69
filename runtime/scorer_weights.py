"""The scorer's learned matrices, and its attention over similarities (AOSM) in NumPy.

``scorer.onnx`` computes scores. To explain a score, or to fold a matrix into a query, the
runtime needs the matrices themselves. They are the checkpoint's, in FP32; every precision of the
scorer computes with them. The attention is that of ``training/scorer.py`` (Ma et al., "X-CLIP",
ACM MM 2022, section 3.3).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from xclip_deploy.errors import BundleIntegrityError
from xclip_deploy.runtime.arrays import AnyArray, BoolArray, Float32Array, Float64Array, FloatArray
from xclip_deploy.runtime.grains import TEMPERATURE, matrix_shapes
from xclip_deploy.runtime.model_config import ModelConfig

SCORER_WEIGHTS_NAME = "scorer.npz"

AnyFloats = TypeVar("AnyFloats", Float32Array, Float64Array)


@dataclass(frozen=True, eq=False)
class ScorerWeights:
    """Parameters of the scorer."""

    logit_scale: float
    """Learned parameter: the logarithm of the factor from the mean of the grains to the score."""
    matrices: Mapping[str, Float32Array]
    """Learned matrices of the model, by their names in the authors' checkpoints. The table of
    grains (``runtime/grains.py``) gives the grain and the axes of each."""

    @property
    def score_scale(self) -> float:
        """Factor from the mean of the grains to the score: exp(logit_scale)."""
        return float(np.exp(self.logit_scale))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray], config: ModelConfig) -> ScorerWeights:
        """Take the parameters by name. Raises ValueError where they do not fit ``config``."""
        shapes: dict[str, tuple[int, ...]] = {"logit_scale": (), **matrix_shapes(config)}
        if set(arrays) != set(shapes):
            raise ValueError(
                f"scorer weights {', '.join(sorted(arrays))}; expected {', '.join(sorted(shapes))}"
            )
        matrices: dict[str, Float32Array] = {}
        for name, shape in shapes.items():
            array = arrays[name]
            is_float = np.issubdtype(array.dtype, np.floating)
            if array.shape != shape or not is_float or not np.isfinite(array).all():
                raise ValueError(
                    f"scorer weight {name} is {array.dtype} {list(array.shape)}; expected finite "
                    f"float32 {list(shape)}"
                )
            matrices[name] = array.astype(np.float32)
        logit_scale = float(matrices.pop("logit_scale"))
        return cls(logit_scale, matrices)

    @classmethod
    def open(cls, path: Path, config: ModelConfig) -> ScorerWeights:
        """Read a ``scorer.npz``. Raises BundleIntegrityError where it does not fit ``config``."""
        try:
            # NumPy does not close a damaged file that it opened itself.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                return cls.from_arrays(dict(arrays), config)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BundleIntegrityError(
                f"{path}: no scorer weights of this model ({error})"
            ) from error

    def save(self, path: Path) -> None:
        """Write ``scorer.npz``. Raises OSError where it cannot be written."""
        arrays: dict[str, Any] = {"logit_scale": np.float32(self.logit_scale), **self.matrices}
        with path.open("wb") as stream:
            np.savez(stream, **arrays)


def attend(x: AnyFloats, matrix: FloatArray, is_valid: BoolArray | None = None) -> AnyFloats:
    """Compute AOSM's weights over the last axis: softmax(x / 0.01) M, 0 where not ``is_valid``.

    ``x`` is [..., n], ``matrix`` is M [n, n], and ``is_valid`` is bool [n]. Returns [..., n] in
    the precision of ``x``.
    """
    scaled = x / TEMPERATURE
    if is_valid is not None:
        scaled = np.where(is_valid, scaled, -np.inf)
    # With a largest value of 0, no power overflows.
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    mixed: AnyFloats = powers / powers.sum(axis=-1, keepdims=True) @ matrix.astype(x.dtype)
    return mixed if is_valid is None else mixed * is_valid


def project(features: Float64Array, matrix: FloatArray | None) -> Float64Array:
    """Multiply ``features`` [..., D] with a matrix [D, D]. None leaves them unchanged."""
    return features if matrix is None else features @ matrix.astype(np.float64)
