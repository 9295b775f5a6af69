"""Several training processes that act as one, each on its share of every batch.

``torchrun`` starts them. GPUs communicate by NCCL, CPU processes by gloo.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

from xclip_deploy.errors import TrainingError, XclipDeployError

T = TypeVar("T")

_BUCKET_ELEMENTS = 1 << 24
"""Most elements in a bucket of gradients that is summed at once: 64 MiB in FP32."""


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that ``torchrun`` started; do nothing without it."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # The first process checks videos and validates while the others wait.
    torch.distributed.init_process_group("nccl" if has_gpu else "gloo", timeout=timedelta(hours=12))
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def world_size() -> int:
    """Return the number of processes."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def from_first(make: Callable[[], T]) -> T:
    """Call ``make`` in the first process, and return its result in all.

    An error raises there as it is, and elsewhere as a TrainingError with the same message.
    """
    if world_size() == 1:
        return make()
    message: list[tuple[T | None, str]] = [(None, "")]
    failure: XclipDeployError | None = None
    if rank() == 0:
        try:
            message = [(make(), "")]
        except XclipDeployError as error:
            failure, message = error, [(None, str(error) or type(error).__name__)]
    torch.distributed.broadcast_object_list(message)
    value, problem = message[0]
    if failure is not None:
        raise failure
    if problem:
        raise TrainingError(f"the first process stopped: {problem}")
    return value  # type: ignore[return-value]  # None only where make() gave it


def gather(tensor: Tensor) -> Tensor:
    """Join the tensors of all processes along the first axis, in the order of their ranks.

    All must have the same shape. No gradient flows through the result.
    """
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in place."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    elements = 0
    for parameter in parameters:
        if parameter.grad is None:
            continue
        bucket.append(parameter.grad)
        elements += parameter.grad.numel()
        if elements >= _BUCKET_ELEMENTS:
            _sum_bucket(bucket)
            bucket, elements = [], 0
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    start = 0
    for gradient in gradients:
        end = start + gradient.numel()
        gradient.copy_(flat[start:end].view_as(gradient))
        start = end
