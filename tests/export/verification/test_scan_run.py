"""The scan kernels under verification, on the stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from stand_in_device import Device, install
from stand_in_device.kernels import write_kernels
from xclip_deploy import Bundle, verify_bundle
from xclip_deploy.errors import SessionError
from xclip_deploy.export.verification.certificate import SkippedRun
from xclip_deploy.export.verification.scan_run import open_scan_run
from xclip_deploy.export.verification.verifying import _try_scan
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.manifest import Precision
from xclip_deploy.runtime.resident.gpu_scan import GpuScan


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """The stand-in; at the end nothing may be left on it."""
    stand_in = Device()
    install(monkeypatch, stand_in)
    yield stand_in
    stand_in.check_nothing_left()


def features(bundle: Bundle, texts: int, videos: int) -> tuple[TextFeatures, VideoFeatures]:
    """Random features of unit length."""
    model, rng = bundle.manifest.model, np.random.default_rng(0)

    def unit(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        array = rng.standard_normal((*shape, model.embed_dim)).astype(np.float32)
        lengths: npt.NDArray[np.float32] = np.linalg.norm(array, axis=-1, keepdims=True)
        return (array / lengths).astype(np.float32)

    def rounded(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return unit(*shape).astype(np.float16).astype(np.float32)

    words = rng.integers(2, model.max_words + 1, texts).astype(np.int32)
    frames = rng.integers(1, model.max_frames + 1, videos).astype(np.int32)
    return (
        TextFeatures(unit(texts), unit(texts, model.max_words), words),
        VideoFeatures(rounded(videos), rounded(videos, model.max_frames), frames),
    )


def test_the_scan_is_a_run(device: Device, bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    write_kernels(bundle, [(8, 6), (8, 9), (9, 0)], ptx=(8, 0))
    with open_scan_run(bundle, 4, 1) as run:
        assert run.identity.name == "fp16 scan cuda:0"
        assert run.identity.precision is Precision.FP16
        names = ("query", "frames", "video", "digit", "collect")
        # Code for other GPUs did not run, and is not certified.
        assert [*run.identity.artefacts] == [f"kernels/scan/{n}_kernel-sm89.cubin" for n in names]
        scores = run.matcher.score(*features(bundle, 2, 5))
        assert scores.logits.shape == (2, 5)
        assert list(scores.grains) == [grain.value for grain in bundle.manifest.model.grains]
        frames = np.zeros((2, *[bundle.manifest.preprocessing.image_size] * 2, 3), np.uint8)
        encoded = run.matcher.encode_videos([frames])
        half = encoded.video_features.astype(np.float16)
        np.testing.assert_array_equal(encoded.video_features, half.astype(np.float32))


def test_a_scan_that_is_off_breaks_off(
    device: Device, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(bundle_copy)
    write_kernels(bundle)
    honest = GpuScan.all

    def wrong(scan: GpuScan, *arguments: object) -> object:
        found = honest(scan, *arguments)  # type: ignore[arg-type]
        found["frame_word"][0, 1] += 1e-3
        return found

    monkeypatch.setattr(GpuScan, "all", wrong)
    with (
        open_scan_run(bundle, 4, 1) as run,
        pytest.raises(SessionError, match=r"the scan's frame_word is off by 0.001 from .* --force"),
    ):
        run.matcher.score(*features(bundle, 1, 3))


def test_a_wrong_choice_of_the_best_breaks_off(
    device: Device, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(bundle_copy)
    write_kernels(bundle)
    honest = GpuScan.best

    def wrong(scan: GpuScan, *arguments: object) -> object:
        (found,) = honest(scan, *arguments)  # type: ignore[arg-type]
        return [replace(found, slots=found.slots[::-1].copy())]

    monkeypatch.setattr(GpuScan, "best", wrong)
    expected = "the scan's best videos are not those of its highest scores; run: .* --force"
    with open_scan_run(bundle, 4, 1) as run, pytest.raises(SessionError, match=expected):
        run.matcher.score(*features(bundle, 1, 3))


def test_what_cannot_run_is_skipped_with_the_reason(
    device: Device, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(bundle_copy)
    write_kernels(bundle, [(9, 0)])
    with ExitStack() as stack:
        skipped = _try_scan(stack, bundle, 4, 1)
        assert isinstance(skipped, SkippedRun)
        assert "are for compute capability 9.0" in skipped.reason
        monkeypatch.setattr(
            "xclip_deploy.runtime.nvidia_driver.why_no_gpu", lambda: "no driver here"
        )
        assert _try_scan(stack, bundle, 4, 1) == SkippedRun(
            what="scan kernels", reason="no driver here"
        )


def test_the_certificate_has_the_scan(device: Device, bundle_copy: Path, tmp_path: Path) -> None:
    write_kernels(Bundle.open(bundle_copy))
    certificate = verify_bundle(
        bundle_copy,
        texts=["a dog", "a red square moves right"],
        output=tmp_path,
        report=False,
        workers=1,
    )
    (scan,) = [one for one in certificate.comparisons if one.run.backend == "scan"]
    assert scan.passed
    scores = ["query_kernel", "frames_kernel", "video_kernel"]
    assert device.kernel_launches == [*scores, *["digit_kernel"] * 3, "collect_kernel", *scores]
    errors = {record.tensor: record.max_abs_error for record in scan.tensors}
    # Features are rounded to FP16, and nothing else is.
    assert errors["frame_word"] is not None
    assert 0 < errors["frame_word"] < 3e-4
