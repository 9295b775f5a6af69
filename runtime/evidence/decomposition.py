"""The scorer taken apart: the contributions of every word and frame to the grains.

The formulas are those of ``training/scorer.py`` (Ma et al., "X-CLIP", ACM MM 2022, sections 3.2
and 3.3), for one text and one video, in FP64. AOSM gives a similarity as a sum over positions::

    A(x; M) = Σ_j a_j x_j        with  a = softmax(x / 0.01) M

so position j contributes ``a_j x_j``, and contributions add up to the grain by construction. The
weights ``a`` are softmax weights mixed by the learned M: they can be negative and need not add
up to 1. Where the model masks padding, weights of padded positions are 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xclip_deploy.runtime.arrays import BoolArray, Float64Array, FloatArray
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.grains import GRAINS, Grain
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.scorer_weights import ScorerWeights, attend, project


@dataclass(frozen=True, eq=False)
class WordsFirst:
    """The weights of frame-word that aggregate words within each frame, then the frames."""

    words: Float64Array
    """Weights of the words within each frame, [W, F]."""
    frames: Float64Array
    """Weights of the frames, [F]."""

    @property
    def joint(self) -> Float64Array:
        """Factor of each similarity, [W, F]."""
        return self.words * self.frames


@dataclass(frozen=True, eq=False)
class FramesFirst:
    """The weights of frame-word that aggregate frames within each word, then the words."""

    frames: Float64Array
    """Weights of the frames within each word, [W, F]."""
    words: Float64Array
    """Weights of the words, [W]."""

    @property
    def joint(self) -> Float64Array:
        """Factor of each similarity, [W, F]."""
        return self.frames * self.words[:, None]


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """The weights of every aggregation; None for a grain that the model lacks."""

    video_word: Float64Array | None
    """Weights of the words, [W]."""
    frame_sentence: Float64Array | None
    """Weights of the frames, [F]."""
    words_first: WordsFirst | None
    frames_first: FramesFirst | None


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The score of one text and one video, by token and frame: W tokens, F frames.

    Padded tokens and frames are included, as the published scorer counts them.
    """

    score_scale: float
    """Factor from the mean of the grains to the score."""
    similarity: Float64Array
    """(word L) · frame, [W, F], which frame-word aggregates. For a model without that grain it is
    word · frame, which has no part in the score."""
    sentence_similarity: Float64Array
    """sentence · frame, [F], which frame-sentence aggregates."""
    contributions: dict[str, Float64Array]
    """Grain name to its contributions, for the model's grains, in the table's order.

    A contribution has the unit of its grain; their sum is the grain. The shape is [W] for a grain
    that reads words, [F] for one that reads frames, [W, F] for one that reads both and [] for one
    that reads neither. In frame-word it is (p_wf + q_wf) / 2 · s_wf: s is the similarity, p the
    joint weight of :class:`WordsFirst`, q that of :class:`FramesFirst`.
    """
    attention: AttentionWeights

    @property
    def grains(self) -> dict[str, float]:
        """The grain scores: the sums of their contributions."""
        return {name: float(np.sum(part)) for name, part in self.contributions.items()}

    @property
    def score(self) -> float:
        """The scorer's logit."""
        return self.score_scale * float(np.mean(list(self.grains.values())))

    @property
    def points(self) -> float:
        """Points of the score for one unit of a grain: ``score_scale`` / number of grains."""
        return self.score_scale / len(self.contributions)

    @property
    def by_word(self) -> dict[str, Float64Array]:
        """Contributions of tokens [W], for each of the model's grains that reads words."""
        return {
            name: part if part.ndim == 1 else part.sum(axis=1)
            for name, part in self.contributions.items()
            if GRAINS[Grain(name)].reads_words
        }

    @property
    def by_frame(self) -> dict[str, Float64Array]:
        """Contributions of frames [F], for each of the model's grains that reads frames."""
        return {
            name: part if part.ndim == 1 else part.sum(axis=0)
            for name, part in self.contributions.items()
            if GRAINS[Grain(name)].reads_frames
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and numbers, for JSON."""
        content = asdict(self)
        contributions = content.pop("contributions")
        plain: dict[str, Any] = _plain(
            content | {grain.value: contributions.get(grain.value) for grain in Grain}
        )
        return plain


def decompose(
    text: TextFeatures, video: VideoFeatures, weights: ScorerWeights, config: ModelConfig
) -> Decomposition:
    """Decompose the score of one text and one video.

    ``text``, ``video``: features of one each, T = V = 1, of any floating type.
    """
    sentence, words = _wide(text.sentence_features[0]), _wide(text.word_features[0])
    whole, frames = _wide(video.video_features[0]), _wide(video.frame_features[0])
    is_word: BoolArray | None = None
    is_frame: BoolArray | None = None
    if config.mask_padding:
        is_word = np.arange(len(words)) < text.num_words[0]
        is_frame = np.arange(len(frames)) < video.num_frames[0]
    matrices = weights.matrices
    similarity = project(words, matrices.get("local_mat_weight")) @ frames.T  # [W, F]
    sentence_similarity = frames @ sentence  # [F]
    of_words: Float64Array | None = None
    of_frames: Float64Array | None = None
    words_first: WordsFirst | None = None
    frames_first: FramesFirst | None = None

    def video_sentence() -> Float64Array:
        grain: Float64Array = np.asarray(
            project(sentence, matrices.get("global_mat_weight")) @ whole
        )
        return grain

    def video_word() -> Float64Array:
        nonlocal of_words
        of_words = attend(words @ whole, matrices["word_logit_weight"], is_word)
        return of_words * (words @ whole)

    def frame_sentence() -> Float64Array:
        nonlocal of_frames
        of_frames = attend(sentence_similarity, matrices["frame_logit_weight"], is_frame)
        return of_frames * sentence_similarity

    def frame_word() -> Float64Array:
        nonlocal words_first, frames_first
        words_first, frames_first = _both_orders(similarity, weights, is_word, is_frame)
        grain: Float64Array = (words_first.joint + frames_first.joint) / 2 * similarity
        return grain

    formulas = {
        Grain.VIDEO_SENTENCE: video_sentence,
        Grain.VIDEO_WORD: video_word,
        Grain.FRAME_SENTENCE: frame_sentence,
        Grain.FRAME_WORD: frame_word,
    }
    contributions = {grain.value: formulas[grain]() for grain in Grain if grain in config.grains}
    return Decomposition(
        weights.score_scale,
        similarity,
        sentence_similarity,
        contributions,
        AttentionWeights(of_words, of_frames, words_first, frames_first),
    )


def _both_orders(
    similarity: Float64Array,
    weights: ScorerWeights,
    is_word: BoolArray | None,
    is_frame: BoolArray | None,
) -> tuple[WordsFirst, FramesFirst]:
    matrices = weights.matrices
    words = attend(similarity.T, matrices["word_mat_weight"], is_word)  # [F, W]
    by_frame = (words * similarity.T).sum(axis=1)  # [F]
    frames = attend(similarity, matrices["frame_mat_weight"], is_frame)  # [W, F]
    by_word = (frames * similarity).sum(axis=1)  # [W]
    return (
        WordsFirst(words.T, attend(by_frame, matrices["frame_mat_weight2"], is_frame)),
        FramesFirst(frames, attend(by_word, matrices["word_mat_weight2"], is_word)),
    )


def _wide(features: FloatArray) -> Float64Array:
    return features.astype(np.float64)


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value
