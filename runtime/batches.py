"""Cutting work into batches, and how large those of the scorer are.

The scorer compares every word of a text with every frame of a video. With T texts, V videos,
W words and F frames it holds several arrays of T x V x W x F numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

from xclip_deploy.runtime.model_config import ModelConfig

SCORER_ELEMENTS = 1 << 22
"""Word-frame similarities scored at once: 16 MiB in each of the scorer's FP32 arrays."""
_TEXTS_AT_ONCE = 64
"""Texts whose word embeddings are in memory at once: 64 x 32 x 512 FP32 numbers are 4 MiB."""


def slices(total: int, step: int) -> Iterator[slice]:
    """Cut ``range(total)`` into slices of ``step``, at least 1; the last may be shorter."""
    step = max(1, step)
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def texts_at_once(config: ModelConfig, elements: int = SCORER_ELEMENTS) -> int:
    """Return how many texts to encode and score at once: 64 unless ``elements`` allow fewer."""
    return min(_TEXTS_AT_ONCE, max(1, elements // (config.max_words * config.max_frames)))


def videos_at_once(config: ModelConfig, num_texts: int, elements: int = SCORER_ELEMENTS) -> int:
    """Return how many videos to score at once against ``num_texts`` texts, at least 1.

    Neither the scorer's arrays nor the videos' frame embeddings then exceed ``elements`` numbers.
    """
    similarities = num_texts * config.max_words * config.max_frames
    return max(1, elements // max(similarities, config.max_frames * config.embed_dim))
