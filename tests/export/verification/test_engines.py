"""Engines under verification: on the stand-in device, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stand_in_device import Device, install, write_engines
from xclip_deploy import Bundle, build_engines, verify_bundle
from xclip_deploy.errors import EngineError, VerificationError
from xclip_deploy.export.verification import verify_engines
from xclip_deploy.runtime.engine_set import Flavour
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.nvidia_driver import why_no_gpu


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """The stand-in; at the end nothing may be left on it."""
    stand_in = Device()
    install(monkeypatch, stand_in)
    yield stand_in
    stand_in.check_nothing_left()


@pytest.mark.parametrize("flavour", list(Flavour))
def test_engines_pass_before_they_are_in_place(
    device: Device, bundle_copy: Path, tmp_path: Path, flavour: Flavour
) -> None:
    bundle = Bundle.open(bundle_copy)
    folder = tmp_path / ".unfinished"
    write_engines(bundle, flavour).rename(folder)
    comparison = verify_engines(bundle, folder)
    assert comparison.passed
    assert comparison.run.backend == flavour.value
    assert comparison.run.precision is Precision.FP16
    assert {name.rpartition("/")[2] for name in comparison.run.artefacts} == {
        f"{graph.value}.engine" for graph in Graph
    }
    for record in comparison.tensors:
        assert record.max_abs_error is not None
        assert record.max_abs_error > 0
    assert not (bundle_copy / "verification").exists()


def test_a_ruined_engine_fails_and_is_named(device: Device, bundle_copy: Path, ruin: Any) -> None:
    ruin(bundle_copy, "fp16/video_encoder.onnx")
    folder = write_engines(Bundle.open(bundle_copy), Flavour.RTX)
    with pytest.raises(VerificationError, match=r"video_encoder video_features.*build-trt"):
        verify_engines(bundle_copy, folder)


def test_an_engine_that_yields_nan_fails(
    device: Device, bundle_copy: Path, change_weights: Any
) -> None:
    change_weights(bundle_copy, "fp16/text_encoder.onnx", lambda weights: weights * float("nan"))
    folder = write_engines(Bundle.open(bundle_copy), Flavour.RTX)
    with pytest.raises(VerificationError, match="broke off: text_encoder gave NaN"):
        verify_engines(bundle_copy, folder)


def test_an_engine_of_another_model_is_refused(
    device: Device, bundle_copy: Path, tmp_path: Path
) -> None:
    folder = write_engines(Bundle.open(bundle_copy), Flavour.RTX, fingerprint="0" * 64)
    with pytest.raises(EngineError, match="was built for model 000000000000"):
        verify_engines(bundle_copy, folder)
    with pytest.raises(EngineError):
        verify_engines(bundle_copy, tmp_path)


def test_every_engine_set_is_in_the_certificate(device: Device, bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    written = {write_engines(bundle, flavour).name for flavour in Flavour}
    other = write_engines(bundle, Flavour.RTX, version="1.0.0", target="sm75")
    other = other.rename(other.with_name("rtx-1.0.0-fp16-sm75"))
    certificate = verify_bundle(bundle, report=False)
    assert certificate.passed
    native = {
        next(iter(comparison.run.artefacts)).split("/")[0]: comparison.run
        for comparison in certificate.comparisons
        if comparison.run.backend in ("tensorrt", "rtx")
    }
    assert set(native) == written
    assert {run.device for run in native.values()} == {"cuda:0"}
    # One that does not fit the machine is not held against the bundle, and is named.
    (reason,) = (skip.reason for skip in certificate.skipped if other.name in skip.what)
    assert "1.0.0" in reason


def test_without_a_gpu_engines_are_named_as_not_run(bundle_copy: Path) -> None:
    missing = why_no_gpu()
    if missing is None:
        pytest.skip("needs a machine without an NVIDIA GPU")
    folder = write_engines(Bundle.open(bundle_copy), Flavour.RTX)
    certificate = verify_bundle(bundle_copy, report=False)
    assert certificate.passed
    skipped = {skip.what: skip.reason for skip in certificate.skipped}
    assert skipped[f"engines {folder.name}"] == missing


@pytest.mark.gpu
@pytest.mark.parametrize("flavour", list(Flavour))
def test_real_engines(bundle_path: Path, tmp_path: Path, flavour: Flavour) -> None:
    missing = why_no_gpu()
    if missing is not None:
        pytest.skip(f"needs an NVIDIA GPU: {missing}")
    for module in (flavour.module_name, "cuda"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    path = tmp_path / "bundle"
    shutil.copytree(bundle_path, path)
    built = build_engines(path, flavour=flavour.value)
    assert built.engine_set.self_tested
    assert verify_engines(path, built.path).passed
    certificate = verify_bundle(path)
    assert certificate.passed
    assert flavour.value in {comparison.run.backend for comparison in certificate.comparisons}
