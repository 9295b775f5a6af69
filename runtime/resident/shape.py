"""The shape of a model's scan, for which its kernels are compiled."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.grains import GRAINS, Grain
from xclip_deploy.runtime.model_config import FrozenModel, ModelConfig

MAX_FRAMES = 64
MAX_WORDS = 77
MAX_DIM = 1024
DIM_STEP = 64
"""Embeddings are a multiple of this long."""
SENTENCE_COLUMNS = 16
"""Columns of a sentence's factor: the fewest that a tensor core multiplies by."""
_LEAST_PADDED = 16


class ScanShape(FrozenModel):
    """Constants of the kernels of one model."""

    embed_dim: Annotated[int, Field(ge=DIM_STEP, le=MAX_DIM, multiple_of=DIM_STEP)]
    max_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)]
    max_words: Annotated[int, Field(ge=1, le=MAX_WORDS)]
    grains: tuple[Grain, ...]
    """Grains of the model, in its order."""
    mask_padding: bool
    """Whether words and frames of padding are left out."""

    @model_validator(mode="after")
    def _check(self) -> ScanShape:
        if not self.grains or len({*self.grains}) < len(self.grains):
            raise ValueError("grains: expected at least one, each once")
        return self

    @classmethod
    def of(cls, config: ModelConfig) -> ScanShape:
        """Return the shape of a model. Raises InvalidArgumentError where no kernel fits it."""
        if (missing := why_no_scan(config)) is not None:
            raise InvalidArgumentError(missing)
        return cls(
            embed_dim=config.embed_dim,
            max_frames=config.max_frames,
            max_words=config.max_words,
            grains=config.grains,
            mask_padding=config.mask_padding,
        )

    @property
    def padded_frames(self) -> int:
        """Frames FP of a video in a kernel: a power of two of at least 16."""
        return _padded(self.max_frames)

    @property
    def padded_words(self) -> int:
        """Words WP of a text in a kernel: a power of two of at least 16."""
        return _padded(self.max_words)

    @property
    def pair_operations(self) -> int:
        """Operations that compare a text with a video in the frames' grains, padding included."""
        columns = 2 * self.padded_words + SENTENCE_COLUMNS
        return 2 * self.padded_frames * self.embed_dim * columns

    @property
    def reads_frames(self) -> bool:
        """Whether a grain of the model compares frames."""
        return any(GRAINS[grain].reads_frames for grain in self.grains)

    def plane(self, grain: Grain) -> int:
        """Return the place of a grain in the model's order, or -1 where the model lacks it."""
        return self.grains.index(grain) if grain in self.grains else -1


def why_no_scan(config: ModelConfig) -> str | None:
    """Say why the kernels cannot scan galleries of a model; None where they can."""
    if config.embed_dim % DIM_STEP or config.embed_dim > MAX_DIM:
        return (
            f"scan kernels exist for embeddings of a multiple of {DIM_STEP} up to {MAX_DIM}, this "
            f"model has {config.embed_dim}; search on the CPU"
        )
    if config.max_frames > MAX_FRAMES or config.max_words > MAX_WORDS:
        return (
            f"scan kernels exist for up to {MAX_FRAMES} frames and {MAX_WORDS} words, this model "
            f"has {config.max_frames} and {config.max_words}; search on the CPU"
        )
    return None


def _padded(size: int) -> int:
    return max(_LEAST_PADDED, 1 << (size - 1).bit_length())
