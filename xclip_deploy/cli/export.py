"""``xclip-deploy export``."""

from __future__ import annotations

from pathlib import Path

import click

from xclip_deploy.cli.display import (
    print_graph_sizes,
    print_json,
    print_parity,
    step_progress,
)
from xclip_deploy.cli.options import json_option


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("xclip-bundle"),
    show_default=True,
    help="Directory of the bundle; an older bundle there is replaced.",
)
@click.option(
    "--max-words",
    type=click.IntRange(min=3),
    help="Tokens of a text, start and end included.  [default: of the weights, else 32]",
)
@click.option(
    "--max-frames",
    type=click.IntRange(min=1),
    help="Most frames of a video.  [default: of the weights, else 12]",
)
@click.option(
    "--fps",
    "frames_per_second",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Frames sampled per second of video.",
)
@click.option(
    "--activation",
    type=click.Choice(["quick_gelu", "gelu"]),
    help="Of CLIP's MLPs; most open_clip weights that are not OpenAI's need gelu.  "
    "[default: of the configuration beside the weights, else quick_gelu]",
)
@click.option(
    "--temporal-head",
    type=click.Choice(["meanP", "seqTransf", "seqLSTM"]),
    help="Fail unless the weights have this head.",
)
@click.option("--vision-heads", type=click.IntRange(min=1), help="[default: width / 64]")
@click.option("--text-heads", type=click.IntRange(min=1), help="[default: width / 64]")
@click.option(
    "--mask-padding",
    is_flag=True,
    default=None,
    help="Ignore padded words and frames in the scorer; only for models trained so.",
)
@click.option(
    "--bf16",
    is_flag=True,
    help="BF16 graphs as well, for build-trt --bf16; ONNX Runtime does not run them.",
)
@click.option(
    "--int8",
    is_flag=True,
    help="INT8 encoders as well, for the CPU: smaller and faster, and less exact.",
)
@json_option
def command(
    checkpoint: Path,
    output: Path,
    max_words: int | None,
    max_frames: int | None,
    frames_per_second: float,
    activation: str | None,
    temporal_head: str | None,
    vision_heads: int | None,
    text_heads: int | None,
    mask_padding: bool | None,
    bf16: bool,
    int8: bool,
    as_json: bool,
) -> None:
    """Export CHECKPOINT to a bundle of ONNX graphs in FP32 and FP16.

    CHECKPOINT is a file or folder of X-CLIP, CLIP4Clip, OpenAI CLIP, Hugging Face CLIP or
    open_clip. The graphs are compared with PyTorch before the bundle takes its place;
    xclip-deploy verify compares them again on videos and captions of one's own.
    """
    import xclip_deploy
    from xclip_deploy.errors import ParityError
    from xclip_deploy.runtime.model_config import Activation, TemporalHead

    try:
        with step_progress() as progress:
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
                ),
                frames_per_second=frames_per_second,
                bf16=bf16,
                int8=int8,
                progress=progress,
            )
    except ParityError as error:
        if not as_json:
            print_parity(error.records)
        raise
    if as_json:
        print_json(result.bundle.manifest.model_dump(mode="json"))
        return
    print_parity(result.parity)
    click.echo()
    print_graph_sizes(result.bundle.manifest)
    click.echo()
    for note in result.notes:
        click.echo(f"note: {note}")
    click.echo(f"wrote {result.bundle.path}; next: xclip-deploy build-trt {result.bundle.path}")
