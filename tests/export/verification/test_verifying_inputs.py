"""What ``verify_bundle`` is given: inputs it leaves out, and inputs it refuses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy import Bundle, verify_bundle
from xclip_deploy.errors import (
    BundleError,
    CheckpointReadError,
    DatasetError,
    InvalidArgumentError,
    VerificationError,
    VideoNotFoundError,
)
from xclip_deploy.export.verification import read_certificate
from xclip_deploy.export.verification.inputs import read_texts
from xclip_deploy.runtime.datasets import Split
from xclip_deploy.runtime.manifest import Precision

FP16_TEXT = "fp16/text_encoder.onnx"


def only(precisions: set[Precision]) -> Any:
    """A change of the manifest that leaves these graphs alone."""

    def change(manifest: Any) -> Any:
        kept = {
            field: {
                name: each for name, each in getattr(manifest, field).items() if name in precisions
            }
            for field in ("graphs", "video_parts", "fused_graphs")
        }
        return manifest.model_copy(update=kept)

    return change


def test_unreadable_videos_are_left_out_up_to_a_share(
    bundle_copy: Path, clips: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(clips / "edge_cases/torchcodec_test_non_zero_start.mp4", folder)
    (folder / "bad.mp4").write_text("no video")
    with pytest.raises(DatasetError, match=r"bad\.mp4"):
        verify_bundle(bundle_copy, videos=folder, report=False)
    certificate = verify_bundle(
        bundle_copy, videos=folder, texts=["a frog"], report=False, max_unreadable_share=0.5
    )
    assert certificate.passed
    assert certificate.inputs.num_videos == 1
    (reason,) = certificate.inputs.unreadable
    assert "bad.mp4" in reason
    (folder / "torchcodec_test_non_zero_start.mp4").unlink()
    with pytest.raises(DatasetError, match="cannot be read"):
        verify_bundle(bundle_copy, videos=folder, report=False, max_unreadable_share=1)


def test_captions_of_an_unreadable_video_are_left_out(
    bundle: Bundle, captions_file: Path, clips: Path, tmp_path: Path
) -> None:
    from xclip_deploy import open_dataset

    folder = tmp_path / "videos"
    shutil.copytree(clips, folder)
    (folder / "edge_cases/torchcodec_test_non_zero_start.mp4").write_text("no video")
    split = open_dataset("folder", "test", captions_file, folder)
    certificate = verify_bundle(
        bundle, split=split, output=tmp_path / "out", report=False, max_unreadable_share=0.5
    )
    assert (certificate.inputs.num_videos, certificate.inputs.num_texts) == (2, 3)
    fp16 = next(each for each in certificate.comparisons if each.run.precision is Precision.FP16)
    assert fp16.recalls[0].num_queries == 3


def test_another_models_checkpoint_is_refused(
    bundle: Bundle, checkpoint_path: Path, tmp_path: Path
) -> None:
    import torch

    weights = torch.load(checkpoint_path, weights_only=True)
    weights["clip.logit_scale"] = weights["clip.logit_scale"] + 0.01
    other = tmp_path / "other.bin"
    torch.save(weights, other)
    with pytest.raises(VerificationError, match=r"other\.bin is another model.*pytorch_model\.bin"):
        verify_bundle(bundle, checkpoint=other, output=tmp_path / "out")
    with pytest.raises(CheckpointReadError):
        verify_bundle(bundle, checkpoint=tmp_path / "none.pt", output=tmp_path / "out")


def test_a_checkpoint_of_other_dimensions_is_refused(
    bundle: Bundle, make_model: Any, write_checkpoint: Any, tmp_path: Path
) -> None:
    with pytest.raises(VerificationError, match="is another model"):
        verify_bundle(bundle, checkpoint=write_checkpoint(make_model()), output=tmp_path / "out")


@pytest.mark.slow
def test_the_same_weights_in_another_file_are_the_same_model(
    bundle: Bundle, checkpoint_path: Path, tmp_path: Path
) -> None:
    import torch

    weights = torch.load(checkpoint_path, weights_only=True)
    again = tmp_path / "again.bin"
    torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, again)
    certificate = verify_bundle(bundle, checkpoint=again, output=tmp_path, report=False)
    assert certificate.passed
    assert certificate.reference.artefacts.keys() == {"again.bin"}


def test_a_bundle_without_fp32_needs_the_checkpoint(
    bundle_copy: Path, checkpoint_path: Path, rewrite_manifest: Any
) -> None:
    rewrite_manifest(bundle_copy, only({Precision.FP16}))
    with pytest.raises(VerificationError, match=r"no FP32 graphs.*--checkpoint"):
        verify_bundle(bundle_copy)
    certificate = verify_bundle(bundle_copy, checkpoint=checkpoint_path, report=False)
    assert {comparison.run.precision for comparison in certificate.comparisons} == {Precision.FP16}


def test_a_bundle_of_fp32_alone_needs_the_checkpoint(
    bundle_copy: Path, checkpoint_path: Path, rewrite_manifest: Any
) -> None:
    rewrite_manifest(bundle_copy, only({Precision.FP32}))
    with pytest.raises(VerificationError, match=r"nothing to compare.*--checkpoint"):
        verify_bundle(bundle_copy)
    certificate = verify_bundle(bundle_copy, checkpoint=checkpoint_path, report=False)
    assert certificate.passed


def test_arguments_that_do_not_go_together(bundle: Bundle, split: Split, clips: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="captions of its own"):
        verify_bundle(bundle, split=split, videos=clips)
    with pytest.raises(InvalidArgumentError, match="texts is empty"):
        verify_bundle(bundle, texts=[])
    with pytest.raises(InvalidArgumentError, match="max_unreadable_share"):
        verify_bundle(bundle, max_unreadable_share=1.5)


def test_a_folder_without_videos(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(VideoNotFoundError, match="holds no video"):
        verify_bundle(bundle, videos=tmp_path, output=tmp_path / "out")
    with pytest.raises(VideoNotFoundError, match="no such file"):
        verify_bundle(bundle, videos=tmp_path / "none", output=tmp_path / "out")


def test_a_place_that_cannot_be_written_is_found_at_once(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    steps: list[object] = []
    with pytest.raises(BundleError, match=r"cannot be written.*-o FOLDER"):
        verify_bundle(bundle, output=file / "out", progress=steps.append)
    assert steps == []


def test_pipes_are_not_waited_for(bundle_copy: Path, tmp_path: Path) -> None:
    file = bundle_copy / "verification" / "certificate.json"
    file.parent.mkdir()
    os.mkfifo(file)
    with pytest.raises(BundleError, match="is no regular file but a pipe"):
        read_certificate(Bundle.open(bundle_copy))
    os.mkfifo(tmp_path / "texts.txt")
    with pytest.raises(InvalidArgumentError, match="is no regular file but a pipe"):
        read_texts(tmp_path / "texts.txt")
