"""A checkpoint and a bundle that are evaluated, and their numbers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from painted_splits import CAPTIONS

from xclip_deploy import (
    Bundle,
    DeployedModel,
    FrameSampling,
    evaluate,
    load_checkpoint,
    read_video,
)
from xclip_deploy.runtime.datasets import Split, SplitVideo
from xclip_deploy.runtime.evaluation import (
    Evaluation,
)
from xclip_deploy.runtime.metrics import dual_softmax_metrics, retrieval_metrics
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.training.checkpoints import save_checkpoint
from xclip_deploy.training.torch_matcher import TorchMatcher


@pytest.fixture(scope="module")
def of_checkpoint(checkpoint_path: Path, split: Split) -> Evaluation:
    return evaluate(checkpoint_path, split, device="cpu", dual_softmax=True)


@pytest.mark.parametrize("square_pixels", [False, True])
def test_videos_are_read_as_in_training(
    checkpoint_path: Path, tmp_path: Path, square_pixels: bool
) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for level in range(4):
            picture = np.full((96, 64, 3), 60 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    loaded = load_checkpoint(checkpoint_path)
    path = tmp_path / "weights.pt"
    save_checkpoint(path, loaded.config, loaded.state_dict, square_pixels=square_pixels)
    videos = (SplitVideo("clip", tmp_path / "clip.mp4"),)
    split = Split("clips/test", videos, CAPTIONS[:1], np.zeros(1, np.int64))
    damaged = evaluate(path, split, device="cpu").damaged
    assert [video.reason.startswith("anamorphic") for video in damaged] == [True] * (
        not square_pixels
    )


def test_checkpoint_and_bundle_agree(
    of_checkpoint: Evaluation, bundle_path: Path, split: Split
) -> None:
    found = evaluate(bundle_path, split, device="cpu", precision="fp32", dual_softmax=True)
    assert found.similarity.shape == (6, 4)
    assert np.abs(found.similarity - of_checkpoint.similarity).max() < 1e-3
    assert found.metrics == of_checkpoint.metrics
    assert found.dual_softmax == of_checkpoint.dual_softmax
    assert found.model.kind == "bundle"
    assert (found.model.precision, found.model.device) == ("fp32", "cpu")
    assert found.model.identity == Bundle.open(bundle_path).manifest.fingerprint


def test_fp16_is_close(of_checkpoint: Evaluation, bundle: Bundle, split: Split) -> None:
    with DeployedModel(bundle, SessionOptions("cpu", "fp16")) as model:
        found = evaluate(model, split)
    assert found.model.precision == "fp16"
    # The logit scale is 100; a grain may be off by 5e-3.
    assert np.abs(found.similarity - of_checkpoint.similarity).max() < 0.5


def test_metrics_are_those_of_the_similarities(of_checkpoint: Evaluation, split: Split) -> None:
    similarity = of_checkpoint.similarity
    assert of_checkpoint.metrics == retrieval_metrics(similarity, split.video_of_caption)
    assert of_checkpoint.dual_softmax == dual_softmax_metrics(similarity, split.video_of_caption)
    assert of_checkpoint.model.kind == "checkpoint"
    assert (of_checkpoint.num_videos, of_checkpoint.num_captions) == (4, 6)
    assert of_checkpoint.video_ids == tuple(video.id for video in split.videos)
    assert (of_checkpoint.missing, of_checkpoint.unreadable) == ((), ())


def test_each_similarity_is_the_models_own(
    of_checkpoint: Evaluation, checkpoint_path: Path, split: Split
) -> None:
    """One text and one video at a time through the plain PyTorch model."""
    model = load_checkpoint(checkpoint_path).build()
    tokenizer = TorchMatcher(model).tokenizer
    for column, video in enumerate(split.videos):
        clip = read_video(video.path, FrameSampling(max_frames=12), 64).frames
        frames = np.zeros((1, 12, 64, 64, 3), np.uint8)
        frames[0, : len(clip)] = clip
        for row in (0, 5):
            ids = torch.from_numpy(tokenizer.encode([split.captions[row]], 32))
            with torch.inference_mode():
                scores = model(ids, torch.from_numpy(frames), torch.tensor([len(clip)]))
            expected = float(scores.logits)
            assert of_checkpoint.similarity[row, column] == pytest.approx(expected, abs=1e-3)


def test_a_model_in_training_stays_so(checkpoint_path: Path, split: Split) -> None:
    model = load_checkpoint(checkpoint_path).build().train()
    found = evaluate(TorchMatcher(model), split)
    assert model.training
    assert model.scorer.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    expected = evaluate(TorchMatcher(model.eval(), max_batch=1), split)
    assert not model.training
    assert found.metrics == expected.metrics
    assert np.abs(found.similarity - expected.similarity).max() < 1e-3
