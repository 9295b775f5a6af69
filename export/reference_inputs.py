"""Make inputs that look like real ones, for comparing graphs with PyTorch.

Uniform noise would be a poor test: every frame of it embeds to nearly the same vector. These
videos are smooth, moving and coloured. These texts have the lengths of real captions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.tokenizer import Tokenizer

_CAPTIONS = (
    "a man in a red jacket rides a bicycle down a steep mountain road",
    "two dogs run after a ball",
    "someone cuts an onion into small pieces, heats oil in a pan, adds the onion with salt and "
    "pepper, stirs it until it is golden, pours in the beaten eggs and serves the omelette on a "
    "white plate with a slice of bread",
    "dancing",
    "",
)


@dataclass(frozen=True)
class ReferenceInputs:
    """Texts and videos as the encoders take them."""

    token_ids: npt.NDArray[np.int32]
    """Token ids [T, W]: captions of many lengths, one cut at W, one empty."""
    frames: npt.NDArray[np.uint8]
    """Frames [V, F, S, S, 3]: a full video, one with padding, one of a single frame."""
    num_frames: npt.NDArray[np.int32]
    """Numbers of valid frames [V]."""


def reference_inputs(config: ModelConfig, tokenizer: Tokenizer) -> ReferenceInputs:
    """Make the inputs of a configuration. They are the same on every call."""
    random = np.random.default_rng(20220710)
    counts = sorted({config.max_frames, max(1, config.max_frames * 2 // 3), 1}, reverse=True)
    num_frames = np.array(counts, dtype=np.int32)
    size = config.vision.image_size
    frames = np.zeros((len(counts), config.max_frames, size, size, 3), dtype=np.uint8)
    for video, count in zip(frames, counts, strict=True):
        video[:count] = _moving_scene(random, count, size)
        # The content of padded frames must not matter.
        video[count:] = random.integers(0, 256, video[count:].shape, dtype=np.uint8)
    token_ids = tokenizer.encode(_CAPTIONS, config.max_words)
    return ReferenceInputs(token_ids, frames, num_frames)


def drawn_videos(count: int, max_frames: int, size: int) -> list[npt.NDArray[np.uint8]]:
    """Draw videos of 1 to ``max_frames`` frames, [n, S, S, 3] each; the same on every call."""
    random = np.random.default_rng(20220711)
    lengths = np.linspace(max_frames, 1, count).round().astype(int)
    return [_moving_scene(random, int(length), size) for length in lengths]


def _moving_scene(random: np.random.Generator, count: int, size: int) -> npt.NDArray[np.uint8]:
    """Draw frames [count, S, S, 3]: a disc that crosses a textured, drifting background."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    start, speed = random.uniform(0.1, 0.9, 2), random.uniform(-0.5, 0.5, 2)
    waves = random.normal(size=(12, 3))
    frequencies = random.normal(scale=6.0, size=(12, 2))
    colour = random.uniform(0, 255, 3)
    scene = np.empty((count, size, size, 3))
    for n, time in enumerate(np.linspace(0, 1, count)):
        phase = (
            frequencies[:, 0, None, None] * (rows + 0.3 * time)
            + frequencies[:, 1, None, None] * columns
        )
        background = np.tensordot(np.sin(phase * 2 * np.pi), waves, axes=(0, 0))  # [S, S, 3]
        scene[n] = 120 + 25 * background
        centre = start + speed * time
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 0.03
        scene[n][disc] = colour
    scene += random.normal(scale=3.0, size=scene.shape)
    return np.clip(scene, 0, 255).astype(np.uint8)
