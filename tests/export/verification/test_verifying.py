"""``verify_bundle`` on real bundles: what passes, what does not, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xclip_deploy import Bundle, DeployedModel, verify_bundle
from xclip_deploy.errors import (
    BundleError,
    VerificationError,
)
from xclip_deploy.export.verification import Certificate, read_certificate
from xclip_deploy.runtime.datasets import Split
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.runtime.sessions import SessionOptions

FP16_TEXT = "fp16/text_encoder.onnx"


def comparison_of(certificate: Certificate, precision: Precision) -> Any:
    (found,) = (
        comparison
        for comparison in certificate.comparisons
        if comparison.run.precision is precision and comparison.run.device == "cpu"
    )
    return found


@pytest.fixture(scope="module")
def against_pytorch(
    bundle_path: Path,
    checkpoint_path: Path,
    clips: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Certificate, Path]:
    """The whole: PyTorch, clips, captions, a report. The bundle itself is not written to."""
    from xclip_deploy import open_dataset

    folder = tmp_path_factory.mktemp("verify")
    captions = folder / "captions.jsonl"
    rows = [
        {
            "file": "conditions/dog_square.mp4",
            "caption": "video <b>broadcaster</b> comparing cheese",
        },
        {
            "file": "edge_cases/torchcodec_test_non_zero_start.mp4",
            "caption": "psycho readings territories",
        },
        {
            "file": "edge_cases/torchcodec_test_non_zero_start.mp4",
            "caption": "teacher saturdays pools hospitalized",
        },
    ]
    captions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = folder / "out"
    certificate = verify_bundle(
        bundle_path,
        checkpoint=checkpoint_path,
        split=open_dataset("folder", "test", captions, clips),
        output=output,
        report=True,
    )
    return certificate, output


def test_a_good_bundle_passes_against_pytorch(
    against_pytorch: tuple[Certificate, Path], bundle: Bundle
) -> None:
    certificate, _ = against_pytorch
    assert certificate.passed
    certificate.require_passed()
    assert certificate.reference.backend == "pytorch"
    assert certificate.fits(bundle)
    compared = {comparison.run.precision for comparison in certificate.comparisons}
    assert compared >= {Precision.FP32, Precision.FP16}
    inputs = certificate.inputs
    assert (inputs.num_videos, inputs.num_texts, inputs.has_ground_truth) == (2, 3, True)
    assert not inputs.synthetic_videos
    assert not inputs.built_in_texts


def test_every_output_is_compared_and_shows_its_rounding(
    against_pytorch: tuple[Certificate, Path], bundle: Bundle
) -> None:
    certificate, _ = against_pytorch
    for precision in (Precision.FP32, Precision.FP16):
        comparison = comparison_of(certificate, precision)
        outputs = {
            (graph, tensor.name)
            for graph, spec in bundle.manifest.graphs[precision].items()
            for tensor in spec.outputs
        }
        assert {(record.graph, record.tensor) for record in comparison.tensors} == outputs
        for record in comparison.tensors:
            # A comparison that compares nothing would show zeros.
            assert 0 < record.rms_error <= record.max_abs_error <= record.allowed_error
            if record.graph is Graph.SCORER:
                assert record.min_cosine is None
            else:
                assert 0.999 < record.min_cosine <= record.mean_cosine < 1 + 1e-9
        assert [record.k for record in comparison.recalls] == [1, 5, 10] * 2
        assert comparison.ranking.top1_agreement == 1.0
    fp32, fp16 = (comparison_of(certificate, p) for p in (Precision.FP32, Precision.FP16))
    for before, after in zip(fp32.tensors, fp16.tensors, strict=True):
        assert after.max_abs_error > 10 * before.max_abs_error


def test_the_certificate_names_all_that_it_is_of(
    against_pytorch: tuple[Certificate, Path], bundle: Bundle, checkpoint_path: Path
) -> None:
    certificate, output = against_pytorch
    read = Certificate.model_validate_json((output / "certificate.json").read_bytes())
    assert read == certificate
    assert certificate.fingerprint == bundle.manifest.fingerprint
    assert certificate.reference.artefacts == {
        checkpoint_path.name: bundle.manifest.provenance.checkpoint_sha256
    }
    fp16 = comparison_of(certificate, Precision.FP16)
    # The halves of the video encoder run in its place.
    names = ("frame_encoder.onnx", "temporal_head.onnx", "video_encoder.onnx.data")
    texts = ("text_encoder.onnx", "text_encoder.onnx.data")
    files = [f"fp16/{name}" for name in (*names, *texts, "scorer.onnx")]
    assert fp16.run.artefacts == {file: bundle.manifest.files[file].sha256 for file in files}
    assert fp16.tolerance == bundle.manifest.tolerances[Precision.FP16]
    assert {"python", "numpy", "torch", "xclip-deploy"} <= set(certificate.versions)
    assert certificate.machine.cpu
    assert certificate.machine.cores >= 1


def test_the_score_scale_is_the_models(
    against_pytorch: tuple[Certificate, Path], checkpoint_path: Path
) -> None:
    from xclip_deploy import load_checkpoint

    scale = float(load_checkpoint(checkpoint_path).state_dict["scorer.logit_scale"].exp())
    assert against_pytorch[0].score_scale == pytest.approx(scale, rel=1e-4)


def test_without_anything_a_small_built_in_set_is_used_and_named(bundle_copy: Path) -> None:
    seen: list[Progress] = []
    certificate = verify_bundle(bundle_copy, report=False, progress=seen.append)
    assert certificate.passed
    assert certificate.reference.name == "fp32 onnxruntime cpu"
    assert Precision.FP32 not in {c.run.precision for c in certificate.comparisons}
    inputs = certificate.inputs
    assert inputs.synthetic_videos
    assert inputs.built_in_texts
    assert not inputs.has_ground_truth
    fp16 = comparison_of(certificate, Precision.FP16)
    assert fp16.recalls == ()
    assert fp16.ranking.required_top1 is None
    assert read_certificate(Bundle.open(bundle_copy)) == certificate
    assert seen[-1] == Progress("captions", inputs.num_texts, inputs.num_texts)
    assert Progress("videos", inputs.num_videos, inputs.num_videos) in seen


def test_what_is_measured_is_what_the_runtime_computes(
    bundle: Bundle, split: Split, tmp_path: Path
) -> None:
    """Against a second, plain computation of one number."""
    certificate = verify_bundle(bundle, split=split, output=tmp_path, report=False, max_batch=2)
    texts = {}
    for precision in ("fp32", "fp16"):
        with DeployedModel(bundle, SessionOptions(device="cpu", precision=precision)) as model:
            texts[precision] = model.encode_texts(split.captions).sentence_features
    expected, found = (texts[name].astype(np.float64) for name in ("fp32", "fp16"))
    (record,) = (
        record
        for record in comparison_of(certificate, Precision.FP16).tensors
        if record.tensor == "sentence_features"
    )
    assert record.max_abs_error == np.abs(expected - found).max()
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    assert record.min_cosine == pytest.approx(((expected * found).sum(1) / lengths).min())


def test_a_ruined_graph_fails_and_is_named(bundle_copy: Path, split: Split, ruin: Any) -> None:
    ruin(bundle_copy, FP16_TEXT)
    certificate = verify_bundle(bundle_copy, split=split, report=False)
    assert not certificate.passed
    fp16 = comparison_of(certificate, Precision.FP16)
    failed = {record.tensor for record in fp16.tensors if not record.passed}
    assert failed >= {"sentence_features", "word_features", "logits"}
    assert not failed & {"video_features", "frame_features"}
    with pytest.raises(VerificationError, match="fp16 onnxruntime cpu: text_encoder sentence_fe"):
        certificate.require_passed()
    # Written all the same, for whoever looks into it.
    assert read_certificate(Bundle.open(bundle_copy)) == certificate


def test_a_graph_that_yields_nan_fails_and_is_named(bundle_copy: Path, change_weights: Any) -> None:
    change_weights(bundle_copy, FP16_TEXT, lambda weights: weights * np.nan)
    certificate = verify_bundle(bundle_copy)
    fp16 = comparison_of(certificate, Precision.FP16)
    assert fp16.ranking is None
    assert fp16.recalls == ()
    # What came before it broke off is there.
    assert {record.tensor for record in fp16.tensors} == {"video_features", "frame_features"}
    (failure,) = fp16.failures
    assert failure.startswith("broke off: text_encoder gave NaN or infinity in sentence_features")
    with pytest.raises(VerificationError, match="text_encoder gave NaN"):
        certificate.require_passed()
    page = (bundle_copy / "verification" / "report.html").read_text("utf-8")
    assert "broke off" in page
    assert "synthetic" in page  # the inputs are said to be
    # JSON knows no NaN.
    json.loads((bundle_copy / "verification/certificate.json").read_text(), parse_constant=int)


def test_a_reference_that_yields_nan_is_an_error(bundle_copy: Path, change_weights: Any) -> None:
    change_weights(bundle_copy, "fp32/frame_encoder.onnx", lambda weights: weights * np.nan)
    with pytest.raises(VerificationError, match=r"the reference itself \(fp32 onnxruntime cpu\)"):
        verify_bundle(bundle_copy)


def test_tolerances_are_the_bundles(bundle_copy: Path, rewrite_manifest: Any) -> None:
    def tighten(manifest: Any) -> Any:
        fp16 = manifest.tolerances[Precision.FP16].model_copy(update={"feature": 1e-7})
        return manifest.model_copy(
            update={"tolerances": manifest.tolerances | {Precision.FP16: fp16}}
        )

    rewrite_manifest(bundle_copy, tighten)
    certificate = verify_bundle(bundle_copy, report=False)
    assert all("allowed 1e-07" in failure for failure in certificate.failures)
    assert len(certificate.failures) == 4


@pytest.mark.slow
def test_an_older_report_does_not_lie_beside_a_new_certificate(bundle_copy: Path) -> None:
    report = bundle_copy / "verification" / "report.html"
    verify_bundle(bundle_copy)
    assert report.is_file()
    verify_bundle(bundle_copy, report=False)
    assert not report.exists()


def test_a_certificate_of_another_export_does_not_fit(bundle_copy: Path, ruin: Any) -> None:
    certificate = verify_bundle(bundle_copy, report=False)
    assert certificate.fits(Bundle.open(bundle_copy))
    ruin(bundle_copy, "fp32/text_encoder.onnx")
    opened = Bundle.open(bundle_copy)
    found = read_certificate(opened)
    assert found == certificate
    assert found is not None
    assert not found.fits(opened)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "xclip-bundle"}', b"\xff"])
def test_a_damaged_certificate(bundle_copy: Path, content: bytes) -> None:
    bundle = Bundle.open(bundle_copy)
    assert read_certificate(bundle) is None
    file = bundle_copy / "verification" / "certificate.json"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(BundleError, match="run: xclip-deploy verify"):
        read_certificate(bundle)
