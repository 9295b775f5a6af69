"""What a user can say about a checkpoint that its weights do not."""

from __future__ import annotations

from dataclasses import dataclass, fields

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.grains import Grain
from xclip_deploy.runtime.model_config import Activation, TemporalHead


@dataclass(frozen=True)
class CheckpointOptions:
    """Settings of a model that its weights may leave open; None takes what is known or usual.

    A value that contradicts the weights, or the configuration that lies with them, is an
    InvalidArgumentError that says both.
    """

    max_words: int | None = None
    """Token positions W; X-CLIP's matrices fix it, else 32."""
    max_frames: int | None = None
    """Frames F; X-CLIP's matrices fix it, else 12."""
    activation: Activation | None = None
    """Of CLIP's MLPs; QuickGELU unless a configuration says otherwise."""
    temporal_head: TemporalHead | None = None
    """The head that the caller expects: the weights fix it, so this only checks."""
    vision_heads: int | None = None
    """Attention heads of the image transformer; one per 64 channels is usual."""
    text_heads: int | None = None
    """Attention heads of the text transformer; one per 64 channels is usual."""
    mask_padding: bool | None = None
    """Whether the scorer ignores padding; the published models do not."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise InvalidArgumentError(f"{field.name}={value}: expected at least 1")
        if self.max_words is not None and self.max_words < 3:
            raise InvalidArgumentError(
                f"max_words={self.max_words}: expected at least 3, for start, word and end"
            )


@dataclass(frozen=True)
class Stated:
    """What a configuration file that came with the weights says; None where it is silent."""

    origin: str = ""
    """The file, for messages."""
    activation: Activation | None = None
    vision_heads: int | None = None
    text_heads: int | None = None
    temporal_heads: int | None = None
    max_words: int | None = None
    max_frames: int | None = None
    mask_padding: bool | None = None
    grains: tuple[Grain, ...] | None = None
    sentence_projection: bool | None = None
    image_size: int | None = None
    """Side of the input image, pixels; held against what the weights say."""
