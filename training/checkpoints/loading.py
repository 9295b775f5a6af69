"""Load a checkpoint of any supported family, and save in the authors' layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from torch import Tensor

from xclip_deploy.errors import CheckpointMismatchError, UnknownLayoutError
from xclip_deploy.runtime.arguments import PathName, as_instance, as_path
from xclip_deploy.runtime.files import replaced_file
from xclip_deploy.runtime.model_config import Family, ModelConfig, PatchEmbedding
from xclip_deploy.training.checkpoints import hugging_face, open_clip
from xclip_deploy.training.checkpoints.choosing import (
    SAVED_CONFIG_KEY,
    SAVED_SQUARE_PIXELS_KEY,
)
from xclip_deploy.training.checkpoints.dimensions import (
    OPEN_CLIP_VISION_HEAD_WIDTHS,
    ConfigReader,
)
from xclip_deploy.training.checkpoints.hub import fetch_model, is_hub_name
from xclip_deploy.training.checkpoints.layouts import (
    AUTHORS,
    CONV_2D_NAME,
    CONV_3D_NAME,
    HUGGING_FACE,
    OPEN_CLIP_CUSTOM_TEXT,
    OPENAI,
    Layout,
    detect_layout,
    rename,
)
from xclip_deploy.training.checkpoints.options import CheckpointOptions, Stated
from xclip_deploy.training.checkpoints.parameters import check_parameters, parameter_shapes
from xclip_deploy.training.checkpoints.reading import RawWeights, read_weights
from xclip_deploy.training.checkpoints.refusals import dtype_name, refuse_parts

if TYPE_CHECKING:
    from xclip_deploy.training.model import XClip

_NO_OPTIONS = CheckpointOptions()


# Checkpoints compare by identity: the == of tensors is elementwise.
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Configuration and weights of a model, read from any kind of file."""

    config: ModelConfig
    state_dict: dict[str, Tensor] = field(repr=False)
    """FP32 on the CPU, under the names of ``XClip.state_dict()``; independent of the file."""
    layout: str
    """Naming of the file: ``X-CLIP``, ``CLIP4Clip``, ``OpenAI CLIP``, ..."""
    source_sha256: str
    """SHA-256 of the file; see ``RawWeights.sha256`` for a folder."""
    notes: tuple[str, ...]
    """Assumptions and omissions, a sentence each. Show them to the user."""
    square_pixels: bool = False
    """Whether training showed anamorphic video in its true proportions."""

    def build(self) -> XClip:
        """Make the PyTorch model, in evaluation mode, with these weights."""
        from xclip_deploy.training.model import XClip

        model = XClip(self.config)
        model.load_state_dict(self.state_dict, strict=True)
        return model.eval()


def load_checkpoint(path: PathName, options: CheckpointOptions = _NO_OPTIONS) -> Checkpoint:
    """Load X-CLIP, CLIP4Clip or CLIP from a file or folder, or from the Hugging Face hub.

    ``path`` is ``org/name`` for a model of the hub, where no such path exists. Its safetensors
    come from the hub's cache, or else over the network.

    It reads the containers of :func:`read_weights`. It knows the names of X-CLIP's and
    CLIP4Clip's authors, OpenAI, open_clip, Hugging Face and xclip-deploy itself. It reads the
    configuration off the weights, and off Hugging Face's or open_clip's file beside them.

    Raises:
        CheckpointReadError: the file cannot be read, or holds more than weights.
        UnknownLayoutError: the weights are of no supported family.
        CheckpointMismatchError: they are incomplete, inconsistent or not finite.
        InvalidArgumentError: an option contradicts them.
        MissingExtraError: huggingface_hub is not installed.
    """
    path = as_path("path", path)
    as_instance("options", options, CheckpointOptions, "CheckpointOptions")
    notes: tuple[str, ...] = ()
    if is_hub_name(path):
        folder = fetch_model(path.as_posix())
        notes = (f"{path.as_posix()} was read from the hub's cache, commit {folder.name}",)
        path = folder
    raw = read_weights(path, options.weights)
    try:
        checkpoint = _convert(raw, options)
    except (UnknownLayoutError, CheckpointMismatchError) as error:
        raise type(error)(f"{path}: {error}") from error.__cause__
    return replace(checkpoint, notes=notes + checkpoint.notes) if notes else checkpoint


def _convert(raw: RawWeights, options: CheckpointOptions) -> Checkpoint:
    refuse_parts(raw.tensors.keys())
    layout = detect_layout(raw.tensors.keys(), raw.hf_config)
    renamed = rename(raw.tensors, layout)
    stated = _stated(raw, layout)
    may_be_open_clip = layout in (OPENAI, OPEN_CLIP_CUSTOM_TEXT)
    unstated_hf = layout is HUGGING_FACE and not stated.origin
    reader = ConfigReader(
        renamed.tensors,
        layout.name_in_file,
        options,
        stated,
        vision_head_widths=(
            OPEN_CLIP_VISION_HEAD_WIDTHS if may_be_open_clip or unstated_hf else None
        ),
    )
    config = reader.read()
    tensors = dict(renamed.tensors)
    scale = tensors.get("scorer.logit_scale")
    if scale is not None and scale.numel() == 1:
        tensors["scorer.logit_scale"] = scale.reshape(())  # some wrappers save it as [1]
    check_parameters(
        tensors, config, unexpected=renamed.unexpected, name_in_file=layout.name_in_file
    )
    notes = [*raw.notes, *renamed.notes, *reader.notes]
    # OpenAI's own files hold this buffer; their names are open_clip's too.
    is_openai = layout is OPENAI and "input_resolution" in raw.tensors
    is_told = is_openai or options.activation is not None or stated.activation is not None
    if (may_be_open_clip or unstated_hf) and not is_told:
        notes.append(
            "activation=quick_gelu was assumed, which OpenAI's weights use; most other "
            "open_clip weights use gelu, and the tensors do not tell"
        )
    other = sorted({dtype_name(tensor.dtype) for tensor in tensors.values()} - {"float32"})
    if other:
        notes.append(f"weights stored as {' and '.join(other)} were cast to float32")
    state_dict = {name: _float32(tensors[name], name, layout) for name in parameter_shapes(config)}
    return Checkpoint(
        config,
        state_dict,
        _layout_name(layout, config),
        raw.sha256,
        tuple(notes),
        raw.square_pixels,
    )


def _float32(tensor: Tensor, name: str, layout: Layout) -> Tensor:
    # Copy always: the tensor may be a view of the mapped file.
    copy = tensor.detach().to(torch.float32, copy=True).contiguous()
    if tensor.dtype == torch.float64 and not bool(copy.isfinite().all()):
        raise CheckpointMismatchError(f"{layout.name_in_file(name)} overflows float32")
    return copy


def _layout_name(layout: Layout, config: ModelConfig) -> str:
    if layout is not AUTHORS:
        return layout.name
    return "X-CLIP" if config.family is Family.XCLIP else "CLIP4Clip"


def _stated(raw: RawWeights, layout: Layout) -> Stated:
    if raw.saved_config is not None:
        try:
            config = ModelConfig.model_validate_json(raw.saved_config)
        except ValidationError as error:
            raise CheckpointMismatchError(
                f"its {SAVED_CONFIG_KEY} is not a configuration of this release: "
                f"{error.errors()[0]['msg']}"
            ) from error
        return Stated(
            origin=SAVED_CONFIG_KEY,
            activation=config.activation,
            vision_heads=config.vision.heads,
            text_heads=config.text.heads,
            temporal_heads=config.temporal_heads or None,
            max_words=config.max_words,
            max_frames=config.max_frames,
            mask_padding=config.mask_padding,
            grains=config.grains,
            sentence_projection=config.sentence_projection,
            image_size=config.vision.image_size,
            dimensions={
                "embed_dim": config.embed_dim,
                "temporal_layers": config.temporal_layers,
                "temporal_positions": config.temporal_positions,
                "temporal_head": config.temporal_head,
                "patch_embedding": config.patch_embedding,
                **{f"vision.{n}": getattr(config.vision, n) for n in ("width", "layers")},
                "vision.patch_size": config.vision.patch_size,
                **{
                    f"text.{name}": getattr(config.text, name)
                    for name in ("width", "layers", "context_length", "vocab_size")
                },
            },
        )
    if layout is HUGGING_FACE and raw.hf_config is not None:
        return hugging_face.stated_by_config(raw.hf_config)
    if layout in (OPENAI, OPEN_CLIP_CUSTOM_TEXT) and raw.open_clip_config is not None:
        return open_clip.stated_by_config(raw.open_clip_config)
    return Stated()


def to_authors_state_dict(
    config: ModelConfig, state_dict: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Rename canonical weights to the names of X-CLIP's and CLIP4Clip's own code.

    This inverts loading. It omits two tensors that the authors' code stores and does not use:
    the 2d patch convolution of ``linear_patch=3d``, and frame positions without ``seqTransf``.
    Their code fills in both by itself. Tensors keep their dtype, and share memory with the
    argument where they are on the CPU.

    Raises:
        CheckpointMismatchError: the weights are not those of ``XClip(config)``.
    """
    check_parameters(state_dict, config)
    renamed = {
        AUTHORS.name_in_file(name): state_dict[name].detach().cpu().contiguous()
        for name in parameter_shapes(config)
    }
    if config.patch_embedding is PatchEmbedding.CONV_3D:
        renamed[CONV_3D_NAME] = renamed.pop(CONV_2D_NAME)
    return renamed


def saved_settings(config: ModelConfig, *, square_pixels: bool) -> dict[str, object]:
    """Return what a checkpoint holds beside the tensors, for loading without options.

    ``square_pixels``: whether training showed anamorphic video in its true proportions.
    """
    settings: dict[str, object] = {SAVED_CONFIG_KEY: config.model_dump_json()}
    if square_pixels:
        settings[SAVED_SQUARE_PIXELS_KEY] = True
    return settings


def save_checkpoint(
    path: str | Path,
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    *,
    square_pixels: bool = False,
) -> None:
    """Write a checkpoint in the authors' names that loads without options.

    The file is ``{"state_dict": ..., "xclip_deploy_config": JSON}``, readable by
    ``torch.load(path, weights_only=True)``. The configuration holds the settings
    that tensors do not tell: ``mask_padding``, activation, heads, grains. The new file replaces
    an older one at ``path`` in one step. ``square_pixels``: whether training showed
    anamorphic video in its true proportions; if so, the file says it.

    Raises:
        CheckpointMismatchError: the weights are not those of ``XClip(config)``.
    """
    content = {
        "state_dict": to_authors_state_dict(config, state_dict),
        **saved_settings(config, square_pixels=square_pixels),
    }
    with replaced_file(Path(path)) as partial:
        torch.save(content, partial)
