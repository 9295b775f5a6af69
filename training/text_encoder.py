"""Text encoder: encode token ids to one sentence embedding and one embedding per token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.training.precision import (
    MASKED,
    LayerNorm,
    at_least_float32,
    in_dtype,
    l2_normalize,
)
from xclip_deploy.training.transformer import Transformer


def count_tokens(token_ids: Tensor) -> Tensor:
    """Count each text's tokens, start and end token included, without the padding.

    ``token_ids``: integers [T, W], as the tokenizer encodes them. Returns int64 [T].
    """
    # The end token has the largest id, and zeros follow it.
    return token_ids.argmax(dim=-1) + 1


class TextEncoderOutput(NamedTuple):
    """Features of T texts."""

    sentence_features: Tensor
    """Embeddings of the end-of-text position, [T, D], unit length."""
    word_features: Tensor
    """Embeddings of every position, padding too, [T, W, D], unit length."""


class TextEncoder(nn.Module):
    """CLIP's text tower with the projection applied at every position."""

    # The projection is small, and its results are the embeddings themselves.
    float32_parameters = frozenset({"text_projection"})

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.transformer = Transformer(text.width, text.layers, text.heads, config.activation)
        self.ln_final = LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.empty(text.width, config.embed_dim))

    def forward(self, token_ids: Tensor) -> TextEncoderOutput:
        """Encode texts: integer ``token_ids`` [T, W], zero-padded after the end token."""
        word_features = l2_normalize(self.encode_tokens(token_ids))
        end = token_ids.argmax(dim=-1)  # the end token has the largest id
        index = end[:, None, None].expand(-1, 1, word_features.shape[-1])
        return TextEncoderOutput(word_features.gather(1, index).squeeze(1), word_features)

    def encode_tokens(self, token_ids: Tensor) -> Tensor:
        """Return token embeddings before normalisation, [T, W, D]."""
        words = token_ids.shape[1]
        dtype = self.transformer.dtype
        x = in_dtype(self.token_embedding(token_ids), dtype)
        x = x + in_dtype(self.positional_embedding[:words], dtype)
        positions = torch.arange(words, device=token_ids.device)
        is_future = positions[None, :] > positions[:, None]
        mask = torch.where(is_future, MASKED, 0.0)  # [W, W]
        x = self.ln_final(self.transformer(x, mask))
        return at_least_float32(x) @ at_least_float32(self.text_projection)

    def initialize(self) -> None:
        """Draw random weights as OpenAI's CLIP does."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.transformer.width**-0.5)
        self.transformer.initialize()
