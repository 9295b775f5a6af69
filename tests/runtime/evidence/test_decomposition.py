"""Contributions against the scorer: PyTorch's in FP64, and the exported graph."""

from __future__ import annotations

from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xclip_deploy import Bundle, Retriever
from xclip_deploy.runtime.evidence import decompose
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.grains import Grain
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.scorer_weights import ScorerWeights, attend
from xclip_deploy.training.scorer import Scorer

SUBSETS = list(chain.from_iterable(combinations(Grain, n) for n in range(1, 5)))


def weights_of(scorer: Scorer, config: ModelConfig) -> ScorerWeights:
    arrays = {name: value.detach().numpy() for name, value in scorer.named_parameters()}
    return ScorerWeights.from_arrays(arrays, config)


def features(config: ModelConfig, seed: int, count: int = 1) -> tuple[TextFeatures, VideoFeatures]:
    """Random unit vectors for as many texts as videos."""
    random = np.random.default_rng(seed)
    dim, words, frames = config.embed_dim, config.max_words, config.max_frames

    def unit(*shape: int) -> Any:
        vectors = random.normal(size=(*shape, dim))
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    num_words = random.integers(2, words + 1, count).astype(np.int32)
    num_frames = random.integers(1, frames + 1, count).astype(np.int32)
    return (
        TextFeatures(unit(count), unit(count, words), num_words),
        VideoFeatures(unit(count), unit(count, frames), num_frames),
    )


@given(
    subset=st.sampled_from(SUBSETS),
    projection=st.booleans(),
    mask=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    noise=st.sampled_from([0.0, 0.02, 0.3, 2.0]),
)
@settings(max_examples=200)
def test_contributions_add_up_to_the_scorer(
    make_scorer: Any, subset: tuple[Grain, ...], projection: bool, mask: bool, seed: int,
    noise: float,
) -> None:  # fmt: skip
    scorer, config = make_scorer(
        seed, noise, grains=subset, sentence_projection=projection, mask_padding=mask
    )
    text, video = features(config, seed)
    inputs = {
        name: torch.from_numpy(array) for name, array in {**vars(text), **vars(video)}.items()
    }
    with torch.no_grad():
        expected = scorer(**inputs)
    found = decompose(text, video, weights_of(scorer, config), config)
    assert list(found.grains) == [grain.value for grain in Grain if grain in subset]
    for name, value in expected.grains.items():
        assert found.grains[name] == pytest.approx(float(value), rel=1e-9, abs=1e-11)
    assert found.score == pytest.approx(float(expected.logits), rel=1e-9, abs=1e-9)
    parts = found.contributions
    if "frame_word" in parts:
        # A word's share and a frame's are two ways to add up the same.
        total = found.grains["frame_word"]
        assert parts["frame_word"].sum(axis=0).sum() == pytest.approx(total, rel=1e-9, abs=1e-11)
        assert parts["frame_word"].sum(axis=1).sum() == pytest.approx(total, rel=1e-9, abs=1e-11)
    if mask:
        words, frames = int(text.num_words[0]), int(video.num_frames[0])
        for name, length in (("video_word", words), ("frame_sentence", frames)):
            assert name not in parts or not parts[name][length:].any()
        if "frame_word" in parts:
            assert not parts["frame_word"][words:].any()
            assert not parts["frame_word"][:, frames:].any()


@given(seed=st.integers(0, 2**32 - 1), projection=st.booleans(), mask=st.booleans())
@settings(max_examples=25)
def test_contributions_are_weight_times_similarity(
    make_scorer: Any, seed: int, projection: bool, mask: bool
) -> None:
    scorer, config = make_scorer(seed, sentence_projection=projection, mask_padding=mask)
    text, video = features(config, seed)
    found = decompose(text, video, weights_of(scorer, config), config)
    attention, parts = found.attention, found.contributions
    assert attention.words_first is not None
    assert attention.frames_first is not None
    assert attention.frame_sentence is not None
    assert found.sentence_similarity is not None
    joint = (attention.words_first.joint + attention.frames_first.joint) / 2
    np.testing.assert_allclose(parts["frame_word"], joint * found.similarity, atol=1e-12)
    np.testing.assert_allclose(
        parts["frame_sentence"], attention.frame_sentence * found.sentence_similarity, atol=1e-12
    )
    by_video = text.word_features[0] @ video.video_features[0]
    np.testing.assert_allclose(parts["video_word"], attention.video_word * by_video, atol=1e-12)
    # Each order alone is what the paper's two aggregations give.
    for order in (attention.words_first, attention.frames_first):
        assert order.words.shape[0] == config.max_words
        assert order.frames.shape[-1] == config.max_frames
        assert order.joint.shape == (config.max_words, config.max_frames)


def test_identity_matrices_give_plain_softmax_weights() -> None:
    x = np.array([0.3, 0.31, -1.0, 0.5])
    weights = attend(x, np.eye(4, dtype=np.float32))
    assert weights.sum() == pytest.approx(1)
    assert weights.argmax() == 3
    assert weights[1] / weights[0] == pytest.approx(np.e, rel=1e-9)  # 0.01 apart
    masked = attend(x, np.eye(4, dtype=np.float32), np.array([True, True, True, False]))
    assert masked[3] == 0
    assert masked.argmax() == 1
    assert np.isfinite(attend(x * 1e6, np.eye(4, dtype=np.float32))).all()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_golden_model_and_the_graphs_of_its_bundle(
    bundle: Bundle, golden: dict[str, Any], precision: Any
) -> None:
    weights, config = bundle.scorer_weights(), bundle.manifest.model
    with Retriever(bundle, device="cpu", precision=precision, threads=1) as retriever:
        texts = retriever.model.encode_token_ids(golden["input_ids"])
        videos = retriever.encode_frames(golden["frames_uint8"], golden["num_frames"])
        if precision == "fp16":  # as a gallery keeps them, and this scorer takes them
            videos = VideoFeatures(
                videos.video_features.astype(np.float16),
                videos.frame_features.astype(np.float16),
                videos.num_frames,
            )
        expected = retriever.score(texts, videos)
    for row, column in product(range(len(texts)), range(len(videos))):
        found = decompose(texts[row : row + 1], videos[column : column + 1], weights, config)
        for name, grain in expected.grains.items():
            assert found.grains[name] == pytest.approx(float(grain[row, column]), abs=2e-6)
        assert found.score == pytest.approx(float(expected.logits[row, column]), abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("subset", SUBSETS, ids=lambda subset: "+".join(subset))
def test_the_exported_graph_of_every_subset(
    make_scorer: Any, tmp_path: Path, subset: tuple[Grain, ...]
) -> None:
    from xclip_deploy.export.graphs import export_graph, graph_specs
    from xclip_deploy.training.model import XClip

    for projection, mask in ((True, False), (False, True)):
        changes = {"grains": subset, "sentence_projection": projection, "mask_padding": mask}
        scorer, config = make_scorer(noise=0.1, embed_dim=64, **changes)
        model = XClip(config).eval()
        model.scorer = scorer.float()
        spec = graph_specs(config, Precision.FP32)[Graph.SCORER]
        export_graph(model, Graph.SCORER, spec, tmp_path)
        session = onnxruntime.InferenceSession(
            tmp_path / spec.file, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        text, video = features(config, seed=len(subset), count=5)
        arrays = {**vars(text), **vars(video)}
        inputs = {
            tensor.name: arrays[tensor.name].astype(tensor.dtype.value) for tensor in spec.inputs
        }
        expected = dict(zip(names, session.run(names, inputs), strict=True))
        weights = weights_of(scorer, config)
        for row, column in product(range(5), range(5)):
            found = decompose(text[row : row + 1], video[column : column + 1], weights, config)
            for name, value in (*found.grains.items(), ("logits", found.score)):
                # FP32 rounding of a similarity, over the temperature: 1e-7 / 0.01.
                assert value == pytest.approx(float(expected[name][row, column]), abs=2e-4)
