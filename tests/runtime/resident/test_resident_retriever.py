"""A retriever with scan kernels, on the stand-in device and where there is one on a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from command_line import runner

from stand_in_device import Device
from stand_in_device.kernels import write_kernels
from xclip_deploy import Bundle, GalleryVideo, Retriever
from xclip_deploy.errors import ClosedError, SessionError
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.store import Nearest
from xclip_deploy.runtime.nvidia_driver import why_no_gpu
from xclip_deploy.runtime.resident import self_test
from xclip_deploy.runtime.resident.on_device import OnDevice
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import Query, SearchOptions
from xclip_deploy.runtime.search.planner import Planner
from xclip_deploy.runtime.sessions import SessionOptions

TEXT = "a dog on a leash"
COUNT = 40


@pytest.fixture
def with_kernels(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The bundle at a path of its own, with scan kernels for the stand-in."""
    monkeypatch.setattr(self_test, "_VIDEOS", 3)
    monkeypatch.setattr(self_test, "_TEXTS", 1)
    own = linked(bundle, tmp_path)
    write_kernels(own)
    return own


def linked(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle at a path of its own: its files are links."""
    path = folder / "bundle"
    path.mkdir()
    for file in bundle.path.iterdir():
        (path / file.name).symlink_to(file)
    return replace(bundle, path=path)


def unit(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Vectors of length 1. The modules of samples import LanceDB, which a GPU machine may lack."""
    found: npt.NDArray[Any] = array / np.linalg.norm(array, axis=-1, keepdims=True)
    return found


def samples(bundle: Bundle, count: int = COUNT) -> tuple[list[GalleryVideo], VideoFeatures]:
    config, rng = bundle.manifest.model, np.random.default_rng(3)
    frames = unit(rng.standard_normal((count, config.max_frames, config.embed_dim)))
    videos = [
        GalleryVideo(id=f"v{n}", frame_times_s=tuple(map(float, range(config.max_frames))))
        for n in range(count)
    ]
    counts = np.full(count, config.max_frames, np.int32)
    return videos, VideoFeatures(
        unit(frames.mean(1)).astype(np.float32), frames.astype(np.float32), counts
    )


def near(found: SearchResults, expected: SearchResults) -> None:
    assert [hit.id for hit in found] == [hit.id for hit in expected]
    for hit, other in zip(found, expected, strict=True):
        assert hit.score == pytest.approx(other.score, abs=3e-3)
        assert hit.grains is not None
        assert other.grains is not None
        assert dict(hit.grains) == pytest.approx(dict(other.grains), abs=3e-4)


def test_a_retriever(device: Device, with_kernels: Bundle) -> None:
    videos, features = samples(with_kernels)
    session = SessionOptions(resident_gallery=True)
    with (
        Retriever(with_kernels, session=session) as resident,
        Retriever(with_kernels) as plain,
    ):
        assert resident.residence.describe() == ("not resident on cuda:0: nothing was uploaded yet")
        assert plain.residence.describe() == ""
        for retriever in (resident, plain):
            retriever.add_features(videos[:30], features[:30])
        resident.warm_up()
        assert resident.residence.describe().startswith("resident on cuda:0: ")
        for retriever in (resident, plain):
            retriever.add_features(videos[30:], features[30:])
            retriever.remove("v2")
        # The interpreter is so slow that a planner would never choose it again.
        resident._searcher._planner = Planner()
        found = resident.search(TEXT, 4, exact=True)
        assert found.reason.startswith("asked for; resident on cuda:0")
        near(found, plain.search(TEXT, 4, exact=True))
        found = resident.search(TEXT, 4, exact=False, candidates=5)
        assert found.reason == "asked for; first stage resident on cuda:0"
        near(found, plain.search(TEXT, 4, exact=False, candidates=5))
        assert device.used_bytes > 0
    assert device.used_bytes == 0
    with pytest.raises(ClosedError):
        resident.search(TEXT)


def test_closing_waits_for_searches(device: Device, with_kernels: Bundle) -> None:
    """Memory that a scan reads is freed after the scan."""
    videos, features = samples(with_kernels, 9)
    inside, may_go_on = threading.Event(), threading.Event()
    found: list[Nearest] = []

    def search(on_device: OnDevice | None, why: str) -> str:
        assert on_device is not None
        inside.set()
        assert may_go_on.wait(60)
        query = features.video_features[:1]
        found.extend(on_device.nearest(query, 3, on_device.allowed(None)))
        return why

    with Retriever(with_kernels, session=SessionOptions(resident_gallery=True)) as retriever:
        retriever.add_features(videos, features)
        retriever.warm_up()
        residence, snapshot = retriever.residence, retriever.gallery.snapshot()
        with ThreadPoolExecutor(2) as pool:
            searching = pool.submit(residence.run, snapshot, search)
            assert inside.wait(60)
            closing = pool.submit(residence.close)
            with pytest.raises(FutureTimeoutError):
                closing.result(0.05)
            assert device.used_bytes > 0
            may_go_on.set()
            assert searching.result() == ""
            closing.result()
        assert device.used_bytes == 0
    assert found[0].rows[0] == 0


def in_a_fork(work: Callable[[], list[str]]) -> list[str]:
    """What a function returns in a fork of this process."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other libraries
        child = os.fork()
    if child == 0:
        try:
            os.write(write, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        found: list[str] = json.loads(answer.read())
    os.waitpid(child, 0)
    return found


def outcome(use: Callable[[], object]) -> str:
    """The result of a function, or its refusal."""
    try:
        return str(use())
    except SessionError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("must", [True, False])
def test_a_fork_leaves_the_gpu_alone(device: Device, with_kernels: Bundle, must: bool) -> None:
    """CUDA does not work in a forked process, and the memory is the parent's."""
    session = SessionOptions(resident_gallery=True if must else "auto")
    videos, features = samples(with_kernels, 9)
    with Retriever(with_kernels, session=session) as retriever:
        residence = retriever.residence
        residence._is_wanted = True  # also with "auto", where the encoders run on a CPU
        retriever.add_features(videos, features)
        retriever.warm_up()
        calls = len(device.calls)

        def child() -> list[str]:
            snapshot = retriever.gallery.snapshot()
            found = [residence.describe(), str(residence.holds_all(snapshot))]
            found.append(outcome(lambda: residence.run(snapshot, lambda on, why: f"{on} {why}")))
            found.append(outcome(lambda: residence.warm_up(snapshot)))
            residence.close()
            return [*found, str(len(device.calls) - calls)]

        said, holds, ran, warmed, touched = in_a_fork(child)
        assert said.startswith("not resident on cuda:0: this process was forked from the one that")
        assert (holds, touched) == ("False", "0")
        if must:
            assert ran == warmed
            assert ran.startswith("refused: this process was forked")
            assert ran.endswith("; open a retriever in this process")
        else:
            assert ran.startswith("None not resident on cuda:0: this process was forked")
            assert warmed == "None"
        assert residence.describe().startswith("resident on cuda:0: ")
    assert device.used_bytes == 0


@pytest.mark.parametrize("where", ["memory", "lancedb"])
def test_added_videos_go_to_the_gpu_at_once(
    device: Device, with_kernels: Bundle, tmp_path: Path, where: str
) -> None:
    """No search reads them back, unless the GPU failed meanwhile."""
    path = None if where == "memory" else tmp_path / "gallery"
    videos, features = samples(with_kernels)
    model = with_kernels.manifest.model
    row_bytes = 2 * model.embed_dim * (model.max_frames + 1)
    session = SessionOptions(resident_gallery=True)
    with (
        Retriever(with_kernels, path, create=path is not None, session=session) as resident,
        Retriever(with_kernels) as plain,
    ):
        for retriever in (resident, plain):
            retriever.add_features(videos[:30], features[:30])
        assert device.bytes_to_device == 0, "the first search decides"
        resident.warm_up()
        before = device.bytes_to_device
        resident.add_features(videos[30:36], features[30:36])
        assert device.bytes_to_device - before == 6 * row_bytes
        plain.add_features(videos[30:36], features[30:36])
        before = device.bytes_to_device
        assert resident.residence._prepare(resident.gallery.snapshot())[1] == ""
        assert device.bytes_to_device == before
        for _ in range(2):
            device.fail("cudaMemcpyAsync", "cudaErrorLaunchFailure")
        resident.add_features(videos[36:], features[36:])  # nothing is lost with the GPU
        plain.add_features(videos[36:], features[36:])
        with pytest.raises(SessionError):
            resident.search(TEXT, 4, exact=True)
        near(resident.search(TEXT, 4, exact=True), plain.search(TEXT, 4, exact=True))


def test_the_command_line(
    device: Device, with_kernels: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A search says where the gallery is; what cannot be had is refused."""
    run, gallery = runner(capfd), tmp_path / "gallery"
    with Retriever(with_kernels, gallery, create=True, device="cpu") as retriever:
        retriever.add_features(*samples(with_kernels))
    places = ("--bundle", with_kernels.path, "--gallery", gallery, "-k", 3)
    outcome = run("search", TEXT, *places, "--resident-gallery", "yes", "--exact")
    assert outcome.status == 0
    assert "exact: 40 of 40 videos scored; asked for; resident on cuda:0" in outcome.out
    (found,) = run("search", TEXT, *places, "--device", "cpu", "--json").json()
    assert "resident" not in found["reason"]
    outcome = run("search", TEXT, *places, "--resident-gallery", "yes", "--device", "cpu")
    assert outcome.status != 0
    assert "resident_gallery is True with device 'cpu'" in outcome.err
    outcome = run(
        "search", TEXT, *places, "--resident-gallery", "yes", "--gallery-memory-gb", "0.000001"
    )
    assert outcome.status == 9
    assert "a gallery of 40 rows needs" in outcome.err
    assert device.used_bytes == 0


def test_a_bundle_without_kernels_on_the_command_line(
    device: Device, bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gallery = tmp_path / "gallery"
    with Retriever(bundle, gallery, create=True, device="cpu") as retriever:
        retriever.add_features(*samples(bundle))
    places = ("--bundle", bundle.path, "--gallery", gallery)
    outcome = runner(capfd)("search", TEXT, *places, "--resident-gallery", "yes")
    assert outcome.status == 9
    assert "has no scan kernels for GPUs; run: xclip-deploy build-scan" in outcome.err
    assert device.used_bytes == 0


@pytest.mark.gpu
def test_on_a_gpu(bundle: Bundle, tmp_path: Path) -> None:
    """The same on a real GPU, with kernels that are compiled for it."""
    if (missing := why_no_gpu()) is not None:
        pytest.skip(f"needs an NVIDIA GPU: {missing}")
    for module in ("triton", "cuda"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (extra: scan)")
    from xclip_deploy.export.scan_kernels import build_scan
    from xclip_deploy.runtime.cuda.runtime_api import open_cuda

    own = linked(bundle, tmp_path)
    build_scan(own, compute_capabilities=[open_cuda(extra="resident").gpu().compute_capability])
    videos, features = samples(bundle, 2000)
    session = SessionOptions(resident_gallery=True)
    with (
        Retriever(own, session=session) as resident,
        Retriever(own, device="cpu") as plain,
    ):
        for retriever in (resident, plain):
            retriever.add_features(videos[:1500], features[:1500])
        resident.warm_up()
        assert resident.residence.describe().startswith("resident on cuda:0: ")
        for retriever in (resident, plain):
            retriever.add_features(videos[1500:], features[1500:])
            retriever.remove([f"v{n}" for n in range(0, 900, 3)])
        resident._searcher._planner = Planner()
        # The same query for both: an encoder on the GPU would round in another way.
        text = plain.encode_texts([TEXT])
        for options in (
            SearchOptions(k=20, exact=True),
            SearchOptions(k=20, exact=False),
            SearchOptions(k=400, exact=True),
        ):
            found, expected = (
                each._searcher.search([Query(text)], each.gallery.snapshot(), options)[0]
                for each in (resident, plain)
            )
            assert "resident on cuda:0" in found.reason
            scores = [hit.score for hit in expected]
            assert [hit.score for hit in found] == pytest.approx(scores, abs=3e-3)
            by_id = {hit.id: hit.score for hit in expected}
            for hit in found[:10]:
                assert by_id[hit.id] == pytest.approx(hit.score, abs=3e-3)
