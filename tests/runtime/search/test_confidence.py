"""Confidences against backgrounds with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from segment_samples import Planter, together

from xclip_deploy import Bundle
from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.features import TextFeatures
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.search import Query, QueryBank, Searcher, SearchOptions
from xclip_deploy.runtime.search.confidence import LEAST, SAMPLE, confidences, sample_rows
from xclip_deploy.runtime.search.confidence import tail as tail_of
from xclip_deploy.runtime.video.segmentation import Segmentation

TAILS = {
    "exponential": lambda rng, size: rng.exponential(3, size),
    "normal": lambda rng, size: rng.normal(20, 4, size),
    "logistic": lambda rng, size: rng.logistic(20, 2, size),
    "uniform": lambda rng, size: rng.uniform(10, 30, size),
}
"""Backgrounds with log-concave densities."""


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_queries_without_a_match_seldom_look_sure(tail: str, level: float) -> None:
    """The best of N scores without a match reaches c in at most 1 - c of all queries."""
    rng = np.random.default_rng(0)
    num_searched, trials = 5000, 400
    alarms = 0
    for _ in range(trials):
        scores = TAILS[tail](rng, num_searched)
        background = rng.choice(scores, SAMPLE, replace=False)
        alarms += (
            confidences(scores.max()[np.newaxis], tail_of(background), num_searched)[0] >= level
        )
    # Three standard errors, and the error of q99 from a sample.
    assert alarms / trials <= (1 - level) + 3 * (level * (1 - level) / trials) ** 0.5 + 0.04
    if tail == "exponential":
        assert alarms / trials >= (1 - level) / 3


def test_a_match_that_stands_out_is_sure() -> None:
    rng = np.random.default_rng(0)
    background = rng.normal(20, 4, 1024)
    found = confidences(np.array([60.0, 52, 44, 36, 20, 0]), tail_of(background), 5000)
    assert found[0] > 0.99
    assert found[-2:].tolist() == [0, 0]
    assert (np.diff(found) <= 0).all()


def test_matches_in_the_background_do_little_harm() -> None:
    rng = np.random.default_rng(0)
    background = rng.normal(20, 4, 1024)
    background[:9] = 60
    assert confidences(np.array([60.0]), tail_of(background), 1024)[0] > 0.95


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=LEAST, max_size=300), st.integers(1, 10**7)
)
def test_confidences_are_probabilities_that_rise_with_the_score(
    background: list[float], num_searched: int
) -> None:
    scores = np.linspace(-150, 150, 50)
    found = confidences(scores, tail_of(np.array(background)), num_searched)
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= 0).all()
    more = confidences(scores, tail_of(np.array(background)), 2 * num_searched)
    assert (more <= found).all()


def world(bundle: Bundle, count: int) -> tuple[Gallery, Query, Query]:
    """A gallery of one match among ``count`` segments, its query, and one without a match."""
    planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 8.0))
    likeness = np.zeros(count)
    likeness[count // 2] = 1.5
    gallery = Gallery(bundle.manifest)
    half = count // 2
    videos = [planter.video("a", likeness[:half]), planter.video("b", likeness[half:])]
    gallery.add(*together(videos))
    other = Planter(bundle.manifest.model, planter.segmentation, seed=99)
    return gallery, planter.query(), other.query()


def test_no_such_moment_is_an_answer(searcher: Searcher, bundle: Bundle) -> None:
    gallery, match, none = world(bundle, 1500)
    snapshot = gallery.snapshot()
    assert sample_rows(snapshot).tolist() == sample_rows(gallery.snapshot()).tolist()
    assert len(np.unique(sample_rows(snapshot))) == SAMPLE
    for exact in (True, False):
        options = SearchOptions(min_confidence=0.9, exact=exact)
        found, nothing = searcher.search([match, none], snapshot, options)
        assert [(hit.id, hit.segment) for hit in found] == [("b", 0)]
        assert found[0].confidence is not None
        assert found[0].confidence > 0.9
        assert len(nothing) == 0
        assert nothing.note.startswith("nothing is found with a confidence of 0.9; the best has ")
        (shown,) = searcher.search([none], snapshot, SearchOptions(confidence=True, exact=exact))
        assert len(shown) == 2
        assert all(hit.confidence is not None and hit.confidence < 0.9 for hit in shown)
        (plain,) = searcher.search([none], snapshot, SearchOptions(exact=exact))
        assert [hit.confidence for hit in plain] == [None, None]
    moments = SearchOptions(min_confidence=0.9, group="moment")
    (found,) = searcher.search([match], snapshot, moments)
    assert len(found) == 1


def test_by_video(searcher: Searcher, bundle: Bundle) -> None:
    gallery, _, _ = world(bundle, 1500)
    video = gallery.snapshot().features(np.array([750]))
    (found,) = searcher.search(
        [Query(None, video)], gallery.snapshot(), SearchOptions(min_confidence=0.9)
    )
    assert [(hit.id, hit.segment) for hit in found] == [("b", 0)]


def test_a_small_gallery_cannot_tell_but_a_bank_can(searcher: Searcher, bundle: Bundle) -> None:
    gallery, match, none = world(bundle, 20)
    snapshot = gallery.snapshot()
    (found,) = searcher.search([match], snapshot, SearchOptions(confidence=True))
    assert found[0].confidence is None
    assert found.note == (
        "no confidence: the gallery holds 20 segments; expected 200 or more, or a query bank of "
        "as many texts"
    )
    with pytest.raises(
        InvalidArgumentError, match=r"min_confidence is 0\.5: no confidence: the gal"
    ):
        searcher.search([match], snapshot, SearchOptions(min_confidence=0.5))
    assert match.text is not None
    rng = np.random.default_rng(3)
    words = rng.standard_normal((500, *match.text.word_features.shape[1:])).astype(np.float32)
    words /= np.linalg.norm(words, axis=-1, keepdims=True)
    words[:] = words[:, :1]  # as the planted queries: one vector for all words
    features = TextFeatures(words[:, 0], words, match.text.num_words.repeat(500))
    for size, answer in ((500, 1), (50, None)):
        options = SearchOptions(confidence=True, query_bank=QueryBank(features[:size]))
        (found,) = searcher.search([match], snapshot, options)
        if answer is None:
            assert "the query bank holds 50 texts" in found.note
            continue
        assert found[0].id == "b"
        assert found[0].confidence is not None
        assert found[0].confidence > 0.9
        (nothing,) = searcher.search([none], snapshot, options)
        assert all((hit.confidence or 0) < 0.9 for hit in nothing)
