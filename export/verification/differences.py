"""Gather the differences between a tensor and its reference, batch by batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

_LOWEST, _HIGHEST, _BINS_PER_DECADE = -10, 2, 8
ERROR_EDGES: npt.NDArray[np.float64] = np.logspace(
    _LOWEST, _HIGHEST, (_HIGHEST - _LOWEST) * _BINS_PER_DECADE + 1
)
"""Edges of the histogram of absolute errors. Errors outside count in the first or last bin."""


class Differences:
    """Differences of one tensor in one run, kept as a histogram and sums of constant size."""

    def __init__(self, *, are_vectors: bool) -> None:
        """Begin empty. ``are_vectors``: whether the last axis holds vectors that have cosines."""
        self.are_vectors = are_vectors
        self.max_abs_error: float | None = None
        self.min_cosine: float | None = None
        self.num_not_finite = 0
        self.histogram = np.zeros(len(ERROR_EDGES) - 1, dtype=np.int64)
        """Number of finite elements by absolute error, in the bins of ``ERROR_EDGES``."""
        self.num_exact = 0
        """Number of elements without any error; they are in no bin."""
        self._square_sum = 0.0
        self._num_errors = 0
        self._cosine_sum = 0.0
        self._num_cosines = 0

    @property
    def rms_error(self) -> float | None:
        """Root mean square of the errors of all finite elements; None without any."""
        return math.sqrt(self._square_sum / self._num_errors) if self._num_errors else None

    @property
    def mean_cosine(self) -> float | None:
        """Mean cosine of all finite vectors; None without any."""
        return self._cosine_sum / self._num_cosines if self._num_cosines else None

    def add(self, reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> None:
        """Add a batch: two arrays of one shape, of which the reference is finite."""
        if not found.size:
            return
        expected, actual = reference.astype(np.float64), found.astype(np.float64)
        is_finite = np.isfinite(actual)
        self.num_not_finite += int(actual.size - is_finite.sum())
        errors = np.abs(actual - expected, where=is_finite, out=np.zeros_like(actual))[is_finite]
        if errors.size:
            self.max_abs_error = max(self.max_abs_error or 0.0, float(errors.max()))
            self._square_sum += float((errors * errors).sum())
            self._num_errors += errors.size
            inexact = errors[errors > 0]
            self.num_exact += errors.size - inexact.size
            clipped = np.clip(inexact, ERROR_EDGES[0], ERROR_EDGES[-1])
            self.histogram += np.histogram(clipped, ERROR_EDGES)[0]
        if self.are_vectors:
            whole = is_finite.all(axis=-1)
            self._add_cosines(expected[whole], actual[whole])

    def _add_cosines(
        self, expected: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]
    ) -> None:
        if not len(actual):
            return
        lengths = np.linalg.norm(expected, axis=-1) * np.linalg.norm(actual, axis=-1)
        dots = (expected * actual).sum(axis=-1)
        # A vector of length zero has no direction: its cosine counts as 0.
        cosines = np.divide(dots, lengths, where=lengths > 0, out=np.zeros_like(dots))
        self.min_cosine = min(
            math.inf if self.min_cosine is None else self.min_cosine, float(cosines.min())
        )
        self._cosine_sum += float(cosines.sum())
        self._num_cosines += len(cosines)
