"""One training step: the gradients of a batch, and the update.

The loss compares every text of the batch with every video. It needs the features of all at once,
and not the encoders' activations. A step therefore encodes, computes the loss and its gradient at
the features, and carries that gradient back through the encoders.

The same code serves a plain step, several processes, which exchange features alone, and batches
larger than memory. The last are encoded in chunks, twice ("gradient caching", Gao et al. 2021,
arXiv:2101.06983). All three give the same gradients.

Only the encoders compute in half precision. FP16 needs a scaled loss (see
:mod:`xclip_deploy.training.loss_scaling`). BF16 has FP32's range and needs none.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from xclip_deploy.training.distributed import gather, rank, sum_gradients, world_size
from xclip_deploy.training.loss_scaling import LossScaler
from xclip_deploy.training.model import XClip
from xclip_deploy.training.optimizer import RecipeAdam, clamp_logit_scale, clip_gradients
from xclip_deploy.training.text_encoder import count_tokens
from xclip_deploy.training.transformer import Transformer

EncoderPrecision = Literal["fp32", "bf16", "fp16"]
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt(3)``, in glibc's ``malloc.h``."""
_LARGEST_KEPT = (1 << 30, 32 << 20)
"""Largest block, bytes, that the process keeps. Older versions of glibc refuse the first value."""
_MOST_KEPT = (1 << 31) - 1
"""Bytes that the process keeps at its heap's end; ``mallopt`` takes no more."""
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Pairs(NamedTuple):
    """Pairs of text and video, B of them: one process's share of a batch."""

    token_ids: Tensor
    """Integers [B, W]."""
    frames: Tensor
    """uint8 [B, F, S, S, 3]."""
    num_frames: Tensor
    """Integers [B]."""


@dataclass(frozen=True)
class StepResult:
    """Result of a step."""

    loss: float
    """Loss of the whole batch, all processes together."""
    grad_norm: float | None
    """Norm of all gradients together, before clipping; None in a skipped step."""
    seconds: float
    skipped: bool = False
    """True where the gradients overflowed FP16, so that nothing was updated."""
    loss_scale: float | None = None
    """Factor of the loss; None without loss scaling."""


def contrastive_loss(logits: Tensor) -> Tensor:
    """Return the symmetric cross-entropy over a batch's similarities.

    ``logits``: [B, B]; text i and video i belong together. The loss is the mean of both
    directions (X-CLIP, section 3.4).
    """
    target = torch.arange(len(logits), device=logits.device)
    text_to_video = functional.cross_entropy(logits, target)
    video_to_text = functional.cross_entropy(logits.T, target)
    return (text_to_video + video_to_text) / 2


def train_step(
    model: XClip,
    optimizer: RecipeAdam,
    pairs: Pairs,
    *,
    chunk_size: int | None = None,
    precision: EncoderPrecision = "fp32",
    scaler: LossScaler | None = None,
    accumulation_steps: int = 1,
    average_encoders: bool = False,
) -> StepResult | None:
    """Update the model once; return None, and update nothing, where the loss is not finite.

    See :func:`compute_gradients` for the options. ``scaler``: required in FP16, else None. All
    processes skip a step whose loss is finite and whose scaled gradients are not. Raises
    TrainingError where no scale helps.
    """
    assert (scaler is not None) == (precision == "fp16")
    started_s = time.monotonic()
    optimizer.zero_grad(set_to_none=True)
    loss = compute_gradients(
        model,
        pairs,
        chunk_size=chunk_size,
        precision=precision,
        scaler=scaler,
        accumulation_steps=accumulation_steps,
        average_encoders=average_encoders,
    )
    if not torch.isfinite(loss):
        optimizer.zero_grad(set_to_none=True)
        return None
    if scaler is None:
        norm = clip_gradients(model, optimizer.recipe)
        optimizer.step()
        clamp_logit_scale(model)
        return StepResult(loss.item(), float(norm), time.monotonic() - started_s)
    scale = scaler.scale
    scaler.unscale(optimizer)
    norm = clip_gradients(model, optimizer.recipe)
    is_done = scaler.step(optimizer)
    if is_done:
        clamp_logit_scale(model)
    return StepResult(
        loss.item(),
        float(norm) if is_done else None,
        time.monotonic() - started_s,
        skipped=not is_done,
        loss_scale=scale,
    )


def compute_gradients(
    model: XClip,
    pairs: Pairs,
    *,
    chunk_size: int | None = None,
    precision: EncoderPrecision = "fp32",
    scaler: LossScaler | None = None,
    accumulation_steps: int = 1,
    average_encoders: bool = False,
) -> Tensor:
    """Set the parameters' gradients of the loss over the pairs of all processes.

    ``chunk_size``: most pairs whose activations are in memory at once; None keeps all, and
    encodes once instead of twice. ``precision``: arithmetic of the encoders; the scorer, the
    loss and the weights stay in FP32. ``scaler``: multiplies the gradients by its scale.
    ``accumulation_steps``: parts of the pairs, each with a loss of its own; it divides their
    number. ``average_encoders``: divide the encoders' gradients by the number of processes.
    Every process must have the same number of pairs. Returns the loss, a scalar, not scaled;
    of several parts, the mean.
    """
    size = len(pairs.token_ids) // accumulation_steps
    losses = [
        _add_gradients(
            model,
            Pairs(*(tensor[start : start + size] for tensor in pairs)),
            1 / accumulation_steps,
            chunk_size=chunk_size,
            precision=precision,
            scaler=scaler,
        )
        for start in range(0, size * accumulation_steps, size)
    ]
    _combine(model, average_encoders=average_encoders)
    return losses[0] if accumulation_steps == 1 else torch.stack(losses).mean()


def _add_gradients(
    model: XClip,
    pairs: Pairs,
    factor: float,
    *,
    chunk_size: int | None,
    precision: EncoderPrecision,
    scaler: LossScaler | None,
) -> Tensor:
    """Add ``factor`` times the gradients of one loss to this process's; return the loss."""
    size = len(pairs.token_ids)
    chunks = [
        Pairs(*(tensor[start : start + (chunk_size or size)] for tensor in pairs))
        for start in range(0, size, chunk_size or size)
    ]
    is_whole = len(chunks) == 1
    with torch.set_grad_enabled(is_whole):
        encoded = [_encode(model, chunk, precision) for chunk in chunks]
    local = [torch.cat([part[n].detach() for part in encoded]) for n in range(4)]
    features = [gather(tensor).requires_grad_() for tensor in local]
    num_words = gather(count_tokens(pairs.token_ids))
    num_frames = gather(pairs.num_frames)
    with torch.enable_grad():
        loss = contrastive_loss(model.scorer(*features, num_words, num_frames).logits)
    # The scorer needs no scale and gets it too: one division then serves all gradients.
    part = loss if factor == 1 else loss * factor
    scaled = part if scaler is None else scaler.scaled(part)
    scaled.backward()  # type: ignore[no-untyped-call]
    mine = slice(rank() * size, (rank() + 1) * size)
    gradients = [None if tensor.grad is None else tensor.grad[mine] for tensor in features]
    start = 0
    for chunk, outputs in zip(chunks, encoded, strict=True):
        rows = slice(start, start + len(chunk.token_ids))
        _backward(outputs if is_whole else _encode(model, chunk, precision), gradients, rows)
        start = rows.stop
    return loss.detach()


def set_gradient_checkpointing(model: XClip, enabled: bool) -> None:
    """Switch gradient checkpointing on or off in all transformers of the model."""
    for module in model.modules():
        if isinstance(module, Transformer):
            module.gradient_checkpointing = enabled


def _encode(model: XClip, pairs: Pairs, precision: EncoderPrecision) -> tuple[Tensor, ...]:
    """Return sentence, word, video and frame features."""
    device = pairs.frames.device.type
    with torch.autocast(device, _AUTOCAST.get(precision), enabled=precision in _AUTOCAST):
        text = model.text_encoder(pairs.token_ids)
        video = model.video_encoder(pairs.frames, pairs.num_frames)
    return (*text, *video)


def _backward(features: Sequence[Tensor], gradients: Sequence[Tensor | None], rows: slice) -> None:
    """Carry gradients at the features back into the encoders' parameters."""
    used = [
        (feature, gradient[rows])
        for feature, gradient in zip(features, gradients, strict=True)
        # A scorer without fine grains reads no words and frames. Frozen encoders need no gradient.
        if gradient is not None and feature.requires_grad
    ]
    if used:
        tensors, upstream = zip(*used, strict=True)
        torch.autograd.backward(tensors, upstream)


def _combine(model: XClip, *, average_encoders: bool) -> None:
    """Make every process's gradients those of the whole batch.

    An encoder's gradients are parts, one a process, and the scorer's are whole on each. The
    authors' DistributedDataParallel takes the mean of both, hence ``average_encoders``.
    """
    sum_gradients(model.parameters())
    for parameter in model.parameters() if average_encoders else model.scorer.parameters():
        if parameter.grad is not None:
            parameter.grad /= world_size()


def keep_freed_memory() -> bool:
    """Make the C library of this process keep large blocks that are freed.

    glibc returns large blocks to the system at once. A step on the CPU frees and requests hundreds
    of megabytes of activations, and the system clears all their pages anew. That takes a twentieth
    of the time of the demo preset's steps. The process holds its peak of memory from then on, so
    call this only where training is its work. Returns whether glibc took the setting; other C
    libraries stay as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    # Each returns 1 where it was taken.
    is_kept = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT)
    return bool(is_kept and mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT))
