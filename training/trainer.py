"""Training loop: data, model, steps, validation and checkpoints; resumable at any step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xclip_deploy.errors import InvalidArgumentError, TrainingError
from xclip_deploy.runtime.arguments import (
    PathName,
    as_callback,
    as_instance,
    as_path,
    as_truth,
)
from xclip_deploy.runtime.datasets import Split
from xclip_deploy.runtime.progress import ProgressFunction
from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.training.checkpoints import CheckpointOptions, load_checkpoint
from xclip_deploy.training.config import StartConfig, TrainConfig
from xclip_deploy.training.datasets.batches import Batch, BatchLoader
from xclip_deploy.training.datasets.epoch_order import epoch_order
from xclip_deploy.training.datasets.pairs import PairDataset
from xclip_deploy.training.distributed import from_first, process_group, rank, world_size
from xclip_deploy.training.evaluation import validate
from xclip_deploy.training.initialization import freeze_layers, initialize_from
from xclip_deploy.training.loss_scaling import LossScaler
from xclip_deploy.training.model import XClip
from xclip_deploy.training.optimizer import Recipe, make_optimizer
from xclip_deploy.training.precision import halve_clip
from xclip_deploy.training.run_data import RunData
from xclip_deploy.training.run_folder import Position, RunFolder, draw_curves
from xclip_deploy.training.step import Pairs, StepResult, set_gradient_checkpointing, train_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """Progress of a run after a step."""

    step: int
    """Number of steps done, of ``total_steps``."""
    total_steps: int
    epoch: int
    """Number of the epoch, from 1 to ``epochs``."""
    epochs: int
    loss: float
    grad_norm: float | None
    """Norm of all gradients before clipping; None in a skipped step."""
    lr: float
    """Learning rate of this step for parameters that are not CLIP's."""
    clip_lr: float
    """Learning rate of this step for CLIP's parameters."""
    seconds: float
    """Duration of this step, with the wait for its batch."""
    skipped: bool
    """True where the gradients overflowed FP16, so that nothing was updated."""
    loss_scale: float | None
    """Loss scale of this step; None without loss scaling, which FP16 alone has."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a finished run."""

    path: Path
    """Folder of the run; ``best.pt`` and ``last.pt`` in it are checkpoints like any others."""
    steps: int
    best_recall: float | None
    """Best validation text-to-video R@1, percent; None without validation."""
    metrics: dict[str, Any]
    """Metrics of the validation after the last epoch; empty without validation."""


def train(
    config: TrainConfig,
    output: PathName,
    *,
    resume: bool = False,
    on_step: Callable[[StepReport], None] | None = None,
    on_preparation: ProgressFunction | None = None,
) -> TrainResult:
    """Train a model, or continue a run that was interrupted.

    A resumed run continues exactly. Batches are a function of seed, epoch and step alone, and
    ``last.pt`` holds the weights, the optimiser's state and the loss scale. Under ``torchrun``
    each process takes its share of every batch, and the first writes the folder.

    Raises InvalidArgumentError, CheckpointError and DatasetError. Raises TrainingError for a
    loss that is not finite (``failed_batch.json`` then lists the batch), for gradients that
    overflow FP16 at any loss scale, and for a folder that cannot be written.
    """
    as_instance("config", config, TrainConfig, "a TrainConfig, as resolve_config gives")
    folder = as_path("output", output)
    as_truth("resume", resume)
    as_callback("on_step", on_step)
    as_callback("on_preparation", on_preparation)
    with process_group():
        return _Run(config, folder, resume, on_step, on_preparation).train()


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        output: Path,
        resume: bool,
        on_step: Callable[[StepReport], None] | None,
        on_preparation: ProgressFunction | None,
    ) -> None:
        self.config = config
        self.on_step = on_step
        self.is_first = rank() == 0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        from_first(lambda: RunFolder(output, config, resume=resume).path)
        self.folder = RunFolder(output, config, resume=True)
        self.model = _start(config.start, config.optimization.seed)
        data = RunData(config.data, self.model.config, self.folder.path, on_preparation)
        self.source = data.source
        self.split = data.split("train")
        name = config.data.validation_split
        self.validation = data.split(name) if name else None
        optimization = config.optimization
        order = self._order(0)
        self.steps_per_epoch = len(order)
        self.total_steps = len(order) * optimization.epochs
        self.model.to(self.device)
        freeze_layers(self.model, optimization.freeze_layers, freeze_3d=optimization.freeze_3d)
        if optimization.clip_in_fp16:
            halve_clip(self.model)
        set_gradient_checkpointing(self.model, optimization.gradient_checkpointing)
        recipe = Recipe(
            lr=optimization.lr,
            coef_lr=optimization.coef_lr,
            total_steps=self.total_steps,
            warmup=optimization.warmup,
            weight_decay=optimization.weight_decay,
            max_grad_norm=optimization.max_grad_norm,
        )
        self.optimizer = make_optimizer(self.model, recipe)
        is_fp16 = optimization.precision == "fp16"
        self.scaler = LossScaler(self.device.type) if is_fp16 else None
        self.position = Position(step=0, best_recall=-1.0)
        if resume:
            self.position = (
                self.folder.load_last(self.model, self.optimizer, self.scaler) or self.position
            )
            if self.is_first:
                self.folder.rewind_log(self.position.step)

    def train(self) -> TrainResult:
        data = self.config.data
        pairs = PairDataset(
            self.split,
            Tokenizer.default(),
            self.source,
            self.model.config.max_words,
            expand_sentences=data.expand_sentences,
            frame_order=data.frame_order,
            seed=self.config.optimization.seed,
        )
        metrics: dict[str, Any] = {}
        pin_memory = self.device.type == "cuda"
        workers = self.config.data.workers
        with BatchLoader(pairs, num_workers=workers, pin_memory=pin_memory) as loader:
            while self.position.step < self.total_steps:
                metrics = self._epoch(loader)
        if not metrics and self.validation is not None and self.is_first:
            # The run was resumed at its end.
            metrics = self._measure(self.validation)
        if self.is_first:
            if metrics:  # a run without validation has measured nothing
                self.folder.write_json("metrics.json", metrics)
            draw_curves(self.folder.records(), self.folder.path / "curves.png")
        best = self.position.best_recall
        return TrainResult(
            self.folder.path, self.position.step, None if best < 0 else best, metrics
        )

    def _epoch(self, loader: BatchLoader) -> dict[str, Any]:
        """Train to the end of the current epoch; return its validation."""
        epoch, start = divmod(self.position.step, self.steps_per_epoch)
        self.model.train()
        waited_since_s = time.monotonic()
        for batch in loader.batches(self._order(epoch), start, epoch=epoch):
            rates = self.optimizer.rates()
            result = self._step(batch)
            step = self.position.step + 1
            self.position = Position(step, self.position.best_recall)
            now_s = time.monotonic()
            self._report(epoch, result, rates, now_s - waited_since_s)
            waited_since_s = now_s
            is_epoch_end = step % self.steps_per_epoch == 0
            if step % self.config.save_every_steps == 0 and not is_epoch_end:
                self._save()
        is_last = self.position.step == self.total_steps
        is_due = (epoch + 1) % self.config.validate_every_epochs == 0
        metrics = self._validate() if is_due or is_last else {}
        self._save()
        return metrics

    def _step(self, batch: Batch) -> StepResult:
        pairs = Pairs(
            batch.token_ids.to(self.device, non_blocking=True),
            batch.frames.to(self.device, non_blocking=True),
            batch.num_frames.to(self.device, non_blocking=True),
        )
        optimization = self.config.optimization
        result = train_step(
            self.model,
            self.optimizer,
            pairs,
            chunk_size=optimization.chunk_size,
            precision=optimization.precision,
            scaler=self.scaler,
            accumulation_steps=optimization.accumulation_steps,
            average_encoders=optimization.average_encoder_gradients,
        )
        if result is not None:
            return result
        listed = [
            {
                "video": self.split.videos[int(video)].id,
                "path": str(self.split.videos[int(video)].path),
                "caption": self.split.captions[int(pair)],
            }
            for pair, video in zip(batch.pair_indices, batch.video_indices, strict=True)
        ]
        file = f"failed_batch{'' if self.is_first else f'_rank{rank()}'}.json"
        self.folder.write_json(file, {"step": self.position.step, "pairs": listed})
        raise TrainingError(
            f"the loss of step {self.position.step + 1} is not finite; its pairs are in "
            f"{self.folder.path / file}; lower the learning rate or look at the data, then "
            "start again, or go on from the last checkpoint with --resume"
        )

    def _report(
        self, epoch: int, result: StepResult, rates: tuple[float, float], seconds: float
    ) -> None:
        if not self.is_first:
            return
        report = StepReport(
            step=self.position.step,
            total_steps=self.total_steps,
            epoch=epoch + 1,
            epochs=self.config.optimization.epochs,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=rates[0],
            clip_lr=rates[1],
            seconds=seconds,
            skipped=result.skipped,
            loss_scale=result.loss_scale,
        )
        self.folder.log(vars(report))
        if self.on_step is not None:
            self.on_step(report)

    def _validate(self) -> dict[str, Any]:
        if self.validation is None or not self.is_first:
            return {}
        metrics = self._measure(self.validation)
        self.folder.log({"step": self.position.step, "validation": metrics})
        recall = float(metrics["text_to_video"]["recall_at_1"])
        is_equal_and_later = (
            self.config.best_of_equals == "last" and recall == self.position.best_recall
        )
        if recall > self.position.best_recall or is_equal_and_later:
            self.position = Position(self.position.step, recall)
            self.folder.save_best(self.model)
        return metrics

    def _measure(self, split: Split) -> dict[str, Any]:
        order = self.config.data.validation_frame_order
        return validate(self.model, split, self.source, frame_order=order)

    def _save(self) -> None:
        if self.is_first:
            self.folder.save_last(self.model, self.optimizer, self.position, self.scaler)

    def _order(self, epoch: int) -> Any:  # noqa: ANN401 - int64 [steps, pairs of this process]
        optimization = self.config.optimization
        is_expanded = self.config.data.expand_sentences
        # The processes share a batch evenly, and each its share among its parts.
        parts = optimization.accumulation_steps * world_size()
        if optimization.batch_size % parts:
            raise InvalidArgumentError(
                f"batch_size {optimization.batch_size} is no multiple of {parts}, the processes "
                "times accumulation_steps"
            )
        return epoch_order(
            len(self.split.captions if is_expanded else self.split.videos),
            optimization.batch_size,
            seed=optimization.seed,
            epoch=epoch,
            rank=rank(),
            world_size=world_size(),
        )


def _start(start: StartConfig, seed: int) -> XClip:
    """Make the model at step 0."""
    if start.checkpoint is not None:
        checkpoint = load_checkpoint(start.checkpoint, CheckpointOptions(weights=start.weights))
        for note in checkpoint.notes if rank() == 0 else ():
            if note.startswith("took "):  # the others are about settings of ``start``
                logger.warning("%s: %s", start.checkpoint, note)
        return initialize_from(checkpoint, start.model_config_for(checkpoint.config))
    if start.architecture is None:
        raise InvalidArgumentError(
            "start.checkpoint must be given (CLIP's weights, for one), or start.architecture "
            "for random weights"
        )
    torch.manual_seed(seed)
    return XClip(start.architecture)
