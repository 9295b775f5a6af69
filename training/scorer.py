"""scorer: the multi-grained similarity of X-CLIP.

Formulas: Ma et al., "X-CLIP: End-to-End Multi-grained Contrastive Learning for Video-Text
Retrieval", ACM MM 2022, sections 3.2 and 3.3. Everything here is computed in FP32 or wider:
with the temperature of 0.01, an FP16 similarity of 0.3 is off by 2-4 % in its weight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from xclip_deploy.runtime.model_config import Grain, ModelConfig
from xclip_deploy.training.precision import at_least_float32

TEMPERATURE = 0.01
"""Of the attention over similarities (AOSM)."""
INITIAL_LOGIT_SCALE = 2.6593
"""ln(1 / 0.07), where CLIP starts from."""


class Scores(NamedTuple):
    """Similarities of T texts to V videos."""

    logits: Tensor
    """[T, V]: exp(logit_scale) times the mean of the grains."""
    grains: dict[str, Tensor]
    """Grain name to its similarity [T, V], for the grains that the model has, in order."""


def attend(x: Tensor, weight: Tensor, is_valid: Tensor | None) -> Tensor:
    """Attention over similarities: A(x; M) = sum((softmax(x) M) * x) over the last axis.

    ``x``: similarities over the temperature [..., n], as is what comes out, [...];
    ``weight``: M, [n, n]; ``is_valid``: bool, broadcastable to ``x``, or None where padding
    counts as in the published model. (Section 3.3, equations of AOSM; M is the learned matrix
    of the authors' code.) It is linear in the factor outside the softmax, so that in units of the
    temperature no temperature is left.
    """
    if is_valid is None:
        return ((x.softmax(dim=-1) @ weight) * x).sum(dim=-1)
    # -inf cannot meet a row without a valid entry: texts and videos have at least one.
    attention = x.masked_fill(~is_valid, float("-inf")).softmax(dim=-1)
    return ((attention @ weight) * x * is_valid).sum(dim=-1)


def attend_across(x: Tensor, weight: Tensor, is_valid: Tensor | None) -> Tensor:
    """:func:`attend` over the last axis but one: ``x`` [..., n, m] to [..., m].

    The same as of ``x`` transposed, with M on the other factor:
    sum_i p_i sum_j M_ij x_j = p (M x). Transposing costs an exported graph more than the rest.
    """
    logits = x
    if is_valid is not None:
        logits = x.masked_fill(~is_valid, float("-inf"))
        x = x * is_valid
    # The largest becomes 0, so that nothing overflows; it cancels out, in the gradient too.
    powers = (logits - logits.detach().amax(dim=-2, keepdim=True)).exp()
    return (powers * (weight @ x)).sum(dim=-2) / powers.sum(dim=-2)


def _wide(name: str, features: Tensor | None) -> Tensor:
    if features is None:
        raise ValueError(f"this model's grains need {name}")
    return at_least_float32(features)


class Scorer(nn.Module):
    """Similarity of every text to every video, at the grains of the configuration."""

    keep_float32 = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, words, frames = config.embed_dim, config.max_words, config.max_frames
        self.grains = config.grains
        self.mask_padding = config.mask_padding
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        if Grain.VIDEO_SENTENCE in self.grains and config.sentence_projection:
            self.global_mat_weight = nn.Parameter(torch.eye(dim))
        if Grain.VIDEO_WORD in self.grains:
            self.word_logit_weight = nn.Parameter(torch.eye(words))
        if Grain.FRAME_SENTENCE in self.grains:
            self.frame_logit_weight = nn.Parameter(torch.eye(frames))
        if Grain.FRAME_WORD in self.grains:
            self.local_mat_weight = nn.Parameter(torch.eye(dim))
            self.word_mat_weight = nn.Parameter(torch.eye(words))
            self.frame_mat_weight = nn.Parameter(torch.eye(frames))
            self.word_mat_weight2 = nn.Parameter(torch.eye(words))
            self.frame_mat_weight2 = nn.Parameter(torch.eye(frames))

    def forward(
        self,
        sentence_features: Tensor | None = None,
        word_features: Tensor | None = None,
        video_features: Tensor | None = None,
        frame_features: Tensor | None = None,
        num_words: Tensor | None = None,
        num_frames: Tensor | None = None,
    ) -> Scores:
        """Score T texts against V videos.

        ``sentence_features`` [T, D], ``word_features`` [T, W, D], ``video_features`` [V, D],
        ``frame_features`` [V, F, D], of unit length; only those that the model's grains
        compare are read. ``num_words`` [T] (start and end token included) and ``num_frames``
        [V] are read only where the model masks padding. Raises ValueError for a missing one.
        """

        def sentence() -> Tensor:
            return _wide("sentence_features", sentence_features)

        def word() -> Tensor:
            return _wide("word_features", word_features)

        def video() -> Tensor:
            return _wide("video_features", video_features)

        def frame() -> Tensor:
            return _wide("frame_features", frame_features)

        def is_word() -> Tensor | None:
            return self._mask("num_words", num_words, word())  # [T, W]

        def is_frame() -> Tensor | None:
            return self._mask("num_frames", num_frames, frame())  # [V, F]

        compare = {
            Grain.VIDEO_SENTENCE: lambda: self._video_sentence(sentence(), video()),
            Grain.VIDEO_WORD: lambda: self._video_word(word(), video(), is_word()),
            Grain.FRAME_SENTENCE: lambda: self._frame_sentence(sentence(), frame(), is_frame()),
            Grain.FRAME_WORD: lambda: self._frame_word(word(), frame(), is_word(), is_frame()),
        }
        grains = {grain.value: compare[grain]() for grain in self.grains}
        mean = torch.stack(list(grains.values())).mean(dim=0)
        return Scores(self.logit_scale.exp() * mean, grains)

    def _mask(self, name: str, lengths: Tensor | None, features: Tensor) -> Tensor | None:
        """Which positions are not padding, bool [N, L]; None where padding counts."""
        if not self.mask_padding:
            return None
        if lengths is None:
            raise ValueError(f"this model masks padding and needs {name}")
        positions = torch.arange(features.shape[1], device=features.device)
        return positions < lengths[:, None]

    def _video_sentence(self, sentence: Tensor, video: Tensor) -> Tensor:
        if hasattr(self, "global_mat_weight"):
            sentence = sentence @ self.global_mat_weight
        return sentence @ video.T  # [T, V]

    # The attentions work in units of the temperature: similarities are divided by it, where it
    # costs least, and what comes out is multiplied.

    def _video_word(self, word: Tensor, video: Tensor, is_word: Tensor | None) -> Tensor:
        texts, words, dim = word.shape
        similarity = video @ (word.reshape(-1, dim) / TEMPERATURE).T
        similarity = similarity.reshape(-1, texts, words)  # [V, T, W]
        return attend(similarity, self.word_logit_weight, is_word).T * TEMPERATURE

    def _frame_sentence(self, sentence: Tensor, frame: Tensor, is_frame: Tensor | None) -> Tensor:
        videos, frames, dim = frame.shape
        similarity = sentence @ frame.reshape(-1, dim).T
        # Not before it has this shape: ONNX Runtime would make the factor part of the product,
        # which takes twice as long for one text.
        similarity = similarity.reshape(-1, videos, frames) / TEMPERATURE  # [T, V, F]
        return attend(similarity, self.frame_logit_weight, is_frame) * TEMPERATURE

    def _frame_word(
        self, word: Tensor, frame: Tensor, is_word: Tensor | None, is_frame: Tensor | None
    ) -> Tensor:
        texts, words, dim = word.shape
        videos, frames, _ = frame.shape
        projected = (word @ self.local_mat_weight).reshape(-1, dim) / TEMPERATURE
        # The gallery's features from the left: a runtime packs the right factor, which is small.
        similarity = frame.reshape(-1, dim) @ projected.T
        similarity = similarity.reshape(videos, frames, texts * words)
        # Here [V, F, T W], below [V, F, T, W]: the same memory, of which nothing is moved.
        wide_mask = None if is_frame is None else is_frame[..., None]  # [V, F, 1]
        frames_first = attend_across(similarity, self.frame_mat_weight, wide_mask)
        frames_first = frames_first.reshape(videos, texts, words)
        frames_first = attend(frames_first, self.word_mat_weight2, is_word)  # [V, T]
        similarity = similarity.reshape(videos, frames, texts, words)
        words_first = attend(similarity, self.word_mat_weight, is_word)  # [V, F, T]
        frame_mask = None if is_frame is None else is_frame[:, None, :]  # [V, 1, F]
        words_first = attend(words_first.transpose(1, 2), self.frame_mat_weight2, frame_mask)
        return (words_first + frames_first).T * (TEMPERATURE / 2)

    def initialize(self) -> None:
        """The published start: identity matrices and CLIP's logit scale."""
        for name, parameter in self.named_parameters():
            if name == "logit_scale":
                nn.init.constant_(parameter, INITIAL_LOGIT_SCALE)
            else:
                nn.init.eye_(parameter)
