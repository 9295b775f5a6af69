"""Optimiser and learning-rate schedule of the published recipe.

X-CLIP and CLIP4Clip train with "BertAdam" (from pytorch-pretrained-bert): Adam without bias
correction, decoupled weight decay, and a schedule that is a function of progress alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xclip_deploy.training.model import XClip

MAX_LOGIT_SCALE = math.log(100)
"""CLIP's bound on ``logit_scale`` after each step: exp(logit_scale) is at most 100."""


def warmup_cosine(progress: float, warmup: float) -> float:
    """Return the share of the full learning rate at ``progress``, 0 to 1, of the run.

    It rises linearly from 0 during the first ``warmup`` share. Then it follows half a cosine *of
    the whole run*, which began at progress 0: hence a small drop at the end of the warm-up.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


@dataclass(frozen=True)
class Recipe:
    """Settings of the optimiser."""

    lr: float
    """Full learning rate of parameters that are not CLIP's."""
    coef_lr: float
    """Factor on the learning rate for CLIP's parameters."""
    total_steps: int
    """Steps of the whole run, which the schedule spans."""
    warmup: float = 0.1
    """Share of the run in which the rate rises."""
    weight_decay: float = 0.2
    """Decoupled weight decay of all parameters but biases."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    max_grad_norm: float = 1.0
    """Largest norm of all gradients together, and then of each parameter's."""


class RecipeAdam(torch.optim.Optimizer):
    """Adam without bias correction, with decoupled weight decay and the recipe's schedule.

    Step k, counted from 0, has the learning rate of progress k / total_steps: the first step
    moves nothing. Each parameter's gradient is clipped before use.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], recipe: Recipe) -> None:
        super().__init__(groups, {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "step": 0})
        self.recipe = recipe

    def rate(self, group: dict[str, Any]) -> float:
        """Return the learning rate of a group's next step."""
        progress = group["step"] / self.recipe.total_steps
        rate: float = group["lr"] * warmup_cosine(progress, self.recipe.warmup)
        return rate

    def rates(self) -> tuple[float, float]:
        """Return the learning rates of the next step, of other parameters and of CLIP's."""
        schedule = warmup_cosine(
            self.param_groups[0]["step"] / self.recipe.total_steps, self.recipe.warmup
        )
        return self.recipe.lr * schedule, self.recipe.lr * self.recipe.coef_lr * schedule

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients."""
        if closure is not None:
            raise TypeError("RecipeAdam takes no closure: the recipe has one gradient per step")
        beta1, beta2 = self.recipe.betas
        for group in self.param_groups:
            rate = self.rate(group)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                nn.utils.clip_grad_norm_(parameter, self.recipe.max_grad_norm)
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                    state["square"] = torch.zeros_like(parameter)
                mean, square = state["mean"], state["square"]
                if parameter.dtype == torch.float16:
                    self._step_in_fp16(parameter, mean, square, rate, group["weight_decay"])
                    continue
                mean.lerp_(parameter.grad, 1 - beta1)
                square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                if group["weight_decay"] > 0:
                    parameter.mul_(1 - rate * group["weight_decay"])
                root = square.sqrt().add_(self.recipe.eps)
                parameter.addcdiv_(mean, root, value=-rate)
        self.advance_schedule()

    def _step_in_fp16(
        self,
        parameter: nn.Parameter,
        mean: Tensor,
        square: Tensor,
        rate: float,
        weight_decay: float,
    ) -> None:
        """Update an FP16 parameter by BertAdam's operations, whose order decides the rounding.

        The second moment of gradients below 1.2e-3 rounds to zero, as in the authors' training.
        """
        assert parameter.grad is not None
        beta1, beta2 = self.recipe.betas
        mean.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        update = mean / (square.sqrt() + self.recipe.eps)
        if weight_decay > 0:
            update += weight_decay * parameter
        parameter.add_(-(rate * update))

    def advance_schedule(self) -> None:
        """Advance the schedule by one step; a skipped step does this alone.

        The schedule counts all batches of the run, used or not, so that it ends with the run.
        """
        for group in self.param_groups:
            group["step"] += 1


def make_optimizer(model: XClip, recipe: Recipe) -> RecipeAdam:
    """Group the model's trainable parameters as the recipe does.

    CLIP's own parameters have ``coef_lr`` times the learning rate. Biases have no weight decay.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (is_clips(name), "bias" in name)
            groups.setdefault(key, []).append(parameter)
    return RecipeAdam(
        (
            {
                "params": parameters,
                "lr": recipe.lr * (recipe.coef_lr if clips else 1.0),
                "weight_decay": 0.0 if biases else recipe.weight_decay,
            }
            for (clips, biases), parameters in groups.items()
        ),
        recipe,
    )


def is_clips(name: str) -> bool:
    """Tell by its name whether a parameter of :class:`XClip` comes with CLIP."""
    return (
        name.startswith(("video_encoder.visual.", "text_encoder.")) or name == "scorer.logit_scale"
    )


def clip_gradients(model: nn.Module, recipe: Recipe) -> Tensor:
    """Clip the norm of all gradients together; return the norm before."""
    return nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)


@torch.no_grad()
def clamp_logit_scale(model: XClip) -> None:
    """Keep exp(logit_scale) at most 100, as CLIP's training does after each step."""
    model.scorer.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
