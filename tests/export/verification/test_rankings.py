"""The rank-flip metric against a definition that anybody can read."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xclip_deploy.export.verification.rankings import DEPTH, compare_rankings

Matrix = npt.NDArray[np.float64]


def ranking(row: Matrix) -> list[int]:
    """Columns, best first; equals in their order."""
    return sorted(range(len(row)), key=lambda column: (-row[column], column))


def naive_flips(reference: Matrix, found: Matrix) -> list[tuple[int, int, int, float]]:
    """Text, upper, lower and gap of every flip, straight from the definition."""
    flips = []
    for text, (before, after) in enumerate(zip(reference, found, strict=True)):
        candidates = set(ranking(before)[:DEPTH]) | set(ranking(after)[:DEPTH])
        for upper, lower in permutations(candidates, 2):
            if before[upper] > before[lower] and after[upper] < after[lower]:
                flips.append((text, upper, lower, before[upper] - before[lower]))
    return flips


# Few values, so that ties are common.
scores = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Matrix, Matrix]:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 25)))
    elements = draw(st.sampled_from([scores, st.floats(-100, 100, width=32)]))
    return tuple(draw(arrays(np.float64, shape, elements=elements)) for _ in range(2))  # type: ignore[return-value]


@given(pairs(), st.sampled_from([0.0, 0.5, 1.0, 7.5]))
def test_flips_are_those_of_the_definition(both: tuple[Matrix, Matrix], tie_gap: float) -> None:
    reference, found = both
    expected = naive_flips(reference, found)
    result = compare_rankings(reference, found, tie_gap, kept=10_000)
    assert {(flip.text, flip.upper, flip.lower) for flip in result.worst} == {
        flip[:3] for flip in expected
    }
    assert result.flips == sum(gap > tie_gap for *_, gap in expected)
    assert result.near_tie_flips == sum(gap <= tie_gap for *_, gap in expected)
    assert result.texts_changed == len({text for text, *_ in expected})
    assert result.texts_flipped == len({text for text, *_, gap in expected if gap > tie_gap})
    assert result.largest_flipped_gap == max((gap for *_, gap in expected), default=0.0)
    gaps = [flip.reference_gap for flip in result.worst]
    assert gaps == sorted(gaps, reverse=True)
    for flip in result.worst:
        assert flip.found_gap == found[flip.text, flip.upper] - found[flip.text, flip.lower] < 0


@given(pairs())
def test_agreement_and_moves_are_those_of_the_definition(both: tuple[Matrix, Matrix]) -> None:
    reference, found = both
    num_videos = reference.shape[1]
    result = compare_rankings(reference, found, 0.0)
    orders = [(ranking(a), ranking(b)) for a, b in zip(reference, found, strict=True)]
    for k, agreement in result.top_agreement.items():
        if k > 1 and num_videos <= k:
            assert agreement is None
            continue
        shares = [len(set(before[:k]) & set(after[:k])) / k for before, after in orders]
        assert agreement is not None
        np.testing.assert_allclose(agreement, np.mean(shares), rtol=1e-12)
    depth = min(DEPTH, num_videos)
    moves = np.zeros((depth, depth + 1), dtype=int)
    for before, after in orders:
        for rank, column in enumerate(before[:depth]):
            moves[rank, min(after.index(column), depth)] += 1
    np.testing.assert_array_equal(result.moves, moves)


@given(pairs(), st.integers(0, 2**32 - 1), st.floats(1e-6, 2.0))
def test_scores_within_the_tolerance_flip_near_ties_alone(
    both: tuple[Matrix, Matrix], seed: int, tolerance: float
) -> None:
    """What the gap of twice the tolerance promises."""
    reference = both[0]
    noise = np.random.default_rng(seed).uniform(-1, 1, reference.shape)
    result = compare_rankings(reference, reference + 0.999 * tolerance * noise, 2 * tolerance)
    assert result.flips == 0


@given(pairs())
def test_a_matrix_agrees_with_itself(both: tuple[Matrix, Matrix]) -> None:
    result = compare_rankings(both[0], both[0], 0.0)
    assert (result.flips, result.near_tie_flips, result.texts_changed, result.worst) == (
        0,
        0,
        0,
        (),
    )
    assert set(result.top_agreement.values()) <= {1.0, None}
    assert result.largest_flipped_gap == 0.0


def test_a_reversed_ranking_flips_every_pair() -> None:
    reference = np.arange(10.0)[None]
    result = compare_rankings(reference, -reference, tie_gap=1.0)
    assert (result.flips, result.near_tie_flips) == (45 - 9, 9)  # neighbours are a logit apart
    assert result.top_agreement == {1: 0.0, 5: 0.0, 10: None}


def test_only_the_worst_are_kept_however_many_there_are() -> None:
    random = np.random.default_rng(0)
    reference, found = random.normal(size=(2, 60, 40))
    everything = compare_rankings(reference, found, 0.1, kept=10**6)
    few = compare_rankings(reference, found, 0.1, kept=3)
    assert len(everything.worst) == everything.flips + everything.near_tie_flips > 64 * 3
    assert few.worst == everything.worst[:3]
    assert few.flips == everything.flips
