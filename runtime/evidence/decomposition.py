"""The scorer taken apart: what every word and frame contributes to the four grains.

The formulas are those of ``training/scorer.py`` (Ma et al., "X-CLIP", ACM MM 2022, sections 3.2
and 3.3), for one text and one video, in FP64. AOSM gives a similarity as a sum over positions::

    A(x; M) = sum_j a_j x_j        with  a = softmax(x / 0.01) M

so position j contributes ``a_j x_j``, and contributions add up to the grain by construction. The
weights ``a`` are softmax weights mixed by the learned M: they can be negative and need not add
up to 1. Where the model masks padding, weights of padded positions are 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.attention import attend, project
from xclip_deploy.runtime.features import FloatArray, TextFeatures, VideoFeatures
from xclip_deploy.runtime.model_config import Grain, ModelConfig
from xclip_deploy.runtime.scorer_weights import ScorerWeights

Wide = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class WordsFirst:
    """Weights of frame-word where words are aggregated within each frame, then the frames."""

    words: Wide
    """[W, F]: of the words within each frame."""
    frames: Wide
    """[F]: of the frames."""

    @property
    def joint(self) -> Wide:
        """[W, F]: what each similarity is multiplied with."""
        return self.words * self.frames


@dataclass(frozen=True, eq=False)
class FramesFirst:
    """Weights of frame-word where frames are aggregated within each word, then the words."""

    frames: Wide
    """[W, F]: of the frames within each word."""
    words: Wide
    """[W]: of the words."""

    @property
    def joint(self) -> Wide:
        """[W, F]: what each similarity is multiplied with."""
        return self.frames * self.words[:, None]


@dataclass(frozen=True, eq=False)
class Attention:
    """The weights of every aggregation; None where the model has not the grain."""

    video_word: Wide | None
    """[W]"""
    frame_sentence: Wide | None
    """[F]"""
    words_first: WordsFirst | None
    frames_first: FramesFirst | None


@dataclass(frozen=True, eq=False)
class Decomposition:
    """One text and one video, token by token and frame by frame: W tokens, F frames.

    None for a grain that the model has not. Padded tokens and frames are among them, as the
    published scorer counts them. Every contribution is in units of its grain, a similarity.
    """

    scale: float
    """A score is this times the mean of the grains."""
    similarity: Wide
    """[W, F]: (word L) · frame, which frame-word aggregates. For models without that grain the
    plain product, which then has no part in the score."""
    sentence_similarity: Wide
    """[F]: sentence · frame, which frame-sentence aggregates."""
    video_sentence: float | None
    """(sentence G) · video. Not divided: a video's embedding is made of its frames by the
    temporal transformer, and of the sentence's no more than one vector is known."""
    video_word: Wide | None
    """[W]: a_w (word_w · video)."""
    frame_sentence: Wide | None
    """[F]: a_f (sentence · frame_f)."""
    frame_word: Wide | None
    """[W, F]: (p_wf + q_wf) / 2 times the similarity s_wf, with p the joint weight where words
    come first, q where frames do. Its sum over words is what a frame contributes, its sum over
    frames what a word does."""
    attention: Attention

    @property
    def grains(self) -> dict[str, float]:
        """The grain scores: the sums of their contributions."""
        parts = {grain.value: getattr(self, grain.value) for grain in Grain}
        return {name: float(np.sum(part)) for name, part in parts.items() if part is not None}

    @property
    def score(self) -> float:
        """The scorer's logit."""
        return self.scale * float(np.mean(list(self.grains.values())))

    @property
    def points(self) -> float:
        """How much of the score one unit of a grain is: ``scale`` over the number of grains."""
        return self.scale / len(self.grains)

    def to_dict(self) -> dict[str, Any]:
        """As plain dictionaries, lists and numbers, for JSON."""
        content: dict[str, Any] = _plain(asdict(self))
        return content


def decompose(
    text: TextFeatures, video: VideoFeatures, weights: ScorerWeights, config: ModelConfig
) -> Decomposition:
    """Take the score of one text and one video apart.

    ``text``, ``video``: features of one each, T = V = 1, of any floating type.
    """
    sentence, words = _wide(text.sentence_features[0]), _wide(text.word_features[0])
    whole, frames = _wide(video.video_features[0]), _wide(video.frame_features[0])
    is_word: _Mask | None = None
    is_frame: _Mask | None = None
    if config.mask_padding:
        is_word = np.arange(len(words)) < text.num_words[0]
        is_frame = np.arange(len(frames)) < video.num_frames[0]
    similarity = project(words, weights.local_mat_weight) @ frames.T  # [W, F]
    sentence_similarity = frames @ sentence  # [F]
    video_sentence = video_word = frame_sentence = frame_word = None
    of_words = of_frames = words_first = frames_first = None
    if Grain.VIDEO_SENTENCE in config.grains:
        video_sentence = float(project(sentence, weights.global_mat_weight) @ whole)
    if weights.word_logit_weight is not None:
        of_words = attend(words @ whole, weights.word_logit_weight, is_word)
        video_word = of_words * (words @ whole)
    if weights.frame_logit_weight is not None:
        of_frames = attend(sentence_similarity, weights.frame_logit_weight, is_frame)
        frame_sentence = of_frames * sentence_similarity
    if Grain.FRAME_WORD in config.grains:
        words_first, frames_first = _both_orders(similarity, weights, is_word, is_frame)
        frame_word = (words_first.joint + frames_first.joint) / 2 * similarity
    return Decomposition(
        weights.scale,
        similarity,
        sentence_similarity,
        video_sentence,
        video_word,
        frame_sentence,
        frame_word,
        Attention(of_words, of_frames, words_first, frames_first),
    )


def _both_orders(
    similarity: Wide, weights: ScorerWeights, is_word: _Mask | None, is_frame: _Mask | None
) -> tuple[WordsFirst, FramesFirst]:
    assert weights.word_mat_weight is not None
    assert weights.frame_mat_weight is not None
    assert weights.word_mat_weight2 is not None
    assert weights.frame_mat_weight2 is not None
    words = attend(similarity.T, weights.word_mat_weight, is_word)  # [F, W]
    by_frame = (words * similarity.T).sum(axis=1)  # [F]
    frames = attend(similarity, weights.frame_mat_weight, is_frame)  # [W, F]
    by_word = (frames * similarity).sum(axis=1)  # [W]
    return (
        WordsFirst(words.T, attend(by_frame, weights.frame_mat_weight2, is_frame)),
        FramesFirst(frames, attend(by_word, weights.word_mat_weight2, is_word)),
    )


def _wide(features: FloatArray) -> Wide:
    return features.astype(np.float64)


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value
