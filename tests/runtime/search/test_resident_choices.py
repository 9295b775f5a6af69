"""Where searches of a resident gallery run, what does not fit, and what fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy_scan import assert_same

from stand_in_device import Device
from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.errors import ClosedError, DeviceMemoryError, SessionError
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.runtime.resident import residence as residence_module
from xclip_deploy.runtime.resident.residence import Residence
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import Query, Searcher, SearchOptions
from xclip_deploy.runtime.sessions import SessionOptions

MakeQueries = Callable[[int], list[Query]]


MakeSearcher = Callable[..., Searcher]


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
