"""Searches of a gallery on the stand-in device find what searches on the CPU find."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy_scan import open_scans
from segment_samples import Planter, together

from stand_in_device import Device, install
from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.errors import ClosedError, DeviceMemoryError, SessionError
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.runtime.resident import residence as residence_module
from xclip_deploy.runtime.resident.residence import Residence
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import Query, QueryBank, Searcher, SearchOptions
from xclip_deploy.runtime.search import resident as resident_module
from xclip_deploy.runtime.search.planner import Planner, ScanSize
from xclip_deploy.runtime.search.ranked import texts_of
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.video.segmentation import Segmentation

MakeQueries = Callable[[int], list[Query]]
MakeSearcher = Callable[..., Searcher]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    stand_in = Device()
    install(monkeypatch, stand_in)
    yield stand_in
    stand_in.check_nothing_left()


class Unlearned(Planner):
    """A planner that keeps its guesses: the device is always worth it."""

    def learn(self, num_pairs: int, seconds: float) -> None:
        """Learn nothing."""

    def learn_scan(self, scan: ScanSize, num_passes: int, seconds: float) -> None:
        """Learn nothing."""


@pytest.fixture(scope="module")
def open_model(bundle: Bundle) -> Iterator[Callable[..., DeployedModel]]:
    """Open a model with options, once each."""
    opened: dict[tuple[Any, ...], DeployedModel] = {}

    def open_once(**options: Any) -> DeployedModel:
        key = tuple(sorted(options.items()))
        if key not in opened:
            opened[key] = DeployedModel(bundle, SessionOptions(**options))
        return opened[key]

    yield open_once
    for each in opened.values():
        each.close()


@pytest.fixture
def make_searcher(
    device: Device, bundle: Bundle, model: DeployedModel, open_model: Callable[..., DeployedModel]
) -> Iterator[MakeSearcher]:
    """Make a searcher with a residence on the stand-in; ``auto`` is one of a model on a GPU."""
    made: list[Residence] = []
    weights = bundle.scorer_weights()

    def make(
        choice: Any = True,
        *,
        has_products: bool = True,
        planner: Planner | None = None,
        **options: Any,
    ) -> Searcher:
        opened = open_model(resident_gallery=choice, **options)
        scan, products = open_scans(device, model)
        placed = opened.placement
        if choice == "auto":  # as where the model runs on a GPU
            opened._loader.placement = replace(placed, device="cuda")
        residence = Residence(opened, scan, products if has_products else None)
        opened._loader.placement = placed
        made.append(residence)
        planner = planner or Unlearned()
        return Searcher(opened, lambda: weights, planner=planner, residence=residence)

    yield make
    for each in made:
        each.close()


def assert_same(found: Sequence[SearchResults], expected: Sequence[SearchResults]) -> None:
    """Equal hits in every respect; scores within the error of a scan."""
    for ours, theirs in zip(found, expected, strict=True):
        assert [(hit.id, hit.segment) for hit in ours] == [(hit.id, hit.segment) for hit in theirs]
        assert ours.num_videos == theirs.num_videos
        assert ours.num_segments == theirs.num_segments
        assert ours.note == theirs.note
        for hit, other in zip(ours, theirs, strict=True):
            assert hit.score == pytest.approx(other.score, abs=3e-4)
            assert hit.confidence == pytest.approx(other.confidence, abs=1e-3)
            assert (hit.rank, hit.near_identical) == (other.rank, other.near_identical)
            assert (hit.best_frame_time_s, hit.range) == (other.best_frame_time_s, other.range)
            assert (hit.grains is None) == (other.grains is None)
            if hit.grains is not None and other.grains is not None:
                assert dict(hit.grains) == pytest.approx(dict(other.grains), abs=3e-4)
            assert [m.segment for m in hit.moments] == [m.segment for m in other.moments]


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


def test_a_large_gallery_waits_for_warm_up(
    make_searcher: MakeSearcher,
    gallery: Gallery,
    make_queries: MakeQueries,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residence_module, "AT_SEARCH_BYTES", 1000)
    auto, snapshot, options = make_searcher("auto"), gallery.snapshot(), SearchOptions(k=5)
    (found,) = auto.search(make_queries(1), snapshot, options)
    assert "are uploaded by warm_up()" in found.reason
    assert auto._residence is not None
    auto._residence.warm_up(snapshot)
    assert auto._residence.holds_all(snapshot)
    assert "all features" in auto._residence.describe()
    (found,) = auto.search(make_queries(1), snapshot, options)
    assert found.reason.startswith("resident on cuda:0")


def test_a_single_search_does_not_wait_for_an_upload(
    device: Device,
    make_searcher: MakeSearcher,
    gallery: Gallery,
    make_queries: MakeQueries,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residence_module, "AT_ONCE_BYTES", 1000)
    auto, snapshot, options = make_searcher("auto"), gallery.snapshot(), SearchOptions(k=5)
    (found,) = auto.search(make_queries(1), snapshot, options)
    assert "are uploaded by the next search, or warm_up()" in found.reason
    assert device.bytes_to_device == 0
    (found,) = auto.search(make_queries(1), snapshot, options)
    assert found.reason.startswith("resident on cuda:0")


@pytest.mark.parametrize("status", ["cudaErrorLaunchFailure", "cudaErrorMemoryAllocation"])
def test_a_failure_of_a_scan(
    device: Device,
    searcher: Searcher,
    make_searcher: MakeSearcher,
    gallery: Gallery,
    make_queries: MakeQueries,
    status: str,
) -> None:
    """The search goes on the CPU or fails, as was chosen; a lost device is given up."""
    queries, snapshot, options = make_queries(2), gallery.snapshot(), SearchOptions(k=5)
    expected = searcher.search(queries, snapshot, options)
    is_lost = status == "cudaErrorLaunchFailure"
    auto, must = make_searcher("auto"), make_searcher(True)
    for each in (auto, must):
        assert_same(each.search(queries, snapshot, options), expected)
    device.fail("scan", status)
    found = auto.search(queries, snapshot, options)
    assert_same(found, expected)
    assert "not resident on cuda:0: " in found[0].reason
    device.fail("scan", status)
    with pytest.raises(SessionError if is_lost else DeviceMemoryError):
        must.search(queries, snapshot, options)
    for each in (auto, must):
        later = each.search(queries, snapshot, options)
        assert_same(later, expected)
        assert ("not resident on cuda:0: the GPU failed" in later[0].reason) == is_lost
        assert later[0].reason.startswith("resident on cuda:0") != is_lost
    if is_lost:
        assert device.used_bytes == 0


@pytest.mark.parametrize(
    "function",
    [
        "cudaMalloc",
        "cudaHostAlloc",
        "cudaMemcpyAsync",
        "cudaStreamSynchronize",
        "cudaMemGetInfo",
        "cudaStreamCreateWithFlags",
        "cudaSetDevice",
        "scan",
    ],
)
def test_a_device_that_is_lost_at_any_call(
    device: Device,
    searcher: Searcher,
    make_searcher: MakeSearcher,
    bundle: Bundle,
    videos: list[GalleryVideo],
    features: VideoFeatures,
    make_queries: MakeQueries,
    function: str,
) -> None:
    """With ``auto``, every search is right, whichever call fails; nothing stays behind."""
    queries, options = make_queries(1), SearchOptions(k=5)
    small = Gallery(bundle.manifest)
    small.add(videos[:20], features[:20])
    before = small.snapshot()
    small.add(videos[20:24], features[20:24])
    small.remove(["v003"])
    after = small.snapshot()
    expected = [searcher.search(queries, each, options) for each in (before, after)]
    for number in range(40):
        auto = make_searcher("auto")
        device.fail(function, "cudaErrorLaunchFailure", number)
        for snapshot, right in zip((before, after), expected, strict=True):
            assert_same(auto.search(queries, snapshot, options), right)
        has_failed = not device._faults[function]
        device._faults.clear()
        assert auto._residence is not None
        auto._residence.close()
        assert device.used_bytes == 0
        if not has_failed:
            assert number > 0
            return
    pytest.fail("there were more calls than expected")


@pytest.mark.parametrize("driver", [0, 11080])
def test_a_driver_that_is_missing_or_too_old(
    device: Device,
    make_searcher: MakeSearcher,
    gallery: Gallery,
    make_queries: MakeQueries,
    driver: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    device.driver_version = driver
    auto, snapshot, options = make_searcher("auto"), gallery.snapshot(), SearchOptions(k=5)
    for _ in range(3):
        (found,) = auto.search(make_queries(1), snapshot, options)
        assert "; not resident on cuda:0: " in found.reason
        assert "driver" in found.reason
    assert len([record for record in caplog.records if "no gallery is kept" in record.message]) == 1
    with pytest.raises(SessionError, match="driver"):
        make_searcher(True).search(make_queries(1), snapshot, options)


def test_a_bundle_without_kernels_says_so(
    device: Device, bundle: Bundle, gallery: Gallery, make_queries: MakeQueries
) -> None:
    options = SessionOptions(resident_gallery=True)
    weights = bundle.scorer_weights()
    with DeployedModel(bundle, options) as opened:
        residence = Residence(opened)
        resident = Searcher(opened, lambda: weights, residence=residence)
        with pytest.raises(SessionError, match="has no scan kernels"):
            resident.search(make_queries(1), gallery.snapshot(), SearchOptions(k=5))
        residence.close()
        with pytest.raises(ClosedError):
            resident.search(make_queries(1), gallery.snapshot(), SearchOptions(k=5))
    assert device.used_bytes == 0


# -- changes -------------------------------------------------------------------------------


def test_threads_search_while_others_write(
    make_searcher: MakeSearcher,
    searcher: Searcher,
    bundle: Bundle,
    videos: list[GalleryVideo],
    features: VideoFeatures,
    make_queries: MakeQueries,
    tmp_path: Path,
) -> None:
    """Each search answers from its snapshot; it never waits for ever, and never mixes states."""
    resident, queries, is_done = make_searcher(), make_queries(2), threading.Event()
    options = SearchOptions(k=6, exact=True)
    with closing(Gallery.open(tmp_path / "g", bundle.manifest, create=True)) as changing:
        changing.add(videos[:60], features[:60])

        def run() -> list[tuple[Any, list[SearchResults]]]:
            found: list[tuple[Any, list[SearchResults]]] = []
            while not is_done.is_set() or not found:
                snapshot = changing.snapshot()
                found.append((snapshot, resident.search(queries, snapshot, options)))
            return found[:: max(1, len(found) // 4)]

        with ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(run) for _ in range(3)]
            try:
                for n in range(60, 72, 2):
                    changing.add(videos[n : n + 2], features[n : n + 2])
                    changing.remove([f"v{n - 60:03d}"])
            finally:
                is_done.set()
            found = [pair for job in jobs for pair in job.result()]
        for snapshot, results in found:
            assert all(hits.reason.startswith("asked for; resident") for hits in results)
            assert_same(results, searcher.search(queries, snapshot, options))


@given(data=st.data())
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_changes(
    data: st.DataObject,
    make_searcher: MakeSearcher,
    searcher: Searcher,
    bundle: Bundle,
    videos: list[GalleryVideo],
    features: VideoFeatures,
    make_queries: MakeQueries,
) -> None:
    """Additions, removals and updates in any order: the device and the CPU agree."""
    resident, changing, known = make_searcher(), Gallery(bundle.manifest), set[int]()
    queries = make_queries(2)
    numbers = st.sets(st.integers(0, len(videos) - 1), min_size=1, max_size=12)
    kept = []
    for _ in range(data.draw(st.integers(1, 4))):
        chosen = sorted(data.draw(numbers))
        change = data.draw(st.sampled_from(["add", "remove", "update"]))
        if change == "add":
            shift = data.draw(st.integers(0, 3))  # new features for videos that are there
            rows = [(n + shift) % len(videos) for n in chosen]
            changing.add([videos[n] for n in chosen], features[rows], replace=True)
            known |= set(chosen)
        elif change == "remove":
            changing.remove([videos[n].id for n in chosen if n in known])
            known -= set(chosen)
        else:
            there = [videos[n] for n in chosen if n in known]
            changing.update([v.model_copy(update={"metadata": {"number": 1}}) for v in there])
        kept.append(changing.snapshot())
        if data.draw(st.booleans()):
            kept.pop(0)
        for snapshot in kept:
            options = SearchOptions(k=8, exact=True)
            found = resident.search(queries, snapshot, options)
            expected = searcher.search(queries, snapshot, options)
            for ours, theirs in zip(found, expected, strict=True):
                assert [hit.score for hit in ours] == pytest.approx(
                    [hit.score for hit in theirs], abs=3e-4
                )
                scores = [hit.score for hit in theirs]
                is_tied = any(np.diff(scores) > -3e-4)
                if not is_tied:
                    assert [hit.id for hit in ours] == [hit.id for hit in theirs]
