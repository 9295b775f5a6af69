"""The grains that need no frames: the part of a score that ``video_features`` give.

Video-sentence and video-word read ``video_features`` alone, a twelfth of the frames' size with
F = 12. On the trained demo preset, their sum finds with 300 videos what video-sentence finds with
800.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xclip_deploy.runtime.arrays import Float32Array, Float64Array, FloatArray, to_float32
from xclip_deploy.runtime.features import TextFeatures
from xclip_deploy.runtime.grains import GRAINS, Grain
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.scorer_weights import ScorerWeights, attend

_IN_ONE_THREAD = 1 << 18
"""Largest matrix product, in multiplications, that OpenBLAS computes in one thread."""


def project_sentences(sentences: FloatArray, weights: ScorerWeights) -> Float32Array:
    """Multiply sentences [T, D] with G for the video-sentence grain; returns FP32 [T, D]."""
    wide = sentences.astype(np.float32)
    matrix = weights.matrices.get("global_mat_weight")
    if matrix is None:
        return wide
    # einsum avoids BLAS's threads; see _products().
    projected: Float32Array = np.einsum("td,de->te", wide, matrix)
    return projected


def of_videos(
    text: TextFeatures, vectors: FloatArray, weights: ScorerWeights, config: ModelConfig
) -> Float64Array:
    """Return the part of the mean of all grains that needs no frames: FP64 [V].

    ``text``: features of one text; ``vectors``: ``video_features`` [V, D].
    """
    is_word = np.arange(len(text.word_features[0])) < text.num_words[0]
    mask = is_word if config.mask_padding else None

    def video_word(products: Float32Array) -> Float32Array:
        similarity = products[..., 1:]  # [stacks, rows, W]
        attention = attend(similarity, weights.matrices["word_logit_weight"], mask)
        return np.asarray((attention * similarity).sum(axis=-1))

    formulas: dict[Grain, Callable[[Float32Array], Float32Array]] = {
        Grain.VIDEO_SENTENCE: lambda products: products[..., 0],
        Grain.VIDEO_WORD: video_word,
    }
    sentence = project_sentences(text.sentence_features, weights)
    words = text.word_features[0].astype(np.float32)
    total = np.zeros(len(vectors))
    start = 0
    for products in _products(to_float32(vectors), np.concatenate([sentence, words])):
        part = slice(start, start := start + products.shape[0] * products.shape[1])
        for grain in _without_frames(config):
            total[part] += formulas[grain](products).ravel()
    return total / len(config.grains)


def tells_more_than_first_stage(config: ModelConfig) -> bool:
    """Tell whether a grain other than video-sentence needs no frames."""
    return any(grain is not Grain.VIDEO_SENTENCE for grain in _without_frames(config))


def _without_frames(config: ModelConfig) -> list[Grain]:
    return [grain for grain in config.grains if not GRAINS[grain].reads_frames]


def _products(left: Float32Array, right: Float32Array) -> list[Float32Array]:
    """Multiply ``left`` [V, D] with ``right`` [P, D] in stacks: [stacks, rows, P] each.

    NumPy passes each matrix of a stack to BLAS separately. One large product would wake BLAS's
    threads, which then spin on the cores that ONNX Runtime needs next. On two cores, a query took
    more than twice as long.
    """
    rows = max(1, _IN_ONE_THREAD // right.size)
    whole = len(left) // rows * rows
    stacks = left[:whole].reshape(-1, rows, left.shape[1])
    return [np.matmul(part, right.T) for part in (stacks, left[np.newaxis, whole:])]
