"""The command ``xclip-deploy export-triton``."""

from __future__ import annotations

from pathlib import Path

import click

from xclip_deploy.cli.display import print_json, say
from xclip_deploy.cli.options import (
    Choice,
    Command,
    PathArgument,
    json_option,
)
from xclip_deploy.cli.progress import waiting
from xclip_deploy.cli.table import Column, print_table


@click.command("export-triton", cls=Command)
@click.argument("bundle", type=PathArgument(), default=Path("xclip-bundle"))
@click.option(
    "-o",
    "--output",
    type=PathArgument(),
    default=Path("xclip-triton"),
    show_default=True,
    help="Write the model repository to this folder, and replace an older one there.",
)
@click.option(
    "--backend",
    type=Choice(["onnxruntime", "tensorrt", "python"]),
    default="onnxruntime",
    show_default=True,
    help="Run the networks with this backend of the server. python runs ONNX Runtime in the "
    "Python backend, for servers that have no ONNX Runtime backend.",
)
@click.option(
    "--device",
    type=Choice(["cpu", "cuda"]),
    help="Run the networks on this device.  [default: cuda for tensorrt, else cpu]",
)
@click.option(
    "--precision",
    type=Choice(["fp32", "fp16", "bf16", "int8"]),
    help="Compute in this precision.  "
    "[default: as in the engines, else fp16 on cuda and fp32 on cpu]",
)
@click.option(
    "--engines",
    help="Take the engine set in this folder, or the one of this name in the bundle. A bundle "
    "with several needs this option.",
)
@click.option(
    "--max-videos",
    type=click.IntRange(min=1),
    help="Encode at most this many videos in one run.  [default: as in the engines, else 16]",
)
@click.option(
    "--max-texts",
    type=click.IntRange(min=1),
    help="Encode at most this many texts in one run.  [default: as in the engines, else 64]",
)
@click.option(
    "--queue-delay-us",
    type=click.IntRange(min=0),
    default=500,
    show_default=True,
    help="Let a request wait at most this many microseconds for others to join its batch.",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Start this many instances of each network; on cuda, on each GPU.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Run each instance on this many CPU threads.  [default: one per core]",
)
@click.option(
    "--model-version",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Give the version folders of the models this number.",
)
@json_option
def command(
    bundle: Path,
    output: Path,
    backend: str,
    device: str | None,
    precision: str | None,
    engines: str | None,
    max_videos: int | None,
    max_texts: int | None,
    queue_delay_us: int,
    instances: int,
    threads: int | None,
    model_version: int,
    as_json: bool,
) -> None:
    """Write a Triton model repository from BUNDLE (default: xclip-bundle).

    The server gets the models video_encoder, text_encoder and scorer, and the ensemble
    text_query, which takes raw texts.
    """
    import xclip_deploy
    from xclip_deploy.runtime.manifest import Precision

    with waiting("writing the models"):
        result = xclip_deploy.export_triton(
            bundle,
            output,
            backend=backend,  # type: ignore[arg-type]  # click.Choice has checked these
            device=device,  # type: ignore[arg-type]
            precision=None if precision is None else Precision(precision),
            engines=engines,
            max_videos=max_videos,
            max_texts=max_texts,
            queue_delay_us=queue_delay_us,
            instances=instances,
            threads=threads,
            model_version=model_version,
        )
    description = result.description
    if as_json:
        print_json({"path": str(result.path), **description.model_dump(mode="json")})
        return
    rows = []
    for model in description.models:
        files = [
            record for name, record in description.files.items() if name.startswith(f"{model}/")
        ]
        rows.append((model, f"{sum(record.size_bytes for record in files) / 1e6:.1f} MB"))
    print_table((Column("model"), Column("size", right=True)), rows)
    where = f"backend {description.backend.value} on {description.device}"
    say(f"{where}, {description.precision.value}")
    if description.tensorrt_version is not None:
        say(
            f"the server must have TensorRT {description.tensorrt_version}"
            f"{' or later' if description.server_arguments else ''} and a GPU that "
            f"{description.target} engines run on"
        )
    say("text_tokenizer needs xclip-deploy in the server's Python")
    words = [f"tritonserver --model-repository={result.path}", *description.server_arguments]
    say(f"wrote {result.path}; next: {' '.join(words)}")
