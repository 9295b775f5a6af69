"""Explanations of any number of grains, words and frames, from seeded features. No model runs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import Float64Array
from xclip_deploy.runtime.evidence import Explanation, TokenKind, explain_video, words_of
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import GalleryVideo
from xclip_deploy.runtime.grains import PUBLISHED_GRAINS, Grain, matrix_shapes
from xclip_deploy.runtime.model_config import ModelConfig, TextConfig, VisionConfig
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.runtime.video import VideoFrames

_DIM = 24


def explanation(
    query: str,
    *,
    grains: tuple[Grain, ...] = PUBLISHED_GRAINS,
    frames: int = 12,
    valid: int | None = None,
    words: int = 16,
    path: str | None = "clips/dog.mp4",
    seed: int = 0,
) -> Explanation:
    """Explain the score of a query for a video of seeded features, padded after ``valid``."""
    config = ModelConfig(
        embed_dim=_DIM,
        vision=VisionConfig(image_size=32, patch_size=16, width=64, layers=1, heads=1),
        text=TextConfig(width=64, layers=1, heads=1),
        max_words=words,
        max_frames=frames,
        grains=grains,
    )
    random = np.random.default_rng(seed)

    def unit(*shape: int, near: Float64Array | None = None) -> Float64Array:
        vectors = random.normal(size=(*shape, _DIM))
        vectors = vectors if near is None else near + 0.35 * vectors
        found: Float64Array = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        return found

    ids = Tokenizer.default().encode([query], words)[0]
    found = words_of(Tokenizer.default(), ids)
    count = 1 + sum(word.kind is TokenKind.WORD for word in found)
    sentence = unit(count, near=unit())
    video = unit(1, near=sentence[0])
    texts = TextFeatures(
        sentence, unit(count, words, near=sentence[:, None]), np.full(count, words, np.int32)
    )
    seen = VideoFeatures(video, unit(1, frames, near=video), np.array([valid or frames], np.int32))
    matrices = {
        name: np.eye(*shape) + 0.1 * random.normal(size=shape)
        for name, shape in matrix_shapes(config).items()
    }
    arrays = {"logit_scale": np.float32(3.0)} | {
        name: matrix.astype(np.float32) for name, matrix in matrices.items()
    }
    entry = GalleryVideo(
        id=path or "a video",
        path=path,
        duration_s=float(valid or frames),
        frame_times_s=tuple(float(second) for second in range(valid or frames)),
    )
    weights = ScorerWeights.from_arrays(arrays, config)
    return explain_video(query, found, texts, entry, seen, weights, config)


def coloured_frames(count: int, side: int = 48) -> VideoFrames:
    """Make frames with a square that moves, so that each frame can be told from the others."""
    pictures: npt.NDArray[np.uint8] = np.zeros((count, side, side, 3), np.uint8)
    for number in range(count):
        pictures[number] = (30, 60 + 150 * number // max(count, 1), 120)
        left = number * (side - 16) // max(count - 1, 1)
        pictures[number, 16:32, left : left + 16] = (230, 190, 40)
    return VideoFrames(
        frames=pictures,
        times_s=np.arange(count, dtype=np.float64),
        frame_numbers=np.arange(count),
        duration_s=float(count),
        frame_rate=1.0,
    )
