"""scorer: the multi-grained similarity of X-CLIP.

Formulas: Ma et al., "X-CLIP: End-to-End Multi-grained Contrastive Learning for Video-Text
Retrieval", ACM MM 2022, sections 3.2 and 3.3. The scorer computes in FP32 or wider.
At the temperature of 0.01, an FP16 similarity of 0.3 would be off by 2-4 % in its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xclip_deploy.runtime.grains import GRAINS, LENGTHS, TEMPERATURE, Grain, matrix_shapes
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.training.precision import at_least_float32

INITIAL_LOGIT_SCALE = 2.6593
"""Start of CLIP's logit_scale, ln(1 / 0.07)."""


class ScorerOutput(NamedTuple):
    """Similarities of T texts to V videos."""

    logits: Tensor
    """exp(logit_scale) times the mean of the grains, [T, V]."""
    grains: dict[str, Tensor]
    """Similarity [T, V] by name of the grain, in the model's order."""


def attend(x: Tensor, weight: Tensor, is_valid: Tensor | None) -> Tensor:
    """Aggregate similarities by attention over the last axis (AOSM, section 3.3).

    A(x; M) = Σ_j (softmax(x / τ) M)_j x_j, with the learned matrix M and the temperature τ.
    A is homogeneous: pass x / τ, multiply the result by τ.

    ``x``: similarities divided by the temperature [..., n]; ``weight``: M [n, n];
    ``is_valid``: bool, broadcastable to ``x``, or None where padding counts as in the published
    model. Returns A / τ [...].
    """
    if is_valid is None:
        return ((x.softmax(dim=-1) @ weight) * x).sum(dim=-1)
    # Every row has a valid entry, so that softmax never sees -inf alone.
    attention = x.masked_fill(~is_valid, float("-inf")).softmax(dim=-1)
    return ((attention @ weight) * x * is_valid).sum(dim=-1)


def attend_across(x: Tensor, weight: Tensor, is_valid: Tensor | None) -> Tensor:
    """Aggregate as :func:`attend` does, over the last axis but one: [..., n, m] to [..., m].

    Σ_i p_i Σ_j M_ij x_j = p (M x): M multiplies the similarities here, not the weights. A
    transposed ``x`` would cost an exported graph more than all the rest.
    """
    logits = x
    if is_valid is not None:
        logits = x.masked_fill(~is_valid, float("-inf"))
        x = x * is_valid
    # Subtracting the largest prevents overflow. It cancels out, in the gradient too.
    powers = (logits - logits.detach().amax(dim=-2, keepdim=True)).exp()
    return (powers * (weight @ x)).sum(dim=-2) / powers.sum(dim=-2)


def _wide(name: str, features: Tensor | None) -> Tensor:
    if features is None:
        raise ValueError(f"this model's grains need {name}")
    return at_least_float32(features)


class Scorer(nn.Module):
    """Similarity of every text to every video, in the grains of the configuration."""

    keep_float32 = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grains = config.grains
        self.mask_padding = config.mask_padding
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        for name, shape in matrix_shapes(config).items():
            self.register_parameter(name, nn.Parameter(torch.eye(*shape)))

    def forward(
        self,
        sentence_features: Tensor | None = None,
        word_features: Tensor | None = None,
        video_features: Tensor | None = None,
        frame_features: Tensor | None = None,
        num_words: Tensor | None = None,
        num_frames: Tensor | None = None,
    ) -> ScorerOutput:
        """Score T texts against V videos.

        ``sentence_features`` [T, D], ``word_features`` [T, W, D], ``video_features`` [V, D],
        ``frame_features`` [V, F, D], of unit length; only those that the model's grains
        compare are read. ``num_words`` [T] (start and end token included) and ``num_frames``
        [V] are read only where the model masks padding. Raises ValueError for a missing one.
        """
        inputs = {
            "sentence_features": sentence_features,
            "word_features": word_features,
            "video_features": video_features,
            "frame_features": frame_features,
            "num_words": num_words,
            "num_frames": num_frames,
        }
        compare = {
            Grain.VIDEO_SENTENCE: self._video_sentence,
            Grain.VIDEO_WORD: self._video_word,
            Grain.FRAME_SENTENCE: self._frame_sentence,
            Grain.FRAME_WORD: self._frame_word,
        }
        grains = {}
        for grain in self.grains:
            names = GRAINS[grain].text, GRAINS[grain].video
            text, video = (_wide(name, inputs[name]) for name in names)
            text_mask, video_mask = (self._mask(name, inputs) for name in names)
            grains[grain.value] = compare[grain](text, video, text_mask, video_mask)
        mean = torch.stack(list(grains.values())).mean(dim=0)
        return ScorerOutput(self.logit_scale.exp() * mean, grains)

    def _mask(self, name: str, inputs: Mapping[str, Tensor | None]) -> Tensor | None:
        """Mark the positions that are not padding, bool [N, L]; None where padding counts.

        ``name``: a feature [N, L, D]. One without positions [N, D] has no padding: None.
        """
        features = inputs[name]
        if not self.mask_padding or name not in LENGTHS or features is None:
            return None
        lengths = inputs[LENGTHS[name]]
        if lengths is None:
            raise ValueError(f"this model masks padding and needs {LENGTHS[name]}")
        positions = torch.arange(features.shape[1], device=features.device)
        return positions < lengths[:, None]

    # Each formula takes features of texts and videos, and their masks where padding is masked.

    def _video_sentence(
        self, sentence: Tensor, video: Tensor, _: Tensor | None, __: Tensor | None
    ) -> Tensor:
        if hasattr(self, "global_mat_weight"):
            sentence = sentence @ self.get_parameter("global_mat_weight")
        return sentence @ video.T  # [T, V]

    def _video_word(
        self, word: Tensor, video: Tensor, is_word: Tensor | None, _: Tensor | None
    ) -> Tensor:
        texts, words, dim = word.shape
        similarity = video @ (word.reshape(-1, dim) / TEMPERATURE).T
        similarity = similarity.reshape(-1, texts, words)  # [V, T, W]
        return attend(similarity, self.get_parameter("word_logit_weight"), is_word).T * TEMPERATURE

    def _frame_sentence(
        self, sentence: Tensor, frame: Tensor, _: Tensor | None, is_frame: Tensor | None
    ) -> Tensor:
        videos, frames, dim = frame.shape
        similarity = sentence @ frame.reshape(-1, dim).T
        # Divide after the reshape: ONNX Runtime would fuse the factor into the product, which
        # then takes twice as long for one text.
        similarity = similarity.reshape(-1, videos, frames) / TEMPERATURE  # [T, V, F]
        return attend(similarity, self.get_parameter("frame_logit_weight"), is_frame) * TEMPERATURE

    def _frame_word(
        self, word: Tensor, frame: Tensor, is_word: Tensor | None, is_frame: Tensor | None
    ) -> Tensor:
        texts, words, dim = word.shape
        videos, frames, _ = frame.shape
        matrix = self.get_parameter
        projected = (word @ matrix("local_mat_weight")).reshape(-1, dim) / TEMPERATURE
        # The gallery's features are the left factor: a runtime packs the right one, the small one.
        similarity = frame.reshape(-1, dim) @ projected.T
        similarity = similarity.reshape(videos, frames, texts * words)
        # [V, F, T W] here and [V, F, T, W] below are the same memory; nothing is moved.
        wide_mask = None if is_frame is None else is_frame[..., None]  # [V, F, 1]
        frames_first = attend_across(similarity, matrix("frame_mat_weight"), wide_mask)
        frames_first = frames_first.reshape(videos, texts, words)
        frames_first = attend(frames_first, matrix("word_mat_weight2"), is_word)  # [V, T]
        similarity = similarity.reshape(videos, frames, texts, words)
        words_first = attend(similarity, matrix("word_mat_weight"), is_word)  # [V, F, T]
        frame_mask = None if is_frame is None else is_frame[:, None, :]  # [V, 1, F]
        words_first = attend(words_first.transpose(1, 2), matrix("frame_mat_weight2"), frame_mask)
        return (words_first + frames_first).T * (TEMPERATURE / 2)

    def initialize(self) -> None:
        """Set the published start: identity matrices and CLIP's logit_scale."""
        for name, parameter in self.named_parameters():
            if name == "logit_scale":
                nn.init.constant_(parameter, INITIAL_LOGIT_SCALE)
            else:
                nn.init.eye_(parameter)
