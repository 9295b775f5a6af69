"""Folder of a training run: configuration, log, checkpoints, metrics, curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Imported here, not in the function: a missing package must show before days of training.
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from xclip_deploy.errors import CheckpointReadError, InvalidArgumentError, TrainingError
from xclip_deploy.runtime.files import replace_text, replaced_file
from xclip_deploy.runtime.theme import write_pngs
from xclip_deploy.training.checkpoints import (
    save_checkpoint,
    saved_settings,
    to_authors_state_dict,
)
from xclip_deploy.training.config import TrainConfig
from xclip_deploy.training.loss_scaling import LossScaler
from xclip_deploy.training.model import XClip
from xclip_deploy.training.optimizer import RecipeAdam

_CONFIG = "config.json"
_LOG = "log.jsonl"
_LAST = "last.pt"
_BEST = "best.pt"


@dataclass(frozen=True)
class Position:
    """Progress of a run."""

    step: int
    """Number of optimiser steps done."""
    best_recall: float
    """Best validation text-to-video R@1 so far, percent; -1 before the first validation."""


class RunFolder:
    """Files of one run. Each is replaced in one step."""

    def __init__(self, path: Path, config: TrainConfig, *, resume: bool) -> None:
        """Open a new run, or with ``resume`` the one that is there.

        Raises InvalidArgumentError where a new run would overwrite something, or the run to
        resume has another configuration. Raises TrainingError where nothing can be written.
        """
        self.path = path
        self._has_square_pixels = config.data.square_pixels
        stored = path / _CONFIG
        if resume:
            if not stored.is_file():
                raise InvalidArgumentError(
                    f"{path} holds no run to resume (no {_CONFIG}); start without --resume"
                )
            self._check_same(config, stored)
            return
        if path.exists() and not _has_nothing_to_lose(path):
            raise InvalidArgumentError(
                f"{path} exists and is not empty; choose another folder, or continue with --resume"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.write_json(_CONFIG, config.model_dump(mode="json"))
        except OSError as error:
            raise TrainingError(f"{path}: cannot be written ({error.strerror})") from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``log.jsonl``."""
        with (self.path / _LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Return all lines of the log, without one that a kill cut short."""
        try:
            lines = (self.path / _LOG).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [record for record in map(_parsed, lines) if record is not None]

    def rewind_log(self, step: int) -> None:
        """Drop the lines after ``step`` steps, which will be done again."""
        kept = [record for record in self.records() if record["step"] <= step]
        replace_text(self.path / _LOG, "".join(json.dumps(record) + "\n" for record in kept))

    def write_json(self, name: str, content: object) -> None:
        """Write a JSON file in one step."""
        replace_text(self.path / name, json.dumps(content, indent=1) + "\n")

    def save_last(
        self,
        model: XClip,
        optimizer: RecipeAdam,
        position: Position,
        scaler: LossScaler | None = None,
    ) -> None:
        """Save all that resuming needs; an interrupted save leaves the last one.

        The file also is a checkpoint like any other. Raises TrainingError where it cannot be
        written.
        """
        content = {
            "state_dict": to_authors_state_dict(model.config, model.state_dict()),
            **saved_settings(model.config, square_pixels=self._has_square_pixels),
            "optimizer": optimizer.state_dict(),
            "step": position.step,
            "best_recall": position.best_recall,
        }
        if scaler is not None:
            content["loss_scaler"] = scaler.state_dict()
        path = self.path / _LAST
        try:
            with replaced_file(path) as partial:
                torch.save(content, partial)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise TrainingError(
                f"{path}: cannot be written ({error}); the checkpoint before stands, "
                "make room and continue with --resume"
            ) from error

    def load_last(
        self, model: XClip, optimizer: RecipeAdam, scaler: LossScaler | None = None
    ) -> Position | None:
        """Restore a saved run into the arguments; return None where none was saved.

        Raises CheckpointReadError for a damaged file.
        """
        path = self.path / _LAST
        if not path.exists():
            return None
        from xclip_deploy.training.checkpoints import load_checkpoint

        weights = load_checkpoint(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            state: dict[str, Tensor] = weights.state_dict
            model.load_state_dict(state)
            optimizer.load_state_dict(content["optimizer"])
            if scaler is not None:
                scaler.load_state_dict(content["loss_scaler"])
            return Position(int(content["step"]), float(content["best_recall"]))
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointReadError(
                f"{path}: holds no state to resume from ({error}); start a new run"
            ) from error

    def save_best(self, model: XClip) -> None:
        """Save the weights of the best validation so far. Raises TrainingError."""
        path = self.path / _BEST
        try:
            save_checkpoint(
                path,
                model.config,
                model.state_dict(),
                square_pixels=self._has_square_pixels,
            )
        except (OSError, RuntimeError) as error:
            raise TrainingError(f"{path}: cannot be written ({error})") from error

    @staticmethod
    def _check_same(config: TrainConfig, stored: Path) -> None:
        try:
            before = TrainConfig.model_validate_json(stored.read_bytes())
        except ValueError as error:
            raise InvalidArgumentError(f"{stored}: is no configuration of this release") from error
        if before != config:
            old, new = (_flat(c.model_dump(mode="json")) for c in (before, config))
            differing = sorted(name for name in old | new if old.get(name) != new.get(name))
            name = differing[0]
            raise InvalidArgumentError(
                f"the run in {stored.parent} has {name}={old.get(name)!r}, now it is "
                f"{new.get(name)!r}; resume with the same configuration"
            )


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a run's log (:meth:`RunFolder.records`) to a PNG file, and to a dark one beside it.

    A panel shows the loss. A second one shows the recall of each validation, if there is any.
    """
    write_pngs(lambda: _figure(records), path)


def _figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    steps = [record for record in records if "loss" in record]
    validations = [record for record in records if "validation" in record]
    panels = 2 if validations else 1
    figure = Figure(figsize=(5.2 * panels, 4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    marker = "o" if len(steps) == 1 else "none"  # a line needs two points
    losses = [record["loss"] for record in steps]
    axes[0].plot([record["step"] for record in steps], losses, marker=marker, linewidth=0.8)
    title = "Training loss" if validations else "Training loss (no validation in this run)"
    axes[0].set(xlabel="step", ylabel="loss", title=title)
    if losses and min(losses) > 0:
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].yaxis.set_minor_formatter("{x:g}")
    if validations:
        _draw_recalls(axes[1], validations)
    for each in axes:
        each.grid(alpha=0.3)
    return figure


def _draw_recalls(axes: Axes, validations: Sequence[Mapping[str, Any]]) -> None:
    at = [record["step"] for record in validations]
    for direction, label in (("text_to_video", "text → video"), ("video_to_text", "video → text")):
        recalls = [record["validation"][direction]["recall_at_1"] for record in validations]
        axes.plot(at, recalls, marker="o", label=label)
    axes.set(xlabel="step", ylabel="R@1, %", title="Validation", ylim=(0, 100))
    axes.legend()


def _has_nothing_to_lose(path: Path) -> bool:
    """Tell whether a folder is empty, or holds a run that stopped before its first step."""
    if not path.is_dir():
        return False
    names = {file.name for file in path.iterdir()}
    reports = {name for name in names if name.endswith("_videos.json")}
    # Generated data is made again, or found complete.
    made = {"videos", "frame-cache", *reports}
    return not names or (_CONFIG in names and names <= {_CONFIG, *made})


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
