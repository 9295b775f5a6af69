"""Learned matrices, and the texts of a search, as the scan kernels read them.

Kernels multiply in FP16. Each number is the sum of two parts, so that it is as exact as FP32. A
power of two brings the largest number to about 1,000: the rest of an FP16 number is then a normal
FP16 number too, and products of long vectors do not overflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arrays import AnyArray, Float32Array
from xclip_deploy.runtime.features import TextFeatures
from xclip_deploy.runtime.grains import TEMPERATURE, Grain
from xclip_deploy.runtime.resident.shape import SENTENCE_COLUMNS, ScanShape
from xclip_deploy.runtime.scorer_weights import ScorerWeights

Float16Array = npt.NDArray[np.float16]

_LARGEST = 10
"""Exponent of the largest number."""
_MOST_SHIFT = 100
"""Largest exponent of a power of two that scales numbers. Its inverse is an FP32 number too."""
_FRAME_MATRICES = ("frame_logit_weight", "frame_mat_weight", "frame_mat_weight2")
_WORD_MATRICES = ("word_logit_weight", "word_mat_weight", "word_mat_weight2")
_QUERY_MATRICES = ("local_mat_weight", "global_mat_weight")


@dataclass(frozen=True, eq=False)
class ScanMatrices:
    """The learned matrices of a scorer, as the kernels read them."""

    matrices: Float16Array
    """Those of the frames, [3, 2, FP, FP], then those of the words, [3, 2, WP, WP], as one row.
    Both parts of each, zero beyond the model's size and where the model has none."""
    matrix_scales: Float32Array
    """Factor from each of the matrices above to the learned one, [6]."""
    query_matrices: Float32Array
    """Matrices that multiply words and sentences, [2, D, D]; the identity where there is none."""
    growth: tuple[float, float]
    """Largest factor by which each can enlarge the largest number of a vector."""

    @classmethod
    def of(cls, shape: ScanShape, weights: ScorerWeights) -> ScanMatrices:
        """Lay out the matrices of a scorer."""
        packed: list[Float16Array] = []
        scales: list[float] = []
        for names, size in (
            (_FRAME_MATRICES, shape.padded_frames),
            (_WORD_MATRICES, shape.padded_words),
        ):
            for name in names:
                padded = np.zeros((size, size), np.float32)
                if (matrix := weights.matrices.get(name)) is not None:
                    padded[: len(matrix), : len(matrix)] = matrix
                shift = int(_shifts(np.abs(padded).max()))
                packed += [part.ravel() for part in _two_parts(np.ldexp(padded, shift))]
                scales.append(2.0**-shift)
        own = [weights.matrices.get(name) for name in _QUERY_MATRICES]
        identity = np.eye(shape.embed_dim, dtype=np.float32)
        both = np.stack([identity if matrix is None else matrix for matrix in own])
        # The largest number of x M is at most that of x times the largest column sum of |M|.
        growth = np.abs(both).sum(1).max(1)
        return cls(
            np.concatenate(packed),
            np.asarray(scales, np.float32),
            np.ascontiguousarray(both, np.float32),
            (float(growth[0]), float(growth[1])),
        )

    def arrays(self) -> dict[str, AnyArray]:
        """Return the arrays that kernels read, by name."""
        return {
            "matrices": self.matrices,
            "matrix_scales": self.matrix_scales,
            "query_matrices": self.query_matrices,
        }


@dataclass(frozen=True, eq=False)
class ScanTexts:
    """T texts as the kernels read them.

    Four factors are made of them: for frames and words, frames and sentences, videos and words,
    videos and sentences.
    """

    word_features: Float32Array
    """[T, W, D]."""
    sentence_features: Float32Array
    """[T, D]."""
    num_words: npt.NDArray[np.int32]
    """Words of each text without padding, [T]."""
    ups: Float32Array
    """Power of two that scales each factor, [T, 4]."""
    scales: Float32Array
    """Factor from each product to the similarity, [T, 4]. It divides by the temperature, except
    for the sentences of videos."""

    @classmethod
    def of(cls, texts: TextFeatures, shape: ScanShape, matrices: ScanMatrices) -> ScanTexts:
        """Lay out texts. Missing words are zeros. Raises InvalidArgumentError for more of them."""
        count, most, dim = len(texts), shape.max_words, shape.embed_dim
        given = texts.word_features
        if (
            given.shape[1] > most
            or given.shape[2] != dim
            or texts.sentence_features.shape[1] != dim
        ):
            raise InvalidArgumentError(
                f"texts have words {list(given.shape)} and sentences "
                f"{list(texts.sentence_features.shape)}; expected [{count}, {most}, {dim}] and "
                f"[{count}, {dim}]"
            )
        words = np.zeros((count, most, dim), np.float32)
        words[:, : given.shape[1]] = given
        sentences = np.ascontiguousarray(texts.sentence_features, np.float32)
        largest_word = np.abs(words).max((1, 2), initial=0)
        largest = np.abs(sentences).max(1, initial=0)
        of_words, of_sentences = matrices.growth
        largest, largest_word = largest.astype(np.float64), largest_word.astype(np.float64)
        bounds = np.stack(
            [of_words * largest_word, largest, largest_word, of_sentences * largest], axis=1
        )
        shifts = _shifts(bounds)
        divisors = np.array([TEMPERATURE, TEMPERATURE, TEMPERATURE, 1.0])
        return cls(
            words,
            sentences,
            np.asarray(texts.num_words, np.int32),
            np.ldexp(np.float32(1), shifts),
            (np.ldexp(1.0, -shifts) / divisors).astype(np.float32),
        )

    def arrays(self) -> dict[str, AnyArray]:
        """Return all arrays by name."""
        return dict(vars(self))


def factor_bytes(shape: ScanShape, num_texts: int) -> Mapping[str, int]:
    """Return the sizes of the factors that a kernel makes of texts, by name, in bytes.

    Factors of words are FP16 [T, D, 2 WP], both parts side by side. Those of sentences are
    [T, D, 16]: both parts, then zeros. Those that no grain needs are empty.
    """
    row = 2 * num_texts * shape.embed_dim
    words, sentences = row * 2 * shape.padded_words, row * SENTENCE_COLUMNS
    wanted = (
        ("frame_words", Grain.FRAME_WORD, words),
        ("frame_sentences", Grain.FRAME_SENTENCE, sentences),
        ("video_words", Grain.VIDEO_WORD, words),
        ("video_sentences", Grain.VIDEO_SENTENCE, sentences),
    )
    return {name: nbytes if grain in shape.grains else 0 for name, grain, nbytes in wanted}


def _shifts(largest: AnyArray | np.floating) -> npt.NDArray[np.int32]:
    """Return the exponents of two that bring largest numbers to about 1,000."""
    exponents = np.where(np.asarray(largest) > 0, np.frexp(largest)[1], 0)
    found: npt.NDArray[np.int32] = np.clip(_LARGEST - exponents, -_MOST_SHIFT, _MOST_SHIFT)
    return found.astype(np.int32)


def _two_parts(numbers: Float32Array) -> tuple[Float16Array, Float16Array]:
    """Split FP32 numbers into two of FP16 whose sum they are."""
    high = numbers.astype(np.float16)
    return high, (numbers - high.astype(np.float32)).astype(np.float16)
