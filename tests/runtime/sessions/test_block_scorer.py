"""The CPU's faster scorer against the formulas in PyTorch, and its graphs against ONNX."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.grains import PUBLISHED_GRAINS, Grain
from xclip_deploy.runtime.manifest import DType
from xclip_deploy.runtime.model_config import ModelConfig, TemporalHead, TextConfig, VisionConfig
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.sessions.block_scorer import CpuBlockScorer
from xclip_deploy.runtime.sessions.onnx_session import open_bytes
from xclip_deploy.runtime.sessions.scorer_graphs import block_graph, text_graph
from xclip_deploy.training.scorer import Scorer

DIM, WORDS, FRAMES = 64, 6, 4
SUBSETS = [grains for count in (1, 2, 3, 4) for grains in combinations(PUBLISHED_GRAINS, count)]
KINDS = ("random", "alike", "opposite", "mixed")


def configuration(grains: tuple[Grain, ...], *, mask_padding: bool) -> ModelConfig:
    return ModelConfig(
        embed_dim=DIM,
        vision=VisionConfig(image_size=32, patch_size=16, width=64, layers=1, heads=1),
        text=TextConfig(width=64, layers=1, heads=1, context_length=77, vocab_size=49408),
        temporal_head=TemporalHead.MEAN_POOLING,
        temporal_layers=0,
        temporal_heads=0,
        temporal_positions=0,
        max_words=WORDS,
        max_frames=FRAMES,
        grains=grains,
        mask_padding=mask_padding,
    )


@cache
def scorers(grains: tuple[Grain, ...], mask_padding: bool) -> tuple[Scorer, CpuBlockScorer]:
    """A scorer of learned-looking matrices in FP64, and the same in blocks."""
    config = configuration(grains, mask_padding=mask_padding)
    torch.manual_seed(len(grains))
    scorer = Scorer(config)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) / DIM**0.5)
    arrays = {name: value.detach().numpy() for name, value in scorer.named_parameters()}
    weights = ScorerWeights.from_arrays(arrays, config)
    return scorer.double(), CpuBlockScorer(config, weights, open_bytes, threads=2)


def vectors(rng: np.random.Generator, kind: str, *shape: int) -> np.ndarray:
    """Unit vectors: of all directions, along one line, or every other along it."""
    found = rng.standard_normal((*shape, DIM))
    line = np.ones(DIM)
    if kind == "alike":
        found = 0.01 * found + line
    elif kind == "opposite":
        found = 1e-3 * found + line * rng.choice([-1.0, 1.0], shape)[..., None]
    elif kind == "mixed":
        found[rng.random(shape) < 0.5] = line
    units: npt.NDArray[np.float32]
    units = (found / np.linalg.norm(found, axis=-1, keepdims=True)).astype(np.float32)
    return units


def drawn(
    seed: int, text_kind: str, video_kind: str, texts: int, videos: int
) -> tuple[TextFeatures, VideoFeatures]:
    rng = np.random.default_rng(seed)
    return (
        TextFeatures(
            vectors(rng, text_kind, texts),
            vectors(rng, text_kind, texts, WORDS),
            rng.integers(2, WORDS + 1, texts).astype(np.int32),
        ),
        VideoFeatures(
            vectors(rng, video_kind, videos),
            vectors(rng, video_kind, videos, FRAMES),
            rng.integers(1, FRAMES + 1, videos).astype(np.int32),
        ),
    )


def in_pytorch(scorer: Scorer, texts: TextFeatures, videos: VideoFeatures) -> Scores:
    given_arrays = {**vars(texts), **vars(videos)}
    tensors = {
        name: torch.from_numpy(array.astype(np.int64 if "num" in name else np.float64))
        for name, array in given_arrays.items()
    }
    with torch.inference_mode():
        logits, grains = scorer(**tensors)
    return Scores(logits.numpy(), {name: grain.numpy() for name, grain in grains.items()})


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 5)),
    grains=st.sampled_from(SUBSETS),
    mask_padding=st.booleans(),
    is_half=st.booleans(),
)
def test_what_it_calls_right_is_right(
    seed: int,
    kinds: tuple[str, str],
    sizes: tuple[int, int],
    grains: tuple[Grain, ...],
    mask_padding: bool,
    is_half: bool,
) -> None:
    scorer, blocks = scorers(grains, mask_padding)
    texts, videos = drawn(seed, *kinds, *sizes)
    if is_half:
        videos = replace(
            videos,
            video_features=videos.video_features.astype(np.float16),
            frame_features=videos.frame_features.astype(np.float16),
        )
    expected = in_pytorch(scorer, texts, videos)
    found, is_exact = blocks.score(texts, videos)
    assert list(found) == ["logits", *(grain.value for grain in grains)]
    if set(kinds) <= {"random", "alike"}:
        assert is_exact.all(), "no similarity of these lies far below another"
    for name, grain in expected.grains.items():
        # FP32's rounding of a similarity, 1e-7, becomes 1e-5 of its weight.
        np.testing.assert_allclose(found[name][:, is_exact], grain[:, is_exact], atol=3e-5, rtol=0)
    np.testing.assert_allclose(
        found["logits"][:, is_exact], expected.logits[:, is_exact], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("mask_padding", [False, True])
def test_a_row_that_underflows_is_called_wrong(mask_padding: bool) -> None:
    scorer, blocks = scorers(PUBLISHED_GRAINS, mask_padding)
    texts, videos = drawn(3, "alike", "alike", 2, 5)
    frames = videos.frame_features
    frames[1, 0] *= -1  # words are alike: one frame is far from all of them
    frames[3] *= -1  # all frames: nothing is far from the largest
    videos = replace(videos, num_frames=np.full(5, FRAMES, np.int32))
    found, is_exact = blocks.score(texts, videos)
    assert is_exact.tolist() == [True, False, True, True, True]
    expected = in_pytorch(scorer, texts, videos).logits
    np.testing.assert_allclose(found["logits"][:, is_exact], expected[:, is_exact], atol=1e-3)


@pytest.mark.parametrize("feature", ["word_features", "frame_features"])
def test_a_feature_that_is_no_number(feature: str) -> None:
    _, blocks = scorers(PUBLISHED_GRAINS, False)
    texts, videos = drawn(4, "random", "random", 3, 4)
    (texts if feature == "word_features" else videos).__dict__[feature][1, 2, 3] = np.nan
    found, is_exact = blocks.score(texts, videos)
    assert is_exact.tolist() == [feature == "frame_features" and n != 1 for n in range(4)]
    assert np.isfinite(found["logits"][:, is_exact]).all()


@pytest.mark.parametrize(("texts", "videos"), [(1, 1), (1, 700), (33, 130), (70, 3)])
def test_blocks_and_threads_do_not_change_scores(texts: int, videos: int) -> None:
    scorer, blocks = scorers(PUBLISHED_GRAINS, True)
    features = drawn(5, "random", "random", texts, videos)
    expected = in_pytorch(scorer, *features)
    for threads in (1, 3):
        blocks._threads = threads
        found, is_exact = blocks.score(*features)
        assert is_exact.all()
        for name, grain in expected.grains.items():
            np.testing.assert_allclose(found[name], grain, atol=3e-5, rtol=0)


def test_a_closed_scorer_refuses() -> None:
    config = configuration((Grain.VIDEO_SENTENCE,), mask_padding=False)
    weights = ScorerWeights(0.0, {"global_mat_weight": np.eye(DIM, dtype=np.float32)})
    blocks = CpuBlockScorer(config, weights, open_bytes, threads=2)
    features = drawn(6, "random", "random", 2, 300)
    found, _ = blocks.score(*features)
    products = features[0].sentence_features @ features[1].video_features.T
    np.testing.assert_allclose(found["logits"], products, atol=1e-6)
    blocks.close()
    with pytest.raises(SessionError, match="closed"):
        blocks.score(*features)


@pytest.mark.parametrize("grains", SUBSETS)
@pytest.mark.parametrize("mask_padding", [False, True])
def test_onnx_accepts_the_graphs(grains: tuple[Grain, ...], mask_padding: bool) -> None:
    config = configuration(grains, mask_padding=mask_padding)
    _, blocks = scorers(grains, mask_padding)
    for graph in (
        text_graph(config, blocks._weights),
        *(block_graph(config, blocks._weights, DType(t)) for t in ("float16", "float32")),
    ):
        model = onnx.load_from_string(graph)
        onnx.checker.check_model(model, full_check=True)
        read = {name for node in model.graph.node for name in node.input}
        assert {each.name for each in model.graph.input} <= read, "an input is ignored"
