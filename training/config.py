"""Configuration of a training run: a typed structure, presets, files and overrides."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import PathName, as_path, as_text, as_texts
from xclip_deploy.runtime.files import require_regular_file
from xclip_deploy.runtime.grains import PUBLISHED_GRAINS, Grain
from xclip_deploy.runtime.model_config import (
    FrozenModel,
    ModelConfig,
    PatchEmbedding,
    Share,
    TemporalHead,
)
from xclip_deploy.runtime.presentation import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:  # tomli is the same parser, for Python 3.10
    import tomli as tomllib


class GeneratedConfig(FrozenModel):
    """Settings of the generated dataset: videos of each split, seed, and kind of video."""

    train: Annotated[int, Field(gt=0)] = 4800
    val: Annotated[int, Field(ge=2)] = 200
    test: Annotated[int, Field(ge=2)] = 200
    seed: int = 0
    excerpts: bool = True
    """Train on windows near an event too, as segments of long videos are. False makes every video
    one whole event of 6 s, which is learned in fewer steps and serves short videos alone."""


class DataConfig(FrozenModel):
    """Data that a run trains and validates on."""

    dataset: str = "folder"
    """``msrvtt``, ``msvd``, ``lsmdc``, ``didemo``, ``activitynet``, ``folder`` or
    ``generated``."""
    annotations: Path | None = None
    """File or folder of the annotations. The generated dataset brings its own."""
    videos: Path | None = None
    """Folder of the videos, where the generated dataset is made; its None is ``videos`` in the run
    folder."""
    generated: GeneratedConfig = GeneratedConfig()
    validation_split: Literal["val", "test"] | None = "val"
    """Split that the best checkpoint is chosen on; None: no validation."""
    max_missing_share: Share = 0.1
    """Share of annotated videos that may lack a file."""
    max_unreadable_share: Share = 0.1
    """Share of the files that may not be readable."""
    frames_per_second: Annotated[float, Field(gt=0)] = 1.0
    square_pixels: bool = False
    """Show anamorphic video in its true proportions. Checkpoints of the run say so, and their
    bundles and evaluations do the same."""
    slice_position: Literal[0, 1, 2] = 2
    """Frames of a video with more than ``max_frames``: 0 its first, 1 its last, 2 evenly spaced."""
    frame_order: Literal[0, 1, 2] = 0
    """Order of a video's frames in training: 0 in time, 1 backwards, 2 random in every epoch."""
    validation_frame_order: Literal[0, 1, 2] = 0
    """The same in validation, where the random order of a video stays."""
    expand_sentences: bool = True
    """Make every caption a pair. Else every video is one, with another random caption an epoch."""
    cut_at_annotated_end: bool = False
    """Read ActivityNet's videos up to their annotated duration, and not to the file's end."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode; 0 decodes in the training process."""
    frame_cache: Path | None = None
    """Folder for decoded frames. None decodes anew in every epoch; the generated dataset then uses
    ``frame-cache`` in the run folder."""
    frame_cache_gb: Annotated[float, Field(gt=0)] = 50.0


class StartConfig(FrozenModel):
    """Model that training starts from."""

    checkpoint: Path | None = None
    """CLIP, CLIP4Clip or X-CLIP weights; None starts ``architecture`` from random weights."""
    weights: str | None = None
    """State dict to take of a checkpoint with several: ``raw``, ``ema``, or the name of one."""
    architecture: ModelConfig | None = None
    """Dimensions of a model with random weights; only without a checkpoint."""
    temporal_head: TemporalHead = TemporalHead.TRANSFORMER
    temporal_layers: Annotated[int, Field(gt=0)] = 4
    patch_embedding: PatchEmbedding = PatchEmbedding.CONV_2D
    max_words: Annotated[int, Field(ge=3)] = 32
    max_frames: Annotated[int, Field(ge=1)] = 12
    grains: tuple[Grain, ...] = PUBLISHED_GRAINS
    sentence_projection: bool = True
    mask_padding: bool = False

    def model_config_for(self, clip: ModelConfig) -> ModelConfig:
        """Return the model to train, on top of a checkpoint's dimensions.

        Raises InvalidArgumentError where the dimensions allow no such model.
        """
        is_transformer = self.temporal_head is TemporalHead.TRANSFORMER
        changes: dict[str, Any] = {
            "temporal_head": self.temporal_head,
            "temporal_layers": self.temporal_layers if is_transformer else 0,
            "temporal_heads": max(1, clip.embed_dim // 64) if is_transformer else 0,
            # CLIP's text positions become frame positions; X-CLIP weights have their own.
            "temporal_positions": (
                (clip.temporal_positions or clip.text.context_length) if is_transformer else 0
            ),
            "patch_embedding": self.patch_embedding,
            "max_words": self.max_words,
            "max_frames": self.max_frames,
            "grains": self.grains,
            "sentence_projection": self.sentence_projection,
            "mask_padding": self.mask_padding,
        }
        try:
            return ModelConfig.model_validate({**clip.model_dump(), **changes})
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise InvalidArgumentError(f"start: does not fit the checkpoint: {reason}") from error


class OptimizationConfig(FrozenModel):
    """Settings of the optimisation; the defaults are the published recipe's."""

    epochs: Annotated[int, Field(gt=0)] = 5
    batch_size: Annotated[int, Field(gt=1)] = 300
    lr: Annotated[float, Field(gt=0)] = 1e-4
    coef_lr: Annotated[float, Field(ge=0)] = 1e-3
    """Factor on the learning rate of CLIP's parameters."""
    warmup: Share = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    freeze_layers: int = 0
    """Number of the lowest CLIP blocks that stay as they are, with the embeddings below; -1 trains
    all."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the encoders. The scorer and the weights stay in FP32. ``fp16`` scales the
    loss and skips steps whose gradients overflow; skipped steps count in the schedule."""
    clip_in_fp16: bool = False
    """Keep CLIP's weights and their moments in FP16, as the authors' ``convert_weights`` does.
    Only with ``precision`` ``fp32``; nothing scales the loss."""
    freeze_3d: bool = True
    """Freeze layers of a model with 3d patches too. The authors' code freezes none there."""
    average_encoder_gradients: bool = False
    """Divide the encoders' gradients by the number of processes, as the authors' code does."""
    accumulation_steps: Annotated[int, Field(gt=0)] = 1
    """Parts of a batch whose gradients are added up. Each part has a loss of its own, and so fewer
    negatives; ``chunk_size`` saves the same memory without that."""
    chunk_size: Annotated[int, Field(gt=0)] | None = None
    """Most pairs whose activations a process holds at once ("gradient caching"), for batches
    larger than memory. Pairs are encoded twice; the gradients are the same."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, which takes time and saves memory."""
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> OptimizationConfig:
        if self.clip_in_fp16 and self.precision != "fp32":
            raise ValueError(f"clip_in_fp16 goes with precision fp32, not {self.precision}")
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of accumulation_steps "
                f"{self.accumulation_steps}"
            )
        return self


class TrainConfig(FrozenModel):
    """All settings of a training run."""

    data: DataConfig = DataConfig()
    start: StartConfig = StartConfig()
    optimization: OptimizationConfig = OptimizationConfig()
    validate_every_epochs: Annotated[int, Field(gt=0)] = 1
    """Epochs between validations. The last epoch is always validated."""
    best_of_equals: Literal["first", "last"] = "first"
    """Epoch that is the best of several with the same validation R@1."""
    save_every_steps: Annotated[int, Field(gt=0)] = 200
    """Steps between checkpoints that a killed run resumes from. Each epoch ends with one too."""


_SHORT = {"start": {"max_words": 32, "max_frames": 12}}
_LONG = {"start": {"max_words": 64, "max_frames": 64}}
PRESETS: dict[str, dict[str, Any]] = {
    "msrvtt": {**_SHORT, "data": {"dataset": "msrvtt"}},
    "msvd": {**_SHORT, "data": {"dataset": "msvd"}},
    "lsmdc": {**_SHORT, "data": {"dataset": "lsmdc"}},
    "didemo": {
        **_LONG,
        "data": {"dataset": "didemo"},
        "optimization": {"epochs": 20, "batch_size": 64},
    },
    "activitynet": {
        **_LONG,
        "data": {"dataset": "activitynet"},
        "optimization": {"epochs": 20, "batch_size": 112},
    },
    "demo": {
        "data": {"dataset": "generated"},
        "start": {
            "architecture": {
                "embed_dim": 96,
                "vision": {
                    "image_size": 48,
                    "patch_size": 16,
                    "width": 96,
                    "layers": 3,
                    "heads": 3,
                },
                "text": {"width": 96, "layers": 2, "heads": 3},
                "temporal_head": "seqTransf",
                "temporal_layers": 2,
                "temporal_heads": 3,
                "temporal_positions": 77,
                "max_words": 16,
                "max_frames": 6,
            }
        },
        "optimization": {
            "epochs": 16,
            "batch_size": 96,
            "lr": 8e-4,
            "coef_lr": 1.0,
            "freeze_layers": -1,
        },
        "validate_every_epochs": 2,
    },
}
"""Published runs, as differences from the defaults, which are MSR-VTT's. ``demo`` is a small model
that learns generated videos from random weights in minutes on a CPU."""

RECIPES: dict[str, dict[str, Any]] = {
    "published": {
        "data": {"cut_at_annotated_end": True},
        "optimization": {
            "clip_in_fp16": True,
            "freeze_3d": False,
            "average_encoder_gradients": True,
        },
        "best_of_equals": "last",
    }
}
"""Deviations from the defaults. ``published`` does what the authors' code does where the defaults
do better; docs/training.md lists each."""


def resolve_config(
    preset: str | None = None,
    file: PathName | None = None,
    overrides: Sequence[str] = (),
    *,
    recipe: str | None = None,
) -> TrainConfig:
    """Merge a configuration: defaults, then preset, recipe, file and overrides.

    ``recipe``: a key of ``RECIPES``; None keeps the defaults. ``file``: TOML or JSON of
    :class:`TrainConfig`'s structure. ``overrides``: settings such as ``optimization.lr=1e-5``,
    whose values are JSON or else text. Raises InvalidArgumentError.
    """
    content: dict[str, Any] = {}
    if preset is not None:
        if as_text("preset", preset) not in PRESETS:
            raise InvalidArgumentError(
                f"preset {preset!r:.200}: expected one of {', '.join(PRESETS)}"
                f"{did_you_mean(preset, PRESETS)}"
            )
        _merge(content, PRESETS[preset])
    if recipe is not None:
        if as_text("recipe", recipe) not in RECIPES:
            raise InvalidArgumentError(
                f"recipe {recipe!r:.200}: expected one of {', '.join(RECIPES)}"
                f"{did_you_mean(recipe, RECIPES)}"
            )
        _merge(content, RECIPES[recipe])
    if file is not None:
        _merge(content, _read(as_path("file", file)))
    for override in as_texts("overrides", overrides):
        _merge(content, _parse(override))
    try:
        # pydantic turns JSON's lists and texts into tuples, paths and choices.
        return TrainConfig.model_validate_json(json.dumps(content))
    except (ValidationError, TypeError) as error:
        if isinstance(error, TypeError):
            raise InvalidArgumentError(f"{file}: {error}") from error
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InvalidArgumentError(_unknown_setting(where)) from error
        raise InvalidArgumentError(f"configuration: {where}: {first['msg']}") from error


def _unknown_setting(where: str) -> str:
    """Return the message for a setting that there is not, with the nearest that there is."""
    known = _settings(TrainConfig)
    # A mistyped section is named alone, without the settings in it.
    peers = [name for name in known if name.count(".") == where.count(".")]
    found = did_you_mean(where, peers)
    if not found:  # the name may be right, and its section missing
        by_end = {name.rpartition(".")[2]: name for name in known}
        nearest = by_end.get(where.rpartition(".")[2])
        found = f" (did you mean {nearest!r}?)" if nearest else ""
    see = "" if found else "; to see the settings run: xclip-deploy train --show-config"
    return f"configuration: no setting {where!r:.200}{found}{see}"


def _settings(model: type[BaseModel], prefix: str = "") -> list[str]:
    """List the names of all settings and sections, such as ``optimization.lr``."""
    names = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names += _settings(kind, f"{prefix}{name}.")
    return names


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            # Copy deeply: what is merged on top must not reach the preset.
            into[key] = deepcopy(value)


def _read(file: Path) -> dict[str, Any]:
    try:
        require_regular_file(file, "settings in TOML or JSON")
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InvalidArgumentError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        kind = "JSON" if file.suffix == ".json" else "TOML"
        raise InvalidArgumentError(f"{file}: is not {kind} ({error})") from error
    if not isinstance(content, dict):
        raise InvalidArgumentError(f"{file}: holds a list or value; expected sections")
    return content


def _parse(override: str) -> dict[str, Any]:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise InvalidArgumentError(f"override {override!r:.200}: expected section.name=value")
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = text
    for part in reversed(name.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value
