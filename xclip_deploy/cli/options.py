"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

bundle_option: Decorator = click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    default=Path("xclip-bundle"),
    show_default=True,
    help="The bundle that `xclip-deploy export` wrote.",
)
gallery_option: Decorator = click.option(
    "--gallery",
    type=click.Path(path_type=Path),
    default=Path("xclip-gallery"),
    show_default=True,
    help="Directory of the gallery.",
)
device_option: Decorator = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to run.",
)
precision_option: Decorator = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16", "bf16", "int8"]),
    default="auto",
    show_default=True,
    help="Which graphs or engines to run; auto: FP16 on a GPU, FP32 on a CPU.",
)
backend_option: Decorator = click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "tensorrt-provider", "tensorrt", "rtx"]),
    default="auto",
    show_default=True,
    help="What runs the model: ONNX Runtime, ONNX Runtime's own TensorRT, or the engines of "
    "`xclip-deploy build-trt`; auto: engines that fit this machine, else ONNX Runtime.",
)
device_id_option: Decorator = click.option(
    "--device-id",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Which GPU, by CUDA's number.",
)
threads_option: Decorator = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: one per core]"
)
reader_option: Decorator = click.option(
    "--reader",
    type=click.Choice(["pyav", "decord"]),
    default="pyav",
    show_default=True,
    help="Library that decodes video.",
)
json_option: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output."
)
