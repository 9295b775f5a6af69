"""One training step: the gradients of a batch, and the update.

The loss compares every text of the batch with every video, so it needs the features of all at
once, but not their encoders' activations. Each step therefore goes through the features: encode,
compute the loss and its gradient at the features, carry that gradient back through the
encoders. One way serves three needs: a plain step; several processes, which exchange features
and not activations; and batches larger than memory, encoded in chunks twice ("gradient
caching", Gao et al. 2021, arXiv:2101.06983). All three give the same gradients.

In half precision the encoders alone compute in it. FP16 needs its loss scaled on top (see
:mod:`xclip_deploy.training.loss_scaling`); BF16 has FP32's range and does not.
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
"""Bytes of one block; larger ones still come from the system and go back to it. Older versions
refuse the first."""
_MOST_KEPT = (1 << 31) - 1
"""Bytes that stay with the process at its heap's end; ``mallopt`` takes no more."""
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Pairs(NamedTuple):
    """B pairs of text and video: this process's share of a batch."""

    token_ids: Tensor
    """Integer [B, W]."""
    frames: Tensor
    """uint8 [B, F, S, S, 3]."""
    num_frames: Tensor
    """Integer [B]."""


@dataclass(frozen=True)
class StepResult:
    """What a step did."""

    loss: float
    """Of the whole batch, all processes together."""
    grad_norm: float | None
    """Of all gradients together, before clipping; None in a skipped step."""
    seconds: float
    skipped: bool = False
    """Whether the gradients overflowed FP16, and nothing was updated."""
    loss_scale: float | None = None
    """What the loss was multiplied by; None without loss scaling."""


def contrastive_loss(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy over a batch's similarities.

    ``logits``: [B, B], text i and video i belonging together. Returns the mean of both
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
) -> StepResult | None:
    """Update the model once; None, with nothing updated, where the loss is not finite.

    See :func:`compute_gradients` for the options. ``scaler``: given in FP16 and in nothing else.
    A finite loss whose scaled gradients are not finite is no failure: the step is skipped, by
    all processes alike. Raises TrainingError where no scale helps.
    """
    assert (scaler is not None) == (precision == "fp16")
    started_s = time.monotonic()
    optimizer.zero_grad(set_to_none=True)
    loss = compute_gradients(
        model, pairs, chunk_size=chunk_size, precision=precision, scaler=scaler
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
) -> Tensor:
    """Set the parameters' gradients of the loss over the pairs of all processes.

    ``chunk_size``: most pairs whose activations are in memory at once; None keeps all, and
    encodes once instead of twice. In BF16 and FP16 the encoders compute in it; the scorer, the
    loss and the weights stay in FP32. With a ``scaler`` the gradients are its scale times
    those of the loss. Every process must have as many pairs. Returns the loss, a scalar, not
    scaled.
    """
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
    # The scorer needs no scale and has it all the same: one division then serves all gradients.
    scaled = loss if scaler is None else scaler.scaled(loss)
    scaled.backward()  # type: ignore[no-untyped-call]
    mine = slice(rank() * size, (rank() + 1) * size)
    gradients = [None if tensor.grad is None else tensor.grad[mine] for tensor in features]
    start = 0
    for chunk, part in zip(chunks, encoded, strict=True):
        rows = slice(start, start + len(chunk.token_ids))
        _backward(part if is_whole else _encode(model, chunk, precision), gradients, rows)
        start = rows.stop
    _combine(model)
    return loss.detach()


def set_gradient_checkpointing(model: XClip, enabled: bool) -> None:
    """Switch it in all transformers of the model."""
    for module in model.modules():
        if isinstance(module, Transformer):
            module.gradient_checkpointing = enabled


def _encode(model: XClip, pairs: Pairs, precision: EncoderPrecision) -> tuple[Tensor, ...]:
    """Sentence, word, video and frame features."""
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
        # A scorer without fine grains reads no words and no frames; frozen encoders take none.
        if gradient is not None and feature.requires_grad
    ]
    if used:
        tensors, upstream = zip(*used, strict=True)
        torch.autograd.backward(tensors, upstream)


def _combine(model: XClip) -> None:
    """Make every process's gradients those of the whole batch."""
    sum_gradients(model.parameters())
    # The encoders' were each process's own part; the scorer's were the whole on each.
    for parameter in model.scorer.parameters():
        if parameter.grad is not None:
            parameter.grad /= world_size()


def keep_freed_memory() -> bool:
    """Tell the C library of this process to keep large blocks that are freed.

    glibc returns large blocks to the system at once. A step on the CPU frees and asks for hundreds
    of megabytes of activations, and the system clears every page of them anew. That takes a
    twentieth of the time of the demo preset's steps. Meant for a process whose work is training: it
    holds its peak of memory from then on. Returns whether there was anything to tell; elsewhere
    than in glibc nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    # Each returns 1 where it was taken.
    is_kept = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT)
    return bool(is_kept and mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT))
