"""Read a model's configuration off its canonical tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import Tensor

from xclip_deploy.errors import CheckpointMismatchError, InvalidArgumentError
from xclip_deploy.runtime.grains import (
    CLIP_GRAINS,
    GRAINS,
    PUBLISHED_GRAINS,
    Axis,
    matrices_over,
)
from xclip_deploy.runtime.model_config import (
    Activation,
    ModelConfig,
    PatchEmbedding,
    TemporalHead,
    TextConfig,
    VisionConfig,
)
from xclip_deploy.training.checkpoints.options import CheckpointOptions, Stated
from xclip_deploy.training.checkpoints.refusals import listing

T = TypeVar("T")


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() >= 64:
        return f"2^{value.bit_length() - 1}"
    return str(getattr(value, "value", value))


HEAD_WIDTH = 64
"""Channels of an attention head in all published CLIP models except open_clip's largest."""
# open_clip's ViT-H: 16 heads of 80, by its model_configs/ViT-H-14.json.
OPEN_CLIP_VISION_HEAD_WIDTHS = {1280: 80}
CLIP_VOCAB_SIZE = 49408
DEFAULT_MAX_WORDS = 32
DEFAULT_MAX_FRAMES = 12
MAX_STATED_LENGTH = 10_000
"""Most frames that a saved configuration may state where no tensor bounds them."""

_VISUAL = "video_encoder.visual."
_TEMPORAL = "video_encoder.temporal."
_TEXT = "text_encoder."


class ConfigReader:
    """Reads one model's configuration; collects in ``notes`` what it had to assume."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        name_in_file: Callable[[str], str],
        options: CheckpointOptions,
        stated: Stated,
        *,
        vision_head_widths: Mapping[int, int] | None = None,
    ) -> None:
        """Prepare to read.

        ``tensors``: by canonical name. ``name_in_file``: back to the file's, for messages.
        ``stated``: what a configuration beside the weights says. ``vision_head_widths``:
        image transformer widths whose heads do not have 64 channels.
        """
        self._tensors = tensors
        self._name_in_file = name_in_file
        self._options = options
        self._stated = stated
        self._vision_head_widths = vision_head_widths or {}
        self.notes: list[str] = []

    def read(self) -> ModelConfig:
        """Read the configuration.

        Raises:
            CheckpointMismatchError: tensors that tell a dimension are missing, or impossible.
            InvalidArgumentError: an option contradicts the weights or their configuration.
        """
        self._require_telling_tensors()
        vision, patch_embedding = self._vision()
        embed_dim = self._shape(f"{_VISUAL}proj", 2)[1]
        text = self._text()
        head = self._temporal_head()
        is_transformer = head is TemporalHead.TRANSFORMER
        positions = (
            self._shape(f"{_TEMPORAL}frame_position_embeddings.weight", 2)[0]
            if is_transformer
            else 0
        )
        matrices = (f"scorer.{name}" for entry in GRAINS.values() for name in entry.matrices)
        is_xclip = any(name in self._tensors for name in matrices)
        grains = self._stated.grains or (PUBLISHED_GRAINS if is_xclip else CLIP_GRAINS)
        projected = self._stated.sentence_projection
        try:
            config = ModelConfig(
                embed_dim=embed_dim,
                vision=vision,
                text=text,
                activation=self._chosen(
                    "activation",
                    self._options.activation,
                    self._stated.activation,
                    Activation.QUICK_GELU,
                ),
                temporal_head=head,
                temporal_layers=self._layers(_TEMPORAL) if is_transformer else 0,
                # The authors' heads have 64 channels too, at any width.
                temporal_heads=(
                    (self._stated.temporal_heads or max(1, embed_dim // HEAD_WIDTH))
                    if is_transformer
                    else 0
                ),
                temporal_positions=positions,
                patch_embedding=patch_embedding,
                max_words=self._length(
                    "max_words", "words", DEFAULT_MAX_WORDS, text.context_length, "token positions"
                ),
                max_frames=self._length(
                    "max_frames", "frames", DEFAULT_MAX_FRAMES, positions, "frame positions"
                ),
                grains=grains,
                sentence_projection=is_xclip if projected is None else projected,
                mask_padding=self._mask_padding(is_xclip),
            )
        except ValidationError as error:
            reasons = listing(str(entry["msg"]) for entry in error.errors())
            raise CheckpointMismatchError(f"its dimensions make no model: {reasons}") from error
        self._check_stated(config)
        return config

    def _check_stated(self, config: ModelConfig) -> None:
        """Refuse a configuration beside the weights that says other sizes than theirs."""
        for path, stated in self._stated.dimensions.items():
            found: Any = config
            for part in path.split("."):
                found = getattr(found, part)
            if found != stated:
                raise CheckpointMismatchError(
                    f"{self._stated.origin} says {path} {_shown(stated)}, the weights have "
                    f"{_shown(found)}; they do not belong together"
                )

    def _require_telling_tensors(self) -> None:
        needed = [
            f"{_VISUAL}{name}" for name in ("conv1.weight", "positional_embedding", "proj")
        ] + [f"{_TEXT}{name}" for name in ("token_embedding.weight", "positional_embedding")]
        missing = [self._name_in_file(name) for name in needed if name not in self._tensors]
        if missing:
            raise CheckpointMismatchError(
                f"its tensors are not those of the model: missing {listing(missing)}"
            )

    def _shape(self, name: str, *dimensions: int) -> tuple[int, ...]:
        if name not in self._tensors:
            raise CheckpointMismatchError(
                f"its tensors are not those of the model: missing {self._name_in_file(name)}"
            )
        shape = tuple(self._tensors[name].shape)
        if len(shape) not in dimensions or 0 in shape:
            expected = " or ".join(map(str, dimensions))
            raise CheckpointMismatchError(
                f"{self._name_in_file(name)} is {list(shape)}; expected {expected} dimensions, "
                "none of them empty"
            )
        return shape

    def _vision(self) -> tuple[VisionConfig, PatchEmbedding]:
        name = f"{_VISUAL}conv1.weight"
        width, *kernel = self._shape(name, 4, 5)
        patch = kernel[-1]
        if kernel not in ([3, patch, patch], [3, 3, patch, patch]):
            raise CheckpointMismatchError(
                f"{self._name_in_file(name)} is {[width, *kernel]}; expected [width, 3, p, p] "
                "or, for linear_patch=3d, [width, 3, 3, p, p]"
            )
        name = f"{_VISUAL}positional_embedding"
        patches = self._shape(name, 2)[0] - 1
        side = math.isqrt(max(patches, 0))
        if side * side != patches or not side:
            raise CheckpointMismatchError(
                f"{self._name_in_file(name)} has {patches} patch positions, which are no "
                "square grid; only square images are supported"
            )
        image_size = side * patch
        stated_size = self._stated.image_size
        if stated_size is not None and stated_size // patch != side:
            raise CheckpointMismatchError(
                f"{self._stated.origin} says image_size {stated_size}, the weights have "
                f"{side}x{side} patches of {patch}: {image_size}"
            )
        # The stride cuts off a remainder: 380 pixels are 27 patches of 14, as 378 are.
        heads = self._heads(
            "vision_heads",
            width,
            self._options.vision_heads,
            self._stated.vision_heads,
            self._vision_head_widths.get(width, HEAD_WIDTH),
        )
        vision = VisionConfig(
            image_size=image_size,
            patch_size=patch,
            width=width,
            layers=self._layers(_VISUAL),
            heads=heads,
        )
        embedding = PatchEmbedding.CONV_2D if len(kernel) == 3 else PatchEmbedding.CONV_3D
        return vision, embedding

    def _text(self) -> TextConfig:
        vocab_size, width = self._shape(f"{_TEXT}token_embedding.weight", 2)
        context_length = self._shape(f"{_TEXT}positional_embedding", 2)[0]
        if vocab_size != CLIP_VOCAB_SIZE:
            self.notes.append(
                f"the vocabulary has {vocab_size} tokens, not CLIP's {CLIP_VOCAB_SIZE}: the "
                "built-in tokenizer may not be the one it was trained with"
            )
        return TextConfig(
            width=width,
            layers=self._layers(_TEXT),
            heads=self._heads(
                "text_heads",
                width,
                self._options.text_heads,
                self._stated.text_heads,
                HEAD_WIDTH,
            ),
            context_length=context_length,
            vocab_size=vocab_size,
        )

    def _layers(self, tower: str) -> int:
        """Count the blocks of a transformer, which must be numbered from 0 without gaps."""
        pattern = re.compile(re.escape(tower) + r"transformer\.resblocks\.([0-9]{1,4})\.")
        numbers = {int(m[1]) for m in map(pattern.match, self._tensors) if m is not None}
        gaps = [str(n) for n in range(len(numbers)) if n not in numbers]
        if not numbers or gaps:
            where = self._name_in_file(f"{tower}transformer.resblocks.")
            lost = f"block {listing(gaps)}" if gaps else "every block"
            raise CheckpointMismatchError(
                f"{where}*: {lost} is missing; found {len(numbers)} blocks"
            )
        return len(numbers)

    def _heads(
        self, name: str, width: int, option: int | None, stated: int | None, head_width: int
    ) -> int:
        usual = max(1, width // head_width)
        heads = self._chosen(name, option, stated, usual)
        if option is not None and width % heads:
            raise InvalidArgumentError(f"{name}={heads} does not divide the width {width}")
        is_told = option is not None or stated is not None
        # A toy model's narrower transformer has one head.
        if width % heads or (not is_told and width > head_width and width % head_width):
            raise CheckpointMismatchError(
                f"the width {width} does not divide into "
                + (f"{heads} heads" if is_told else f"heads of {head_width}; pass {name}")
            )
        if not is_told and head_width != HEAD_WIDTH:
            self.notes.append(
                f"{name}={heads} was assumed, as in open_clip's models of width {width}"
            )
        return heads

    def _temporal_head(self) -> TemporalHead:
        if any(name.startswith(f"{_TEMPORAL}transformer.") for name in self._tensors):
            head = TemporalHead.TRANSFORMER
        elif any(name.startswith(f"{_TEMPORAL}lstm.") for name in self._tensors):
            head = TemporalHead.LSTM
        else:
            head = TemporalHead.MEAN_POOLING
        expected = self._options.temporal_head
        if expected is not None and expected is not head:
            raise InvalidArgumentError(
                f"temporal_head={expected.value}, but the weights are those of {head.value}"
            )
        return head

    def _length(self, name: str, axis: Axis, default: int, positions: int, unit: str) -> int:
        """Choose ``max_words`` or ``max_frames``.

        ``positions``: rows of the table of positions; 0 for no limit.
        """
        option: int | None = getattr(self._options, name)
        stated: int | None = getattr(self._stated, name)
        matrices = (f"scorer.{matrix}" for matrix in matrices_over(axis))
        fixing = next((matrix for matrix in matrices if matrix in self._tensors), None)
        if fixing is not None:
            found = self._shape(fixing, 2)[0]
            if option is not None and option != found:
                raise InvalidArgumentError(
                    f"{name}={option}, but {self._name_in_file(fixing)} fixes {found}"
                )
            if stated not in (None, found):
                raise CheckpointMismatchError(
                    f"{self._stated.origin} says {name} {_shown(stated)}, but "
                    f"{self._name_in_file(fixing)} fixes {found}"
                )
            return found
        if option is not None:
            if positions and option > positions:
                raise InvalidArgumentError(
                    f"{name}={option}, but the weights have {positions} {unit}"
                )
            return option
        if stated is not None:
            most = positions or MAX_STATED_LENGTH
            if stated > most:
                raise CheckpointMismatchError(
                    f"{self._stated.origin} says {name} {_shown(stated)}, more than the "
                    + (f"{positions} {unit} of the weights" if positions else f"{most} allowed")
                )
            return stated
        default = min(default, positions or default)
        self.notes.append(f"{name}={default} was assumed: the weights leave it open")
        return default

    def _mask_padding(self, is_xclip: bool) -> bool:
        stated = bool(self._stated.mask_padding)
        option = self._options.mask_padding
        if option is None:
            return stated
        # Only X-CLIP's attention over words and frames reads the mask.
        if is_xclip and option != stated:
            self.notes.append(
                f"mask_padding={option} as asked, though the weights were trained without"
                if option
                else "mask_padding=False as asked, though the weights were trained with it"
            )
        return option

    def _chosen(self, name: str, option: T | None, stated: T | None, usual: T) -> T:
        if option is None:
            return usual if stated is None else stated
        if stated is not None and option != stated:
            raise InvalidArgumentError(
                f"{name}={getattr(option, 'value', option)}, but {self._stated.origin} says "
                f"{getattr(stated, 'value', stated)}"
            )
        return option
