"""The command ``xclip-deploy export``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import print_graph_sizes, print_json, print_parity, say
from xclip_deploy.cli.options import Choice, Command, PathArgument, json_option, weights_option
from xclip_deploy.cli.progress import step_progress

if TYPE_CHECKING:
    from xclip_deploy.export.exporter import ExportResult


@click.command("export", cls=Command)
@click.argument("checkpoint", type=PathArgument())
@click.option(
    "-o",
    "--output",
    type=PathArgument(),
    default=Path("xclip-bundle"),
    show_default=True,
    help="Write the bundle to this directory, and replace an older one there.",
)
@weights_option
@click.option(
    "--max-words",
    type=click.IntRange(min=3),
    help="Set the token positions of a text, start and end included.  "
    "[default: as in the weights, else 32]",
)
@click.option(
    "--max-frames",
    type=click.IntRange(min=1),
    help="Set the most frames of a video.  [default: as in the weights, else 12]",
)
@click.option(
    "--fps",
    "frames_per_second",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Sample this many frames per second of video.",
)
@click.option(
    "--square-pixels/--stored-pixels",
    default=None,
    help="Show anamorphic video in its true proportions, or as it is stored.  [default: as in "
    "training; published models were trained on stored pixels]",
)
@click.option(
    "--activation",
    type=Choice(["quick_gelu", "gelu"]),
    help="Set the activation of CLIP's MLPs. Most open_clip weights need gelu, unless they are "
    "OpenAI's.  [default: as in the configuration beside the weights, else quick_gelu]",
)
@click.option(
    "--temporal-head",
    type=Choice(["meanP", "seqTransf", "seqLSTM"]),
    help="Fail unless the weights have this temporal head.",
)
@click.option(
    "--vision-heads",
    type=click.IntRange(min=1),
    help="Set the attention heads of the vision transformer.  [default: width / 64]",
)
@click.option(
    "--text-heads",
    type=click.IntRange(min=1),
    help="Set the attention heads of the text transformer.  [default: width / 64]",
)
@click.option(
    "--mask-padding",
    is_flag=True,
    default=None,
    help="Ignore padded words and frames in the scorer. Use it only for models trained so.",
)
@click.option(
    "--bf16",
    is_flag=True,
    help="Also write BF16 graphs, for build-trt --bf16; ONNX Runtime does not run them.",
)
@click.option(
    "--int8",
    is_flag=True,
    help="Also write INT8 encoders, for the CPU; they are smaller, faster and less exact.",
)
@click.option(
    "--int8-weights",
    is_flag=True,
    help="Also write encoders with INT8 weights, for OpenVINO on a CPU with BF16.",
)
@click.option(
    "--scan-kernels",
    is_flag=True,
    help="Also compile the kernels that search galleries on a GPU, as build-scan does.",
)
@json_option
def command(
    checkpoint: Path,
    output: Path,
    weights: str | None,
    max_words: int | None,
    max_frames: int | None,
    frames_per_second: float,
    square_pixels: bool | None,
    activation: str | None,
    temporal_head: str | None,
    vision_heads: int | None,
    text_heads: int | None,
    mask_padding: bool | None,
    bf16: bool,
    int8: bool,
    int8_weights: bool,
    scan_kernels: bool,
    as_json: bool,
) -> None:
    """Export CHECKPOINT to a bundle of ONNX graphs in FP32 and FP16.

    CHECKPOINT is a file or folder of X-CLIP, CLIP4Clip, OpenAI CLIP, Hugging Face CLIP or
    open_clip, or org/name of a model on the Hugging Face hub. The bundle is put in place only
    if its graphs agree with PyTorch. `xclip-deploy verify` compares them again, on your own
    videos and captions.
    """
    import xclip_deploy
    from xclip_deploy.errors import ParityError
    from xclip_deploy.runtime.model_config import Activation, TemporalHead

    try:
        with step_progress("loading PyTorch") as progress:
            result = xclip_deploy.export_bundle(
                checkpoint,
                output,
                options=xclip_deploy.CheckpointOptions(
                    max_words=max_words,
                    max_frames=max_frames,
                    activation=None if activation is None else Activation(activation),
                    temporal_head=None if temporal_head is None else TemporalHead(temporal_head),
                    vision_heads=vision_heads,
                    text_heads=text_heads,
                    mask_padding=mask_padding,
                    weights=weights,
                ),
                frames_per_second=frames_per_second,
                square_pixels=square_pixels,
                bf16=bf16,
                int8=int8,
                int8_weights=int8_weights,
                scan_kernels=scan_kernels,
                progress=progress,
            )
    except ParityError as error:
        if not as_json:
            print_parity(error.records)
        raise
    if as_json:
        print_json(result.bundle.manifest.model_dump(mode="json"))
    else:
        print_export(result)


def print_export(result: ExportResult) -> None:
    """Print how far the graphs are from PyTorch, their sizes, and the next command."""
    print_parity(result.parity)
    print_graph_sizes(result.bundle.manifest)
    say()
    for note in result.notes:
        say(f"note: {note}")
    path = result.bundle.path
    say(f"wrote {path}; next: xclip-deploy build-trt {shlex.quote(str(path))}")
