from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.export.verification.differences import ERROR_EDGES, Differences


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_batches_add_up_to_the_whole(sizes: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    reference = random.normal(size=(sum(sizes), 3, 8)).astype(np.float32)
    found = (reference + random.normal(scale=1e-3, size=reference.shape)).astype(np.float32)
    differences = Differences(are_vectors=True)
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        differences.add(reference[rows], found[rows])
        start += size
    expected, actual = reference.astype(np.float64), found.astype(np.float64)
    errors = np.abs(actual - expected)
    lengths = np.linalg.norm(expected, axis=-1) * np.linalg.norm(actual, axis=-1)
    cosines = (expected * actual).sum(-1) / lengths
    assert differences.max_abs_error == errors.max()
    assert differences.rms_error == pytest.approx(np.sqrt((errors**2).mean()))
    assert differences.min_cosine == pytest.approx(cosines.min())
    assert differences.mean_cosine == pytest.approx(cosines.mean())
    assert differences.num_not_finite == 0
    assert differences.histogram.sum() + differences.num_exact == errors.size


def test_what_is_not_finite_is_counted_and_spoils_nothing_else() -> None:
    reference = np.eye(4, dtype=np.float32)
    found = reference.copy()
    found[0, 0], found[1, 2] = np.nan, -np.inf
    found[2, 2] = 0.5
    differences = Differences(are_vectors=True)
    differences.add(reference, found)
    assert differences.num_not_finite == 2
    assert differences.max_abs_error == 0.5
    assert differences.min_cosine == 1.0  # of the two finite vectors


def test_nothing_finite_gives_no_numbers() -> None:
    differences = Differences(are_vectors=True)
    differences.add(np.ones((2, 3)), np.full((2, 3), np.nan))
    assert differences.num_not_finite == 6
    assert differences.max_abs_error is None
    assert differences.rms_error is None
    assert differences.min_cosine is None
    assert differences.mean_cosine is None


def test_a_vector_of_length_zero_points_nowhere() -> None:
    differences = Differences(are_vectors=True)
    differences.add(np.eye(2), np.zeros((2, 2)))
    assert differences.min_cosine == 0.0


def test_the_histogram_counts_each_error_in_its_bin_and_keeps_outliers() -> None:
    errors = np.array([0.0, 1e-15, 1.5e-5, 1e6])
    differences = Differences(are_vectors=False)
    differences.add(np.zeros(4), errors)
    assert differences.num_exact == 1
    (filled,) = np.nonzero(differences.histogram)
    assert filled[0] == 0
    assert filled[-1] == len(differences.histogram) - 1
    assert ERROR_EDGES[filled[1]] <= 1.5e-5 < ERROR_EDGES[filled[1] + 1]
    assert differences.min_cosine is None
