"""Settings of a checkpoint that its weights do not tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import as_member, as_text, as_truth, as_whole_number
from xclip_deploy.runtime.grains import Grain
from xclip_deploy.runtime.model_config import Activation, TemporalHead

_MOST = 1 << 20


@dataclass(frozen=True)
class CheckpointOptions:
    """Settings of a model that its weights may leave open; None takes the known or usual value.

    A value that contradicts the weights or the configuration beside them raises
    InvalidArgumentError, which says both values.
    """

    max_words: int | None = None
    """Token positions W; X-CLIP's matrices fix it, else 32."""
    max_frames: int | None = None
    """Frames F; X-CLIP's matrices fix it, else 12."""
    activation: Activation | None = None
    """Activation of CLIP's MLPs; QuickGELU unless a configuration says otherwise."""
    temporal_head: TemporalHead | None = None
    """Temporal head that the caller expects. The weights fix it: this is a check."""
    vision_heads: int | None = None
    """Attention heads of the image transformer; one per 64 channels is usual."""
    text_heads: int | None = None
    """Attention heads of the text transformer; one per 64 channels is usual."""
    mask_padding: bool | None = None
    """True where the scorer ignores padding; the published models do not."""

    weights: str | None = None
    """State dict to take where a file holds several: ``raw``, ``ema`` (their moving average), or
    the key or prefix of one, such as ``teacher``. None takes the raw ones and notes the others."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is None:
                continue
            if entry.name == "activation":
                value = as_member("activation", value, Activation)
            elif entry.name == "temporal_head":
                value = as_member("temporal_head", value, TemporalHead)
            elif entry.name == "weights":
                value = as_text("weights", value)
                if not value:
                    raise InvalidArgumentError(
                        "weights is empty; expected raw, ema, or the key of a state dict"
                    )
            elif entry.name == "mask_padding":
                value = as_truth("mask_padding", value)
            else:
                # The shortest text is start, one word and end.
                least = 3 if entry.name == "max_words" else 1
                value = as_whole_number(entry.name, value, least, _MOST)
            object.__setattr__(self, entry.name, value)


@dataclass(frozen=True)
class Stated:
    """Settings in a configuration file that came with the weights; None where it is silent."""

    origin: str = ""
    """Name of the file, for messages."""
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
    """Side of the input image, pixels. The weights must agree."""
    dimensions: Mapping[str, object] = field(default_factory=dict)
    """Values by their path in ``ModelConfig``, such as ``vision.layers``, which the weights tell
    too. They must agree."""
