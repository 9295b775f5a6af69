"""Both stages against scores that are computed without either."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from xclip_deploy import Bundle, DeployedModel, SearchResult
from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.runtime.search import Query, QueryBank, Searcher, SearchOptions
from xclip_deploy.runtime.search import scope as scope_module
from xclip_deploy.runtime.search import shard as shard_module
from xclip_deploy.runtime.search.near_identical import NEAR_IDENTICAL
from xclip_deploy.runtime.search.ranked import texts_of
from xclip_deploy.runtime.search.shard import fold

MakeQueries = Callable[[int], list[Query]]


def ids(results: Iterable[Iterable[SearchResult]]) -> list[list[str]]:
    return [[hit.id for hit in hits] for hits in results]


def half(features: VideoFeatures) -> VideoFeatures:
    return VideoFeatures(
        features.video_features.astype(np.float16),
        features.frame_features.astype(np.float16),
        features.num_frames,
    )


def ranking(
    model: DeployedModel, query: Query, features: VideoFeatures, videos: list[GalleryVideo]
) -> list[tuple[str, float]]:
    """Every video by the scorer alone, in one call, in FP32."""
    assert query.text is not None
    narrow = half(features)
    wide = VideoFeatures(
        narrow.video_features.astype(np.float32),
        narrow.frame_features.astype(np.float32),
        narrow.num_frames,
    )
    logits = model.score(query.text, wide).logits[0]
    order = np.argsort(-logits, kind="stable")
    return [(videos[n].id, float(logits[n])) for n in order]


def test_exact_is_the_scorers_ranking(
    searcher: Searcher,
    model: DeployedModel,
    gallery: Gallery,
    features: VideoFeatures,
    videos: list[GalleryVideo],
    make_queries: MakeQueries,
) -> None:
    queries = make_queries(3)
    found = searcher.search(queries, gallery.snapshot(), SearchOptions(k=15, exact=True))
    for query, hits in zip(queries, found, strict=True):
        expected = ranking(model, query, features, videos)[:15]
        assert [hit.id for hit in hits] == [name for name, _ in expected]
        assert [hit.score for hit in hits] == pytest.approx([s for _, s in expected], rel=1e-5)
        assert (hits.method, hits.num_scored, hits.num_videos) == ("exact", 120, 120)
        assert [hit.rank for hit in hits] == list(range(1, 16))


def test_exact_in_parts_is_exact_at_once(
    searcher: Searcher,
    gallery: Gallery,
    make_queries: MakeQueries,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = SearchOptions(k=12, exact=True)
    queries = make_queries(5)
    snapshot = gallery.snapshot()
    whole = searcher.search(queries, snapshot, options)
    monkeypatch.setattr(scope_module, "_SCAN_VIDEOS", 7)
    monkeypatch.setattr(shard_module, "_TEXTS_AT_ONCE", 2)
    monkeypatch.setattr(type(snapshot), "held", lambda _self: None)
    parts = searcher.search(queries, snapshot, options)
    assert ids(parts) == ids(whole)
    assert parts[0].num_scored == 120


def test_two_stages_with_every_candidate_are_exact(
    searcher: Searcher, gallery: Gallery, make_queries: MakeQueries
) -> None:
    queries = make_queries(4)
    snapshot = gallery.snapshot()
    exact = searcher.search(queries, snapshot, SearchOptions(k=20, exact=True))
    staged = searcher.search(queries, snapshot, SearchOptions(k=20, exact=False, candidates=120))
    assert ids(staged) == ids(exact)
    for a, b in zip(staged, exact, strict=True):
        assert [hit.score for hit in a] == pytest.approx([hit.score for hit in b], rel=1e-5)
        assert a[0].grains is not None
        assert b[0].grains is not None
        assert dict(a[0].grains) == pytest.approx(dict(b[0].grains), rel=1e-5)


def test_the_second_stage_sees_the_candidates_alone(
    searcher: Searcher, gallery: Gallery, make_queries: MakeQueries
) -> None:
    (hits,) = searcher.search(
        make_queries(1), gallery.snapshot(), SearchOptions(k=3, exact=False, candidates=30)
    )
    assert (hits.method, hits.num_scored, hits.num_videos) == ("two-stage", 30, 120)
    assert hits[0].id in ("v000", "v001")


def test_candidates_are_chosen_by_all_that_whole_videos_tell(
    searcher: Searcher, gallery: Gallery, make_queries: MakeQueries
) -> None:
    """20 of the 60 nearest sentences, by video-sentence and video-word together."""
    snapshot = gallery.snapshot()
    for query in make_queries(6):
        (whole,) = searcher.search([query], snapshot, SearchOptions(k=120, exact=True))
        grains = {hit.id: dict(hit.grains or {}) for hit in whole}
        nearest = sorted(grains, key=lambda name: -grains[name]["video_sentence"])[:60]
        best = sorted(
            nearest,
            key=lambda name: -grains[name]["video_sentence"] - grains[name]["video_word"],
        )[:20]
        expected = [hit.id for hit in whole if hit.id in best][:5]
        (hits,) = searcher.search([query], snapshot, SearchOptions(k=5, exact=False, candidates=20))
        assert [hit.id for hit in hits] == expected
        assert hits.num_scored == 20


def test_candidates_of_a_text_with_a_video_resemble_it(
    searcher: Searcher, gallery: Gallery, features: VideoFeatures, make_queries: MakeQueries
) -> None:
    (text,) = make_queries(1)
    both = Query(text.text, features[14:15], 0.9)
    options = SearchOptions(k=2, exact=False, candidates=8)
    (hits,) = searcher.search([both], gallery.snapshot(), options)
    assert hits.num_scored == 8
    assert {hit.id for hit in hits} == {"v014", "v015"}


def test_the_first_stage_is_the_video_sentence_grain(
    model: DeployedModel,
    bundle: Bundle,
    features: VideoFeatures,
    make_queries: MakeQueries,
) -> None:
    (query,) = make_queries(1)
    assert query.text is not None
    folded = fold(query, bundle.scorer_weights()) @ features.video_features.T
    grain = model.score(query.text, features).grains["video_sentence"]
    np.testing.assert_allclose(folded, grain, atol=1e-6)
    # Without G it is another: the matrix of the golden checkpoint is no identity.
    assert np.abs(query.text.sentence_features @ features.video_features.T - grain).max() > 1e-3


@pytest.mark.parametrize("exact", [True, False])
def test_a_filter(
    searcher: Searcher, gallery: Gallery, make_queries: MakeQueries, exact: bool
) -> None:
    options = SearchOptions(k=50, exact=exact, where="source = 'cam1' and duration_s < 60")
    (hits,) = searcher.search(make_queries(1), gallery.snapshot(), options)
    assert sorted(hit.id for hit in hits) == [f"v{n:03d}" for n in range(1, 60, 3)]
    assert hits.num_scored == 20
    assert all(hit.metadata["source"] == "cam1" for hit in hits)


@pytest.mark.parametrize("exact", [True, False])
def test_pages_are_slices(
    searcher: Searcher, gallery: Gallery, make_queries: MakeQueries, exact: bool
) -> None:
    snapshot, queries = gallery.snapshot(), make_queries(1)
    (whole,) = searcher.search(queries, snapshot, SearchOptions(k=30, exact=exact))
    pages: list[SearchResult] = []
    for offset in (0, 10, 20):
        options = SearchOptions(k=10, offset=offset, exact=exact)
        pages += searcher.search(queries, snapshot, options)[0].hits
    assert pages == list(whole)
    beyond = SearchOptions(k=10, offset=500, exact=True)
    assert len(searcher.search(queries, snapshot, beyond)[0]) == 0


def test_a_least_score(searcher: Searcher, gallery: Gallery, make_queries: MakeQueries) -> None:
    snapshot, queries = gallery.snapshot(), make_queries(1)
    (whole,) = searcher.search(queries, snapshot, SearchOptions(k=120))
    least = whole[4].score
    (hits,) = searcher.search(queries, snapshot, SearchOptions(k=120, min_score=least))
    assert hits.hits == whole.hits[:5]


@pytest.mark.parametrize("exact", [True, False])
def test_near_identical_hits_are_named_not_shown(
    searcher: Searcher, gallery: Gallery, make_queries: MakeQueries, exact: bool
) -> None:
    options = SearchOptions(k=10, deduplicate=0.98, exact=exact)
    (hits,) = searcher.search(make_queries(1), gallery.snapshot(), options)
    pairs = {int(hit.id[1:]) // 2 for hit in hits}
    assert len(hits) == len(pairs) == 10
    assert {hits[0].id, *hits[0].near_identical} == {"v000", "v001"}


def test_by_video_and_by_both(
    searcher: Searcher, gallery: Gallery, features: VideoFeatures, make_queries: MakeQueries
) -> None:
    snapshot = gallery.snapshot()
    video = features[14:15]
    (hits,) = searcher.search([Query(None, video)], snapshot, SearchOptions(k=2))
    assert hits[0].id == "v014"
    assert hits[0].score == pytest.approx(1, abs=2e-3)
    assert hits[1].id == "v015"
    assert hits[0].grains is None
    (text,) = make_queries(1)
    weights = {}
    for weight in (0.0, 0.5, 1.0):
        both = Query(text.text, video, weight)
        (found,) = searcher.search([both], snapshot, SearchOptions(k=120))
        weights[weight] = {hit.id: hit.score for hit in found}
        (staged,) = searcher.search(
            [both], snapshot, SearchOptions(k=10, exact=False, candidates=120)
        )
        assert [hit.id for hit in staged] == [hit.id for hit in found][:10]
    (alone,) = searcher.search([text], snapshot, SearchOptions(k=120))
    for hit in alone:
        assert weights[0.0][hit.id] == pytest.approx(hit.score, rel=1e-5)
        middle = (weights[0.0][hit.id] + weights[1.0][hit.id]) / 2
        assert weights[0.5][hit.id] == pytest.approx(middle, rel=1e-4, abs=1e-4)
    assert max(weights[1.0], key=weights[1.0].__getitem__) == "v014"


def test_a_query_bank_is_the_inverted_softmax(
    searcher: Searcher,
    model: DeployedModel,
    gallery: Gallery,
    features: VideoFeatures,
    make_queries: MakeQueries,
) -> None:
    query, *others = make_queries(6)
    bank = QueryBank(texts_of(others))
    options = SearchOptions(k=120, exact=True, query_bank=bank)
    (hits,) = searcher.search([query], gallery.snapshot(), options)
    assert query.text is not None
    narrow = half(features)
    logits = model.score(query.text, narrow).logits[0].astype(np.float64)
    banked = model.score(bank.features, narrow).logits.astype(np.float64)
    expected = np.log(np.exp(logits) / np.exp(banked).mean(axis=0))
    assert [hit.id for hit in hits] == [f"v{n:03d}" for n in np.argsort(-expected, kind="stable")]
    assert [hit.score for hit in hits] == pytest.approx(sorted(expected)[::-1], rel=1e-4, abs=1e-4)
    # Videos that the bank's texts resemble lose against where they stood.
    (plain,) = searcher.search([query], gallery.snapshot(), SearchOptions(k=120, exact=True))
    place = {hit.id: hit.rank for hit in plain}
    assert hits[-1].id in {f"v{7 * n % 120:03d}" for n in range(1, 6)} or place != {
        hit.id: hit.rank for hit in hits
    }


def test_an_empty_gallery(searcher: Searcher, bundle: Bundle, make_queries: MakeQueries) -> None:
    (hits,) = searcher.search(make_queries(1), Gallery(bundle.manifest).snapshot(), SearchOptions())
    assert (len(hits), hits.num_videos) == (0, 0)


@pytest.mark.parametrize(
    "options",
    [{"k": 0}, {"offset": -1}, {"candidates": 0}, {"deduplicate": 1.5}, {"k": 2.5}, {"k": True}],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="expected"):
        SearchOptions(**options)


def test_deduplicating_by_the_usual_cosine() -> None:
    assert SearchOptions(deduplicate=True).near_identical == NEAR_IDENTICAL
    assert SearchOptions(deduplicate=False).near_identical is None
    assert SearchOptions(deduplicate=1).near_identical == 1
