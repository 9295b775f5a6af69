"""Loss scaling: small gradients survive where the encoders compute in FP16.

FP16 has nothing below 6e-8, and gradients of a contrastive loss lie there. The loss is
multiplied by a large scale before the backward pass, and the gradients are divided by it before
anything else reads them. A step whose gradients overflow is skipped and halves the scale; a long
run of good steps doubles it (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).

:class:`torch.amp.GradScaler` does all of this, on the CPU too. :class:`LossScaler` adds what it
lacks. PyTorch's scale has no bounds: after 200 overflows in a row it is 0.0 without an error,
and 200 doublings take it to 2**127. Nor does PyTorch say whether it skipped a step, which the log
records and the learning-rate schedule counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xclip_deploy.errors import TrainingError
from xclip_deploy.training.optimizer import RecipeAdam

INITIAL_SCALE = 2.0**16
MAX_SCALE = 2.0**24
"""Every doubling costs a skipped step on the way back, and at this scale FP16 holds gradients of
4e-15 already."""
MIN_SCALE = 1.0
"""At this scale an overflow is the model's own: its gradients exceed 65504."""
GROWTH_INTERVAL = 2000
"""Good steps in a row that double the scale."""


class LossScaler:
    """The dynamic loss scale of a run: PyTorch's, with bounds.

    :meth:`unscale` must see the gradients summed over all processes. An infinity or NaN survives
    the sum, so that all processes decide alike without asking each other.
    """

    def __init__(self, device_type: str, *, growth_interval: int = GROWTH_INTERVAL) -> None:
        """``device_type``: ``cpu`` or ``cuda``, where the model is."""
        self._scaler = torch.amp.GradScaler(
            device_type, init_scale=INITIAL_SCALE, growth_interval=growth_interval
        )

    @property
    def scale(self) -> float:
        """What the next loss is multiplied by."""
        return self._scaler.get_scale()

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to differentiate; same shape and dtype."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: RecipeAdam) -> None:
        """Divide the gradients by the scale, in place, and note whether all are finite."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: RecipeAdam) -> bool:
        """Let the optimiser step, or skip this step; False where it was skipped.

        Comes after :meth:`unscale`. A skipped step moves neither parameters nor moments, and
        counts in the learning-rate schedule. Raises TrainingError where even the smallest
        scale overflows in two steps running.
        """
        used = self.scale
        follows_good_step = self._scaler.state_dict()["_growth_tracker"] > 0
        self._scaler.step(optimizer)
        self._scaler.update()
        found = self.scale
        if found > MAX_SCALE:
            self._scaler.update(MAX_SCALE)
        if found >= used:
            return True
        optimizer.advance_schedule()
        if found < MIN_SCALE:
            if not follows_good_step:
                raise TrainingError(
                    f"the gradients overflow FP16 even with a loss scale of {used:g}, in two "
                    "steps running; start a new run with optimization.precision=bf16 or fp32, "
                    "or with a lower learning rate"
                )
            self._scaler.update(MIN_SCALE)
        return False

    def state_dict(self) -> dict[str, Any]:
        """Numbers alone: the scale, the good steps since its last change, the constants."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another stood. Raises KeyError for a state that is none."""
        self._scaler.load_state_dict(state)
