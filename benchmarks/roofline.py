"""Measure what the machine can do: its products and its memory; count what the model needs.

The peak of an arithmetic is the best rate of a square matrix product by any installed library, in
the same run as everything else. It is no number of a data sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.interleaving import measure
from benchmarks.measured import Part, Run
from benchmarks.setting import Setting
from xclip_deploy.runtime.grains import Grain
from xclip_deploy.runtime.model_config import ModelConfig, TemporalHead
from xclip_deploy.runtime.sessions.openvino.backend import why_no_bf16, why_no_openvino

PRODUCT, COPY = "matrix product", "copy of memory"


def measure_roofline(setting: Setting) -> Part:
    """Measure matrix products in FP32 and BF16, and the bandwidth of memory."""
    import torch

    side, megabytes = (256, 8) if setting.is_toy else (2048, 512)
    rounds = setting.turns(15)
    rng = np.random.default_rng(setting.seed)
    a, b = (rng.standard_normal((side, side), dtype=np.float32) for _ in range(2))
    wide = torch.from_numpy(a), torch.from_numpy(b)
    narrow = tuple(each.bfloat16() for each in wide)
    contenders: dict[str, Callable[[], object]] = {
        "numpy fp32": lambda: a @ b,
        "torch fp32": lambda: torch.mm(*wide),
    }
    if why_no_bf16() is None:
        contenders["torch bf16"] = lambda: torch.mm(*narrow)
    facts: dict[str, float | str] = {}
    if why_no_openvino() is None:
        contenders["openvino fp32"] = openvino_product(a, b, "f32")
        if why_no_bf16() is None:
            contenders["openvino bf16"] = openvino_product(a, b, "bf16")
    else:
        facts["openvino"] = str(why_no_openvino())
    series = measure(PRODUCT, side, contenders, rounds, work=1, flops=2.0 * side**3)
    source = torch.ones(megabytes << 18)
    target = torch.empty_like(source)
    size = source.nbytes
    series += measure(
        COPY,
        megabytes,
        {"torch": lambda: target.copy_(source)},
        rounds,
        work=2e-9 * size,
        item="GB",
    )
    return Part("roofline", tuple(series), facts)


def openvino_product(
    a: np.ndarray[Any, np.dtype[np.float32]],
    b: np.ndarray[Any, np.dtype[np.float32]],
    precision: str,
) -> Callable[[], object]:
    """Return a function that multiplies by OpenVINO, with the right factor a constant weight."""
    import openvino
    from openvino import opset13

    left = opset13.parameter(list(a.shape), np.float32)
    model = openvino.Model([opset13.matmul(left, opset13.constant(b), False, False)], [left])
    properties = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", properties).create_infer_request()
    return lambda: request.infer({0: a}, share_inputs=True, share_outputs=True)


def peak_flops(run: Run, arithmetic: str) -> float | None:
    """Return the peak of ``fp32`` or ``bf16``, FLOP/s: the best library's median."""
    rates = [
        series.flops / series.quartiles.median
        for series in run.find(PRODUCT)
        if series.flops and series.contender.endswith(f" {arithmetic}")
    ]
    return max(rates, default=None)


def bandwidth(run: Run) -> float | None:
    """Return the bandwidth of memory, bytes/s, reading and writing together."""
    rates = [series.rate * 1e9 for series in run.find(COPY)]
    return max(rates, default=None)


def video_flops(config: ModelConfig, frames: int | None = None) -> float:
    """Count the operations of encoding one video of ``frames`` frames; None: the most."""
    vision, count = config.vision, config.max_frames if frames is None else frames
    patches = (vision.image_size // vision.patch_size) ** 2
    pixels = 3 * vision.patch_size**2
    per_frame = 2.0 * patches * pixels * vision.width
    per_frame += vision.layers * _block(patches + 1, vision.width)
    per_frame += 2.0 * vision.width * config.embed_dim
    temporal = 0.0
    if config.temporal_head is TemporalHead.TRANSFORMER:
        temporal = config.temporal_layers * _block(config.max_frames, config.embed_dim)
    return count * per_frame + temporal


def text_flops(config: ModelConfig) -> float:
    """Count the operations of encoding one text of the model's length."""
    text, words = config.text, config.max_words
    return text.layers * _block(words, text.width) + 2.0 * words * text.width * config.embed_dim


def pair_flops(config: ModelConfig) -> float:
    """Count the operations of the similarity products of one text and one video.

    Weighting by attention comes on top. Products of the text alone are shared by all videos.
    """
    words, frames, dim = config.max_words, config.max_frames, config.embed_dim
    products = {
        Grain.VIDEO_SENTENCE: 1,
        Grain.VIDEO_WORD: words,
        Grain.FRAME_SENTENCE: frames,
        Grain.FRAME_WORD: words * frames,
    }
    return 2.0 * dim * sum(products[grain] for grain in config.grains)


def video_weights(config: ModelConfig) -> float:
    """Count the weights of the video encoder's products."""
    vision, dim = config.vision, config.embed_dim
    pixels = 3 * vision.patch_size**2
    count = pixels * vision.width + 12.0 * vision.layers * vision.width**2 + vision.width * dim
    if config.temporal_head is TemporalHead.TRANSFORMER:
        count += 12.0 * config.temporal_layers * dim**2
    return count


def text_weights(config: ModelConfig) -> float:
    """Count the weights of the text encoder's products."""
    text = config.text
    return 12.0 * text.layers * text.width**2 + text.width * config.embed_dim


def weight_traffic(names: Mapping[str, object], weights: float, inputs: float) -> dict[str, float]:
    """Return the least traffic of a run by contender, bytes: weights by arithmetic, and inputs."""

    def width(name: str) -> int:
        return 1 if "int8" in name else 2 if "bf16" in name or "fp16" in name else 4

    return {name: weights * width(name) + inputs for name in names}


def _block(tokens: int, width: int) -> float:
    """Count the operations of one transformer block over a sequence."""
    return 24.0 * tokens * width**2 + 4.0 * tokens**2 * width
