"""Configuration of a model, shared by training, export and serving.

It lives in the part without PyTorch: the bundle's manifest carries it, and the runtime reads it.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import shown
from xclip_deploy.runtime.grains import CLIP_GRAINS, PUBLISHED_GRAINS, Grain

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
"""Fraction of a whole, 0 to 1."""


class Activation(str, Enum):
    """Activation of CLIP's MLPs."""

    QUICK_GELU = "quick_gelu"
    """``x * sigmoid(1.702 x)``, of OpenAI's CLIP and all models trained from it."""
    GELU = "gelu"
    """The exact GELU, of most open_clip weights that are not OpenAI's."""


class TemporalHead(str, Enum):
    """Head that turns frame embeddings into one video embedding (CLIP4Clip's ``sim_header``)."""

    MEAN_POOLING = "meanP"
    TRANSFORMER = "seqTransf"
    LSTM = "seqLSTM"


class PatchEmbedding(str, Enum):
    """Convolution that turns pixels into patch embeddings (CLIP4Clip's ``linear_patch``)."""

    CONV_2D = "2d"
    """One convolution per frame, ``p x p``."""
    CONV_3D = "3d"
    """A convolution over three neighbouring frames, ``3 x p x p``."""


class Family(str, Enum):
    """Published model that a configuration amounts to."""

    XCLIP = "x-clip"
    CLIP4CLIP = "clip4clip"
    CLIP = "clip"


class FrozenModel(BaseModel):
    """Base class of immutable, checked records without unknown fields.

    The constructor raises InvalidArgumentError. ``model_validate``, which reads files, raises
    pydantic's ValidationError, so that the caller can name the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **data: Any) -> None:  # noqa: ANN401 - pydantic's own signature
        """Check the fields. Raises InvalidArgumentError in one line."""
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise InvalidArgumentError(first_fault(error)) from error

    # With this, pydantic builds the parts of a record without this constructor. A fault in a
    # part thus counts as a fault of the whole record.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def first_fault(error: ValidationError) -> str:
    """Describe the first fault that pydantic found, in one line."""
    fault = error.errors(include_url=False)[0]
    where = ".".join([error.title, *map(str, fault["loc"])])
    message = " ".join(fault["msg"].split())
    if fault["type"] == "missing":
        return f"{where} is missing; expected a value"
    if fault["type"] == "extra_forbidden":
        return f"{error.title} has no field {str(fault['loc'][-1])!r}"
    if fault["type"] == "value_error":
        return f"{where}: {message.removeprefix('Value error, ')}"[:1000]
    return f"{where} is {shown(fault['input'])}: {message}"[:1000]


class VisionConfig(FrozenModel):
    """Dimensions of CLIP's vision transformer."""

    image_size: PositiveInt
    """Side of the square input image, pixels."""
    patch_size: PositiveInt
    """Side of a patch, pixels; divides ``image_size``."""
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt

    @model_validator(mode="after")
    def _check(self) -> VisionConfig:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        if self.width % self.heads:
            raise ValueError(f"vision width {self.width} is no multiple of heads {self.heads}")
        return self


class TextConfig(FrozenModel):
    """Dimensions of CLIP's text transformer."""

    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    context_length: PositiveInt = 77
    """Number of position embeddings."""
    vocab_size: PositiveInt = 49408

    @model_validator(mode="after")
    def _check(self) -> TextConfig:
        if self.width % self.heads:
            raise ValueError(f"text width {self.width} is no multiple of heads {self.heads}")
        return self


class ModelConfig(FrozenModel):
    """Configuration of X-CLIP, CLIP4Clip or CLIP, which consist of the same three modules."""

    # pydantic keeps the prefix "model_" for itself; none of our fields uses it.
    embed_dim: PositiveInt
    """Dimension D of every embedding."""
    vision: VisionConfig
    text: TextConfig
    activation: Activation = Activation.QUICK_GELU
    temporal_head: TemporalHead = TemporalHead.MEAN_POOLING
    temporal_layers: Annotated[int, Field(ge=0)] = 0
    """Number of the temporal head's transformer blocks; 0 unless the head is ``seqTransf``."""
    temporal_heads: Annotated[int, Field(ge=0)] = 0
    """Number of attention heads of those blocks; 0 unless the head is ``seqTransf``."""
    temporal_positions: Annotated[int, Field(ge=0)] = 0
    """Number of frame position embeddings, at least ``max_frames``; 0 unless ``seqTransf``."""
    patch_embedding: PatchEmbedding = PatchEmbedding.CONV_2D
    max_words: PositiveInt = 32
    """Number W of token positions of a text, start and end token included."""
    max_frames: PositiveInt = 12
    """Number F of frames of a video. Shorter videos are padded."""
    grains: tuple[Grain, ...] = PUBLISHED_GRAINS
    """Grains of the model. Their mean is the similarity."""
    sentence_projection: bool = True
    """Whether video-sentence has X-CLIP's learned matrix G. CLIP4Clip has the plain product."""
    mask_padding: bool = False
    """Whether the scorer ignores padded words and frames. Published models do not."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        is_transformer = self.temporal_head is TemporalHead.TRANSFORMER
        if is_transformer != (self.temporal_layers > 0) or is_transformer != (
            self.temporal_heads > 0
        ):
            raise ValueError(
                f"temporal_layers={self.temporal_layers} and temporal_heads="
                f"{self.temporal_heads} do not fit temporal_head={self.temporal_head.value}"
            )
        if is_transformer and self.embed_dim % self.temporal_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is no multiple of {self.temporal_heads} heads"
            )
        if is_transformer and self.temporal_positions < self.max_frames:
            raise ValueError(
                f"max_frames {self.max_frames} exceeds the {self.temporal_positions} "
                "frame positions that the model has"
            )
        if self.max_words > self.text.context_length:
            raise ValueError(
                f"max_words {self.max_words} exceeds the {self.text.context_length} "
                "token positions that the model has"
            )
        if self.max_words < 3:
            raise ValueError(f"max_words {self.max_words} leaves no room for a word; at least 3")
        if not self.grains or len(set(self.grains)) != len(self.grains):
            known = ", ".join(grain.value for grain in Grain)
            raise ValueError(f"grains must name at least one of {known}, each once")
        return self

    @property
    def family(self) -> Family:
        """The published model that this configuration amounts to."""
        if self.grains != CLIP_GRAINS or self.sentence_projection:
            return Family.XCLIP
        if (
            self.temporal_head is TemporalHead.MEAN_POOLING
            and self.patch_embedding is PatchEmbedding.CONV_2D
        ):
            return Family.CLIP
        return Family.CLIP4CLIP
