"""Searches of a gallery on the stand-in device find what searches on the CPU find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy_scan import assert_same
from segment_samples import Planter, together

from stand_in_device import Device
from xclip_deploy import Bundle
from xclip_deploy.errors import DeviceMemoryError
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.search import Query, QueryBank, Searcher, SearchOptions
from xclip_deploy.runtime.search import resident as resident_module
from xclip_deploy.runtime.search.ranked import texts_of
from xclip_deploy.runtime.video.segmentation import Segmentation

MakeQueries = Callable[[int], list[Query]]
MakeSearcher = Callable[..., Searcher]


OPTIONS: list[dict[str, Any]] = [
    {"k": 10},
    {"k": 5, "offset": 7},
    {"k": 120},
    {"k": 9, "where": "source = 'cam1' and number > 10"},
    {"k": 9, "where": "number > 1000"},
    {"k": 10, "deduplicate": True},
    {"k": 10, "min_score": 8.0},
    {"k": 10, "within": "v014"},
    {"k": 10, "from_s": 20, "to_s": 60},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("exact", [True, False])
def test_whole_videos(
    searcher: Searcher,
    make_searcher: MakeSearcher,
    gallery: Gallery,
    make_queries: MakeQueries,
    options: dict[str, Any],
    exact: bool,
) -> None:
    queries, snapshot = make_queries(3), gallery.snapshot()
    if not exact:
        options = {**options, "candidates": 30}
    chosen = SearchOptions(exact=exact, **options)
    expected = searcher.search(queries, snapshot, chosen)
    found = make_searcher().search(queries, snapshot, chosen)
    assert_same(found, expected)
    assert found[0].method == expected[0].method
    assert found[0].num_scored == expected[0].num_scored
    if "within" not in options:
        assert "resident on cuda:0" in found[0].reason


def test_batches_larger_than_a_pass(
    searcher: Searcher, make_searcher: MakeSearcher, gallery: Gallery, make_queries: MakeQueries
) -> None:
    queries, options = make_queries(40), SearchOptions(k=4, exact=True)
    snapshot = gallery.snapshot()
    found = make_searcher().search(queries, snapshot, options)
    assert_same(found, searcher.search(queries, snapshot, options))


def test_banks_confidences_and_videos(
    searcher: Searcher, make_searcher: MakeSearcher, gallery: Gallery, make_queries: MakeQueries
) -> None:
    query, *others = make_queries(220)
    snapshot, resident = gallery.snapshot(), make_searcher()
    bank = QueryBank(texts_of(others))
    for options in (
        SearchOptions(k=8, exact=True, query_bank=bank, confidence=True),
        SearchOptions(k=8, exact=False, query_bank=bank),
    ):
        expected = searcher.search([query], snapshot, options)
        assert_same(resident.search([query], snapshot, options), expected)
    video = snapshot.features(snapshot.rows()[33:34])
    both = replace(query, video=video, video_weight=0.4)
    alone = Query(None, video)
    for options in (SearchOptions(k=8, exact=True), SearchOptions(k=8, exact=False)):
        for each in (both, alone):
            found = resident.search([each], snapshot, options)
            assert_same(found, searcher.search([each], snapshot, options))
            assert "resident on cuda:0" in found[0].reason


# -- long videos ---------------------------------------------------------------------------


class World:
    """A video of many segments that fit best, and others of few; a clip without times."""

    def __init__(self, bundle: Bundle) -> None:
        planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 4.0))
        rng = np.random.default_rng(1)
        parts = [planter.video("crowd", rng.uniform(1.5, 2.0, 300).tolist(), kind="film")]
        for n in range(12):
            likeness = rng.uniform(0, 0.2, 5)
            likeness[n % 5] = 1.3 - 0.03 * n
            parts.append(planter.video(f"t{n:02d}", likeness.tolist(), kind=f"k{n % 2}"))
        (clip,), features = planter.video("clip", [1.45], kind="k0")
        parts.append(([clip.model_copy(update={"start_s": None, "end_s": None})], features))
        self.rows, self.features = together(parts)
        self.query = planter.query()


@pytest.fixture(scope="module")
def world(bundle: Bundle) -> World:
    return World(bundle)


@pytest.fixture(scope="module", params=["memory", "lancedb"])
def long_gallery(
    request: pytest.FixtureRequest,
    bundle: Bundle,
    world: World,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gallery]:
    path = tmp_path_factory.mktemp("resident") / "gallery"
    opened = Gallery(bundle.manifest)
    if request.param == "lancedb":
        opened = Gallery.open(path, bundle.manifest, create=True)
    opened.add(world.rows, world.features)
    yield opened
    opened.close()


LONG_OPTIONS: list[dict[str, Any]] = [
    {"k": 10},
    {"k": 14},
    {"k": 3, "per_video": 5},
    {"k": 3, "per_video": 5, "nms": None},
    {"k": 2, "offset": 2, "where": "kind = 'k0'"},
    {"k": 10, "group": "moment"},
    {"k": 10, "group": "moment", "offset": 20, "nms": None},
    {"k": 10, "within": "crowd"},
    {"k": 10, "from_s": 12, "to_s": 40},
    {"k": 5, "deduplicate": 0.9},
]


@pytest.mark.parametrize("options", LONG_OPTIONS, ids=str)
def test_long_videos(
    searcher: Searcher,
    make_searcher: MakeSearcher,
    long_gallery: Gallery,
    world: World,
    options: dict[str, Any],
) -> None:
    snapshot, resident = long_gallery.snapshot(), make_searcher()
    for exact in (True, False):
        chosen = SearchOptions(exact=exact, **options)
        found = resident.search([world.query], snapshot, chosen)
        expected = searcher.search([world.query], snapshot, chosen)
        assert_same(found, expected)
        assert found[0].num_scored == expected[0].num_scored


def test_pages_that_the_best_rows_do_not_fill(
    searcher: Searcher,
    make_searcher: MakeSearcher,
    long_gallery: Gallery,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However few rows the GPU returns, videos and their moments are all there."""
    snapshot, resident = long_gallery.snapshot(), make_searcher()
    for most, scans in ((40, 4), (40, 0), (320, 1)):
        monkeypatch.setattr(resident_module, "MAX_COUNT", most)
        monkeypatch.setattr(resident_module, "_MOST_SCANS", scans)
        for options in LONG_OPTIONS[:5]:
            chosen = SearchOptions(exact=True, **options)
            expected = searcher.search([world.query], snapshot, chosen)
            assert_same(resident.search([world.query], snapshot, chosen), expected)


# -- choices and failures ------------------------------------------------------------------


def test_the_plan_takes_the_gpu_where_it_is_cheaper(
    make_searcher: MakeSearcher, gallery: Gallery, make_queries: MakeQueries
) -> None:
    queries, snapshot = make_queries(1), gallery.snapshot()
    resident = make_searcher()
    (first,) = resident.search(queries, snapshot, SearchOptions(k=3))
    assert first.method == "exact"
    assert first.reason.startswith("resident on cuda:0: scoring all takes")
    assert first.reason.endswith("(assumed)")
    (asked,) = make_searcher().search(queries, snapshot, SearchOptions(k=3, exact=True))
    assert asked.reason.startswith("asked for; resident on cuda:0")
    (staged,) = make_searcher().search(queries, snapshot, SearchOptions(k=3, exact=False))
    assert staged.reason == "asked for; first stage resident on cuda:0"


def test_without_kernels_for_products_the_first_stage_stays_on_the_cpu(
    searcher: Searcher, make_searcher: MakeSearcher, gallery: Gallery, make_queries: MakeQueries
) -> None:
    (query,), snapshot = make_queries(1), gallery.snapshot()
    resident = make_searcher(has_products=False)
    video = snapshot.features(snapshot.rows()[33:34])
    for each in (query, replace(query, video=video, video_weight=0.4), Query(None, video)):
        for exact in (True, False):
            options = SearchOptions(k=5, exact=exact, candidates=30)
            found = resident.search([each], snapshot, options)
            assert_same(found, searcher.search([each], snapshot, options))


def test_what_does_not_fit_is_searched_in_two_stages(
    device: Device,
    searcher: Searcher,
    make_searcher: MakeSearcher,
    gallery: Gallery,
    make_queries: MakeQueries,
) -> None:
    queries, snapshot = make_queries(2), gallery.snapshot()
    dim = snapshot.features(snapshot.rows()[:1]).video_features.shape[1]
    resident = make_searcher(gallery_memory_bytes=4 * dim * len(snapshot))
    options = SearchOptions(k=5, exact=False, candidates=30)
    found = resident.search(queries, snapshot, options)
    assert_same(found, searcher.search(queries, snapshot, options))
    assert "first stage resident on cuda:0, as frames do not fit" in found[0].reason
    assert device.most_used_bytes <= 4 * dim * len(snapshot)
    residence = resident._residence
    assert residence is not None
    assert "whole videos alone" in residence.describe()
    exact = SearchOptions(k=5, exact=True)
    found = resident.search(queries, snapshot, exact)
    assert_same(found, searcher.search(queries, snapshot, exact))


def test_a_gallery_that_does_not_fit_at_all(
    device: Device,
    searcher: Searcher,
    make_searcher: MakeSearcher,
    gallery: Gallery,
    make_queries: MakeQueries,
) -> None:
    queries, snapshot, options = make_queries(1), gallery.snapshot(), SearchOptions(k=5)
    with pytest.raises(DeviceMemoryError, match=r"a gallery of 120 rows needs .* of GPU memory"):
        make_searcher(True, gallery_memory_bytes=1000).search(queries, snapshot, options)
    auto = make_searcher("auto", gallery_memory_bytes=1000)
    found = auto.search(queries, snapshot, options)
    assert_same(found, searcher.search(queries, snapshot, options))
    assert "not resident on cuda:0: a gallery of 120 rows needs" in found[0].reason
    assert device.used_bytes == 0


# -- changes -------------------------------------------------------------------------------
