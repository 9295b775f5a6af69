"""One gallery against the same videos in several shards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from segment_samples import Planter, together, unit

from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.errors import GalleryError, InvalidArgumentError
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import Query, QueryBank, SearchOptions
from xclip_deploy.runtime.search.merging import search_shards
from xclip_deploy.runtime.search.planner import Planner
from xclip_deploy.runtime.search.searcher import LocalShards
from xclip_deploy.runtime.search.shard import Samples, Shard
from xclip_deploy.runtime.video.segmentation import Segmentation

COUNTS = (1, 3, 8)
BANK = 60
PLANNER = Planner()
Video = tuple[list[GalleryVideo], VideoFeatures]


@dataclass
class World:
    """The same videos in 1, 3 and 8 shards."""

    shards: dict[int, list[Shard]]
    queries: list[Query]
    bank: QueryBank

    def search(self, count: int, query: Query, options: SearchOptions) -> SearchResults:
        shards = LocalShards(self.shards[count], [query], options)
        return search_shards([query], shards, options, PLANNER)[0]


def long_videos(planter: Planter) -> list[Video]:
    rng = np.random.default_rng(2)
    videos = [planter.video("/films/crowd.mkv", rng.uniform(1.0, 2.0, 120), kind="film")]
    for n in range(40):
        likeness = rng.uniform(0, 0.4, 1 + n % 4)
        likeness[n % len(likeness)] = rng.uniform(0.2, 1.8)
        videos.append(planter.video(f"/talks/t{n:02d}/talk.mkv", likeness, kind=f"k{n % 3}"))
    # Copies under other ids: their scores tie, and they are nearly identical.
    for n in (3, 17, 38):
        rows, features = videos[n]
        copied = [
            row.model_copy(update={"id": f"{row.id}.copy", "path": None, "files": ()})
            for row in rows
        ]
        videos.append((copied, features))
    return videos


def whole_videos(planter: Planter) -> list[Video]:
    rng = np.random.default_rng(3)
    return [planter.video(f"v{n:03d}", [rng.uniform(0, 2)], kind=f"k{n % 3}") for n in range(250)]


@pytest.fixture(scope="module", params=["long", "whole"])
def world(request: pytest.FixtureRequest, bundle: Bundle, model: DeployedModel) -> World:
    planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 4.0))
    videos = long_videos(planter) if request.param == "long" else whole_videos(planter)
    weights = cache(bundle.scorer_weights)
    shards: dict[int, list[Shard]] = {}
    for count in COUNTS:
        galleries = [Gallery(bundle.manifest) for _ in range(count)]
        for n in range(count):
            if part := videos[n::count]:
                galleries[n].add(*together(part))
        shards[count] = [
            Shard(model, weights, gallery.snapshot(), PLANNER, Samples()) for gallery in galleries
        ]
    rng = np.random.default_rng(4)
    config = bundle.manifest.model
    queries = [planter.query()]
    for _ in range(4):
        near = planter.target + 0.7 * unit(
            rng.standard_normal((1, config.max_words, config.embed_dim))
        )
        words = unit(near)
        counts = np.array([config.max_words], np.int32)
        queries.append(Query(TextFeatures(words[:, 0], words, counts)))
    queries.append(Query(None, videos[5][1][:1]))
    queries.append(Query(queries[1].text, videos[9][1][:1], 0.3))
    words = unit(rng.standard_normal((BANK, config.max_words, config.embed_dim)))
    counts = np.full(BANK, config.max_words, np.int32)
    return World(shards, queries, QueryBank(TextFeatures(words[:, 0], words, counts)))


def named(video_id: str) -> str:
    """Return the id without what tells copies apart: rounding decides which of them is first."""
    return video_id.removesuffix(".copy")


def assert_same(found: SearchResults, expected: SearchResults) -> None:
    assert found.num_videos == expected.num_videos
    assert found.num_segments == expected.num_segments
    assert (found.method, found.note) == (expected.method, expected.note)
    assert [(named(hit.id), hit.segment) for hit in found] == [
        (named(hit.id), hit.segment) for hit in expected
    ]
    for a, b in zip(found, expected, strict=True):
        # Logits up to 100; blocks of another size round otherwise, by some steps of 8e-6.
        assert a.score == pytest.approx(b.score, rel=2e-6, abs=1e-5)
        assert a.best_frame_time_s == b.best_frame_time_s
        assert a.range == b.range
        assert set(map(named, a.near_identical)) == set(map(named, b.near_identical))
        assert [m.segment for m in a.moments] == [m.segment for m in b.moments]
        assert (a.confidence is None) == (b.confidence is None)
        if a.confidence is not None and b.confidence is not None:
            assert a.confidence == pytest.approx(b.confidence, abs=1e-4)


OPTIONS = st.fixed_dictionaries(
    {
        "k": st.integers(1, 25),
        "offset": st.sampled_from([0, 0, 3, 20]),
        "exact": st.booleans(),
        "candidates": st.sampled_from([20, 60, 300]),
        "where": st.sampled_from([None, "kind = 'k1'", "kind <> 'film' or duration_s > 100"]),
        "deduplicate": st.booleans(),
        "group": st.sampled_from(["video", "moment"]),
        "per_video": st.integers(1, 4),
        "nms": st.sampled_from([None, 0.3, 0.5]),
        "from_s": st.sampled_from([None, 9.0]),
        "confidence": st.booleans(),
    }
)


CASES = (OPTIONS, st.integers(0, 6), st.booleans())
QUIET = [HealthCheck.function_scoped_fixture]


def check(world: World, keywords: dict[str, object], number: int, has_bank: bool) -> None:
    query = world.queries[number]
    bank = world.bank if has_bank and query.text is not None else None
    options = SearchOptions(query_bank=bank, **keywords)  # type: ignore[arg-type]
    expected = world.search(1, query, options)
    for count in COUNTS[1:]:
        assert_same(world.search(count, query, options), expected)


@settings(max_examples=5, suppress_health_check=QUIET)
@given(*CASES)
def test_the_number_of_shards_changes_nothing(
    world: World, keywords: dict[str, object], number: int, has_bank: bool
) -> None:
    check(world, keywords, number, has_bank)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=QUIET)
@given(*CASES)
def test_the_number_of_shards_changes_nothing_in_many_cases(
    world: World, keywords: dict[str, object], number: int, has_bank: bool
) -> None:
    check(world, keywords, number, has_bank)


def test_a_global_cut_is_not_the_cuts_of_shards(world: World) -> None:
    """Every shard's own best 20 would score more than 20 rows, and could show others."""
    options = SearchOptions(5, exact=False, candidates=20, group="moment", nms=None)
    for count in COUNTS:
        found = world.search(count, world.queries[1], options)
        assert found.num_scored == 20


def test_one_video_is_found_in_whatever_shard(world: World) -> None:
    known = world.search(1, world.queries[0], SearchOptions(1))[0]
    for count in COUNTS:
        found = world.search(count, world.queries[0], SearchOptions(3, within=known.id))
        assert {hit.id for hit in found} == {known.id}
        with pytest.raises(GalleryError, match="no video 'nowhere' in the gallery"):
            world.search(count, world.queries[0], SearchOptions(3, within="nowhere"))


def test_a_file_name_in_two_shards_is_ambiguous(world: World) -> None:
    if world.search(1, world.queries[0], SearchOptions(1)).num_segments is None:
        pytest.skip("whole videos have names of their own")
    for count in COUNTS:
        with pytest.raises(InvalidArgumentError, match=r"'talk\.mkv' names 40 videos"):
            world.search(count, world.queries[0], SearchOptions(3, within="talk.mkv"))


def test_ties_of_several_shards_follow_the_ids(bundle: Bundle, model: DeployedModel) -> None:
    planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 4.0))
    rows, features = planter.video("x", [1.0])
    shards = []
    for name in ("d", "a", "c", "b"):
        gallery = Gallery(bundle.manifest)
        gallery.add([rows[0].model_copy(update={"id": name})], features)
        snapshot = gallery.snapshot()
        shards.append(Shard(model, bundle.scorer_weights, snapshot, PLANNER, Samples()))
    query, options = planter.query(), SearchOptions(exact=True)
    (found,) = search_shards([query], LocalShards(shards, [query], options), options, PLANNER)
    assert [hit.id for hit in found] == ["a", "b", "c", "d"]
