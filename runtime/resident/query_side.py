"""Prepare texts for a scan: query factors in two FP16 parts, and the scales of the products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import AnyArray, Float32Array
from xclip_deploy.runtime.features import TextFeatures
from xclip_deploy.runtime.grains import TEMPERATURE, Grain
from xclip_deploy.runtime.resident.shape import SENTENCE_COLUMNS, ScanShape
from xclip_deploy.runtime.scorer_weights import ScorerWeights

Float16Array = npt.NDArray[np.float16]

_LARGEST = 10
"""Exponent of a factor's largest number, about 1,000. The rest of an FP16 number is then a normal
FP16 number too, and products of long vectors do not overflow."""


@dataclass(frozen=True, eq=False)
class QueryFactors:
    """Factors of T texts, by which the kernels multiply features of frames and of videos.

    Each factor is a sum of two FP16 parts, scaled by a power of two. It is as exact as FP32.
    """

    frame_words: Float16Array
    """Words times ``local_mat_weight``, [T, 2, D, WP]. Empty without the grain frame–word."""
    frame_sentences: Float16Array
    """Sentences, [T, D, 16]: both parts, then zeros. Empty without frame–sentence."""
    video_words: Float16Array
    """Words, [T, 2, D, WP]. Empty without the grain video–word."""
    video_sentences: Float16Array
    """Sentences times ``global_mat_weight``, [T, D, 16]. Empty without video–sentence."""
    num_words: npt.NDArray[np.int32]
    """Words of each text without padding, [T]."""
    scales: Float32Array
    """Factor from each product to the similarity, [T, 4], in the order of the factors above. It
    divides by the temperature, except for video–sentence."""

    def arrays(self) -> dict[str, AnyArray]:
        """Return all arrays by name."""
        return dict(vars(self))


def query_factors(texts: TextFeatures, shape: ScanShape, weights: ScorerWeights) -> QueryFactors:
    """Prepare T texts for the kernels of a shape."""
    words = texts.word_features.astype(np.float32)
    sentences = texts.sentence_features.astype(np.float32)
    scales = np.zeros((len(texts), 4), np.float32)
    empty = np.zeros(0, np.float16)
    found = [empty] * 4
    wanted = (
        (Grain.FRAME_WORD, words, "local_mat_weight", TEMPERATURE),
        (Grain.FRAME_SENTENCE, sentences, None, TEMPERATURE),
        (Grain.VIDEO_WORD, words, None, TEMPERATURE),
        (Grain.VIDEO_SENTENCE, sentences, "global_mat_weight", 1.0),
    )
    for number, (grain, features, matrix, divisor) in enumerate(wanted):
        if grain not in shape.grains:
            continue
        learned = weights.matrices.get(matrix) if matrix is not None else None
        factor = features if learned is None else features @ learned
        parts, scale = _two_parts(factor)
        scales[:, number] = scale / divisor
        found[number] = _by_word(parts, shape) if factor.ndim == 3 else _by_sentence(parts)
    frame_words, frame_sentences, video_words, video_sentences = found
    return QueryFactors(
        frame_words,
        frame_sentences,
        video_words,
        video_sentences,
        np.asarray(texts.num_words, np.int32),
        scales,
    )


def _two_parts(factor: Float32Array) -> tuple[list[Float16Array], npt.NDArray[np.float64]]:
    """Split [T, ..., D] into two FP16 arrays whose sum, times the scale [T], is the factor."""
    largest = np.abs(factor).max(axis=tuple(range(1, factor.ndim)), initial=0)
    exponents = np.where(largest > 0, np.frexp(largest)[1], 0).astype(np.int64)
    shift = (_LARGEST - exponents).reshape(-1, *[1] * (factor.ndim - 1))
    scaled = np.ldexp(factor, shift)
    high = scaled.astype(np.float16)
    rest = (scaled - high.astype(np.float32)).astype(np.float16)
    return [high, rest], np.ldexp(1.0, exponents - _LARGEST)


def _by_word(parts: list[Float16Array], shape: ScanShape) -> Float16Array:
    """Lay out two parts [T, W, D] as [T, 2, D, WP], with zeros for words beyond W."""
    texts, words, dim = parts[0].shape
    laid = np.zeros((texts, 2, dim, shape.padded_words), np.float16)
    for number, part in enumerate(parts):
        laid[:, number, :, :words] = part.transpose(0, 2, 1)
    return laid


def _by_sentence(parts: list[Float16Array]) -> Float16Array:
    """Lay out two parts [T, D] as the first columns of [T, D, 16]."""
    laid = np.zeros((*parts[0].shape, SENTENCE_COLUMNS), np.float16)
    for number, part in enumerate(parts):
        laid[:, :, number] = part
    return laid
