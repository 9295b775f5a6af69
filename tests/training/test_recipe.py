"""What the authors' code does where the defaults differ, against values computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coloured_clips import write_clip
from torch import nn

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.datasets import Split, SplitVideo
from xclip_deploy.runtime.model_config import PatchEmbedding, TemporalHead
from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.runtime.video import FrameSampling, VideoReading, read_video
from xclip_deploy.training.config import RECIPES, resolve_config
from xclip_deploy.training.datasets.frame_cache import FrameCache
from xclip_deploy.training.datasets.frames import FrameSource, in_order
from xclip_deploy.training.datasets.pairs import PairDataset
from xclip_deploy.training.initialization import freeze_layers
from xclip_deploy.training.optimizer import Recipe, RecipeAdam, make_optimizer
from xclip_deploy.training.precision import halve_clip
from xclip_deploy.training.step import Pairs, compute_gradients, train_step


def test_published_is_the_preset_and_its_differences() -> None:
    usual, published = (
        resolve_config("activitynet"),
        resolve_config("activitynet", recipe="published"),
    )
    assert published.data.cut_at_annotated_end
    assert published.best_of_equals == "last"
    found = published.optimization
    assert found.clip_in_fp16
    assert found.average_encoder_gradients
    assert not found.freeze_3d
    # The authors' scripts leave these as they are by default here.
    assert (found.accumulation_steps, published.data.slice_position) == (1, 2)
    assert (published.data.frame_order, published.data.expand_sentences) == (0, True)
    assert (found.lr, found.batch_size, found.epochs) == (
        usual.optimization.lr,
        usual.optimization.batch_size,
        usual.optimization.epochs,
    )
    assert not usual.optimization.clip_in_fp16


def test_overrides_go_before_the_recipe() -> None:
    config = resolve_config(overrides=["optimization.clip_in_fp16=false"], recipe="published")
    assert not config.optimization.clip_in_fp16
    assert config.optimization.average_encoder_gradients
    assert RECIPES["published"]["optimization"]["clip_in_fp16"]


@pytest.mark.parametrize(
    ("recipe", "override"),
    [
        ("authors", "seed=1"),
        (3, "seed=1"),
        ("published", "precision=bf16"),
        (None, "accumulation_steps=7"),
        (None, "accumulation_steps=0"),
    ],
)
def test_settings_that_contradict_each_other(recipe: Any, override: str) -> None:
    with pytest.raises(InvalidArgumentError):
        resolve_config("msrvtt", overrides=[f"optimization.{override}"], recipe=recipe)


HALF = {
    "video_encoder.visual.conv1.weight",
    "video_encoder.visual.proj",
    "text_encoder.text_projection",
    *(
        f"{tower}.transformer.resblocks.0.{name}.{kind}"
        for tower in ("video_encoder.visual", "text_encoder")
        for name in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    ),
    *(
        f"{tower}.transformer.resblocks.0.attn.in_proj_{kind}"
        for tower in ("video_encoder.visual", "text_encoder")
        for kind in ("weight", "bias")
    ),
}


def test_the_weights_that_convert_weights_makes_fp16(make_model: Any) -> None:
    model = halve_clip(make_model(temporal_head=TemporalHead.TRANSFORMER))
    found = {name for name, p in model.named_parameters() if p.dtype == torch.float16}
    assert found == HALF
    optimizer = make_optimizer(model, Recipe(lr=1.0, coef_lr=1.0, total_steps=10))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        for moment in ("mean", "square"):
            assert optimizer.state[parameter][moment].dtype == parameter.dtype, name


def half_step(weight: float, gradient: float, rate: float) -> np.float16:
    """One BertAdam step from zero moments, each operation rounded to FP16, by NumPy."""
    h = np.float16
    p, g = h(weight), h(gradient)
    mean = h(np.float32(h(0.0)) + np.float32(0.1) * np.float32(g))
    square = h(np.float32(h(0.0)) + np.float32(0.02) * np.float32(g) * np.float32(g))
    root = h(np.sqrt(np.float32(square)))
    divisor = h(np.float32(root) + np.float32(1e-6))
    update = h(np.float32(mean) / np.float32(divisor))
    decay = h(np.float32(0.2) * np.float32(p))
    update = h(np.float32(update) + np.float32(decay))
    stepped: np.float16 = h(np.float32(p) - np.float32(h(np.float32(rate) * np.float32(update))))
    return stepped


@pytest.mark.parametrize(("weight", "gradient"), [(1.0, 0.5), (-0.3, 1e-3), (0.7, 2e-4)])
def test_a_step_in_fp16_by_hand(weight: float, gradient: float) -> None:
    parameter = nn.Parameter(torch.tensor([weight], dtype=torch.float16))
    recipe = Recipe(lr=0.25, coef_lr=1.0, total_steps=4, warmup=0.0)
    optimizer = RecipeAdam([{"params": [parameter], "lr": 0.25, "weight_decay": 0.2}], recipe)
    parameter.grad = torch.tensor([gradient], dtype=torch.float16)
    optimizer.step()  # at progress 0 without warm-up the rate is the whole one
    assert parameter.item() == float(half_step(weight, gradient, 0.25))
    square = optimizer.state[parameter]["square"].item()
    # 0.02 * 1e-3² = 2e-8 is less than half of FP16's least number, 6e-8: the moment is zero.
    assert (square == 0) == (gradient <= 1e-3)


def random_pairs(count: int) -> Pairs:
    generator = torch.Generator().manual_seed(4)
    token_ids = torch.zeros(count, 10, dtype=torch.int64)
    token_ids[:, :4] = torch.randint(1, 598, (count, 4), generator=generator)
    token_ids[:, 4] = 599
    frames = torch.randint(0, 256, (count, 5, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return Pairs(token_ids, frames, torch.arange(count) % 5 + 1)


@pytest.mark.parametrize("patch", list(PatchEmbedding))
def test_a_model_in_fp16_trains(make_model: Any, patch: PatchEmbedding) -> None:
    model = make_model(temporal_head=TemporalHead.TRANSFORMER, patch_embedding=patch).train()
    whole = compute_gradients(model, random_pairs(4))
    model.zero_grad()
    halve_clip(model)
    optimizer = make_optimizer(model, Recipe(lr=1e-3, coef_lr=1.0, total_steps=10, warmup=0.0))
    result = train_step(model, optimizer, random_pairs(4))
    assert result is not None
    assert result.loss == pytest.approx(whole.item(), rel=0.02)
    assert result.loss != whole.item()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("patch", "freeze_3d", "frozen"),
    [
        (PatchEmbedding.CONV_2D, False, True),
        (PatchEmbedding.CONV_3D, False, False),
        (PatchEmbedding.CONV_3D, True, True),
    ],
)
def test_freezing_with_3d_patches(
    make_model: Any, patch: PatchEmbedding, freeze_3d: bool, frozen: bool
) -> None:
    model = make_model(patch_embedding=patch)
    freeze_layers(model, 1, freeze_3d=freeze_3d)
    assert any(not parameter.requires_grad for parameter in model.parameters()) == frozen


@pytest.mark.parametrize("parts", [2, 4])
def test_each_part_of_a_batch_has_its_own_loss(make_model: Any, parts: int) -> None:
    """The gradient is the mean of the parts', each with the negatives of its part alone."""
    model = make_model(temporal_head=TemporalHead.TRANSFORMER).double().train()
    pairs = random_pairs(8)
    expected: dict[str, torch.Tensor] = {}
    losses = []
    for start in range(0, 8, 8 // parts):
        model.zero_grad()
        part = Pairs(*(tensor[start : start + 8 // parts] for tensor in pairs))
        losses.append(compute_gradients(model, part))
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                expected[name] = expected.get(name, 0.0) + parameter.grad / parts
    model.zero_grad()
    loss = compute_gradients(model, pairs, accumulation_steps=parts)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-12)
    model.zero_grad()
    whole = compute_gradients(model, pairs)
    assert whole > loss  # more negatives


SECONDS = 7


@pytest.fixture
def clip(tmp_path: Path) -> SplitVideo:
    return SplitVideo("v", write_clip(tmp_path / "v.mp4", 3, SECONDS))


@pytest.mark.parametrize(("position", "taken"), [(0, [0, 1, 2]), (1, [4, 5, 6]), (2, [0, 3, 6])])
def test_slice_positions(clip: SplitVideo, tmp_path: Path, position: int, taken: list[int]) -> None:
    """One frame a second, of which max_frames are kept: head, tail or int(linspace(0, 6, 3))."""
    every = read_video(clip.path, FrameSampling(max_frames=99), image_size=32).frames
    assert len(every) == SECONDS
    reading = VideoReading(FrameSampling(max_frames=3), 32)
    cache = FrameCache(tmp_path / "cache", 1_000_000)
    source = FrameSource(reading, cache, position)
    for _ in range(2):  # decoded, then from the cache
        np.testing.assert_array_equal(source.read(clip), every[taken])
    # One cache serves all positions.
    np.testing.assert_array_equal(FrameSource(reading, cache).read(clip), every[[0, 3, 6]])


def test_frame_orders() -> None:
    frames = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)

    def order(kind: int, *stream: int) -> list[int]:
        found: list[int] = in_order(frames, kind, stream).reshape(-1).tolist()
        return found

    assert order(0, 1) == [0, 1, 2, 3, 4]
    assert order(1, 1) == [4, 3, 2, 1, 0]
    assert sorted(order(2, 1)) == [0, 1, 2, 3, 4]
    assert order(2, 1) == order(2, 1)
    assert len({tuple(order(2, n)) for n in range(50)}) > 25


@pytest.fixture
def pairs_of(clip: SplitVideo) -> Any:
    def make(**options: Any) -> PairDataset:
        split = Split(
            name="made/train",
            videos=(clip, clip),
            captions=("zero", "one", "two", "three", "four"),
            video_of_caption=np.array([0, 0, 1, 1, 1], dtype=np.int64),
        )
        source = FrameSource(VideoReading(FrameSampling(max_frames=3), 32))
        return PairDataset(split, Tokenizer.default(), source, 8, **options)

    return make


def test_one_random_caption_a_video(pairs_of: Any) -> None:
    pairs = pairs_of(expand_sentences=False, seed=5)
    assert len(pairs) == 2
    drawn = [[pairs.read(video, epoch).caption_index for epoch in range(20)] for video in (0, 1)]
    assert set(drawn[0]) == {0, 1}
    assert set(drawn[1]) == {2, 3, 4}
    again = pairs_of(expand_sentences=False, seed=5)
    assert [again.read(1, epoch).caption_index for epoch in range(20)] == drawn[1]
    pair = pairs.read(1, 0)
    assert pair.video_index == 1
    expected = Tokenizer.default().encode([pairs.split.captions[pair.caption_index]], 8)[0]
    np.testing.assert_array_equal(pair.token_ids, expected)
    assert len(pairs_of()) == 5


def test_frames_are_turned_before_they_are_padded(pairs_of: Any) -> None:
    usual, turned = pairs_of(), pairs_of(frame_order=1)
    assert torch.equal(turned[0].frames, usual[0].frames.flip(0))
    shuffled = pairs_of(frame_order=2)
    found = {shuffled.read(0, epoch).frames.numpy().tobytes() for epoch in range(12)}
    assert 1 < len(found) <= 6
