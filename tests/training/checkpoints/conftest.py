"""State dicts of a tiny model in every published naming, made without the converter.

The naming is inverted here by plain substitution on XClip's own names, so that a mistake in
the converter's tables cannot hide in its inverse.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xclip_deploy.runtime.grains import CLIP_GRAINS, PUBLISHED_GRAINS
from xclip_deploy.runtime.model_config import (
    ModelConfig,
    PatchEmbedding,
    TemporalHead,
    TextConfig,
    VisionConfig,
)
from xclip_deploy.training.model import XClip

StateDict = dict[str, Tensor]

HEADS: dict[TemporalHead, dict[str, Any]] = {
    TemporalHead.MEAN_POOLING: {},
    TemporalHead.LSTM: {},
    TemporalHead.TRANSFORMER: {
        "temporal_layers": 2,
        "temporal_heads": 1,
        "temporal_positions": 15,
    },
}


def make_config(
    temporal_head: TemporalHead = TemporalHead.MEAN_POOLING,
    patch_embedding: PatchEmbedding = PatchEmbedding.CONV_2D,
    *,
    is_xclip: bool = False,
) -> ModelConfig:
    # No two dimensions are alike, so that a transposed tensor cannot fit.
    return ModelConfig(
        embed_dim=48,
        vision=VisionConfig(image_size=24, patch_size=8, width=64, layers=2, heads=1),
        text=TextConfig(width=128, layers=3, heads=2, context_length=20, vocab_size=50),
        temporal_head=temporal_head,
        patch_embedding=patch_embedding,
        max_words=9 if is_xclip else 20,
        max_frames=5 if is_xclip else 12,
        grains=PUBLISHED_GRAINS if is_xclip else CLIP_GRAINS,
        sentence_projection=is_xclip,
        **HEADS[temporal_head],
    )


def make_weights(config: ModelConfig) -> StateDict:
    generator = torch.Generator().manual_seed(7)
    shapes = {name: value.shape for name, value in XClip(config).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def authors(canonical: StateDict) -> StateDict:
    def rename(name: str) -> str:
        if name == "video_encoder.visual.conv1.weight" and canonical[name].ndim == 5:
            return "clip.visual.conv2.weight"
        return (
            name.replace("video_encoder.temporal.transformer", "transformerClip")
            .replace("video_encoder.temporal.lstm", "lstm_visual")
            .replace("video_encoder.temporal.frame_", "frame_")
            .replace("video_encoder.", "clip.")
            .replace("text_encoder.", "clip.")
            .replace("scorer.logit_scale", "clip.logit_scale")
            .replace("scorer.", "")
        )

    return {rename(name): value for name, value in canonical.items()}


def openai(canonical: StateDict) -> StateDict:
    return {
        name.replace("video_encoder.", "").replace("text_encoder.", "").replace("scorer.", ""): t
        for name, t in canonical.items()
    }


def custom_text(canonical: StateDict) -> StateDict:
    return {
        name.replace("video_encoder.", "").replace("text_encoder", "text").replace("scorer.", ""): t
        for name, t in canonical.items()
    }


def hugging_face(canonical: StateDict) -> StateDict:
    renamed: StateDict = {}
    for name, tensor in openai(canonical).items():
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        rest = name.removeprefix("visual.")
        rest = rest.replace("transformer.resblocks", "encoder.layers")
        rest = rest.replace(".ln_1.", ".layer_norm1.").replace(".ln_2.", ".layer_norm2.")
        rest = rest.replace("c_fc", "fc1").replace("c_proj", "fc2")
        if name == "logit_scale":
            renamed[name] = tensor
        elif name == "visual.proj":
            renamed["visual_projection.weight"] = tensor.t().contiguous()
        elif name == "text_projection":
            renamed["text_projection.weight"] = tensor.t().contiguous()
        elif ".attn.in_proj_" in rest:
            layer, _, kind = rest.partition(".attn.in_proj_")
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{tower}.{layer}.self_attn.{part}_proj.{kind}"] = chunk.clone()
        elif rest.startswith("encoder."):
            renamed[f"{tower}.{rest.replace('.attn.', '.self_attn.')}"] = tensor
        else:
            rest = {
                "conv1.weight": "embeddings.patch_embedding.weight",
                "class_embedding": "embeddings.class_embedding",
                "positional_embedding": "embeddings.position_embedding.weight",
                "token_embedding.weight": "embeddings.token_embedding.weight",
                "ln_pre.weight": "pre_layrnorm.weight",
                "ln_pre.bias": "pre_layrnorm.bias",
                "ln_post.weight": "post_layernorm.weight",
                "ln_post.bias": "post_layernorm.bias",
                "ln_final.weight": "final_layer_norm.weight",
                "ln_final.bias": "final_layer_norm.bias",
            }[rest]
            renamed[f"{tower}.{rest}"] = tensor
    return renamed


class Layouts:
    """The functions above, for the tests."""

    heads = TemporalHead
    config = staticmethod(make_config)
    weights = staticmethod(make_weights)
    authors = staticmethod(authors)
    openai = staticmethod(openai)
    custom_text = staticmethod(custom_text)
    hugging_face = staticmethod(hugging_face)


@pytest.fixture(scope="session")
def layouts() -> type[Layouts]:
    return Layouts


@pytest.fixture(scope="session")
def clip_weights() -> StateDict:
    """Canonical weights of plain CLIP; not to be changed."""
    return make_weights(make_config())


@pytest.fixture(scope="session")
def xclip_weights() -> StateDict:
    """Canonical weights of X-CLIP with its temporal transformer; not to be changed."""
    return make_weights(make_config(TemporalHead.TRANSFORMER, is_xclip=True))


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(content: object, name: str = "checkpoint.pt", *, legacy: bool = False) -> Path:
        path = tmp_path / name
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        return path

    return write


@pytest.fixture
def golden() -> Path:
    return Path(__file__).parents[2] / "golden" / "xclip_tiny"


@pytest.fixture(scope="session")
def assert_same() -> Callable[[StateDict, StateDict], None]:
    def compare(found: StateDict, expected: StateDict) -> None:
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name

    return compare


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let no test take 1 GB more than the process has: a bomb ends in MemoryError then."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
