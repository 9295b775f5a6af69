"""Loss scaling, which keeps small gradients where the encoders compute in FP16.

FP16 has no number below 6e-8, and a contrastive loss has such gradients. The loss is multiplied
by a large scale before the backward pass. The gradients are divided by it before anything else
reads them. A step whose gradients overflow is skipped and halves the scale; a long
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
"""Upper bound of the scale. FP16 then holds gradients of 4e-15, and every further doubling costs
a skipped step on the way back."""
MIN_SCALE = 1.0
"""Lower bound of the scale. Where this overflows, the gradients themselves exceed 65504."""
GROWTH_INTERVAL = 2000
"""Good steps in a row that double the scale."""


class LossScaler:
    """Dynamic loss scale of a run: PyTorch's, with bounds.

    Call :meth:`unscale` after the gradients of all processes are summed. An infinity or NaN
    survives the sum, so that all processes decide alike without asking each other.
    """

    def __init__(self, device_type: str, *, growth_interval: int = GROWTH_INTERVAL) -> None:
        """Start at ``INITIAL_SCALE``. ``device_type``: ``cpu`` or ``cuda``, where the model is."""
        self._scaler = torch.amp.GradScaler(
            device_type, init_scale=INITIAL_SCALE, growth_interval=growth_interval
        )

    @property
    def scale(self) -> float:
        """Factor of the next loss."""
        return self._scaler.get_scale()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale; same shape and dtype."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: RecipeAdam) -> None:
        """Divide the gradients by the scale, in place, and note whether all are finite."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: RecipeAdam) -> bool:
        """Step the optimiser, or skip the step where a gradient is not finite; False if skipped.

        Call it after :meth:`unscale`. A skipped step moves neither parameters nor moments, and
        counts in the learning-rate schedule. Raises TrainingError where the smallest scale
        overflows in two steps running.
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
        """Return plain numbers: the scale, the good steps since its last change, the constants."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`. Raises KeyError for anything else."""
        self._scaler.load_state_dict(state)
