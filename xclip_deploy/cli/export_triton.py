"""``xclip-deploy export-triton``."""

from __future__ import annotations

from pathlib import Path

import click

from xclip_deploy.cli.display import print_json, print_table
from xclip_deploy.cli.options import json_option


@click.command("export-triton")
@click.argument("bundle", type=click.Path(path_type=Path), default=Path("xclip-bundle"))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("xclip-triton"),
    show_default=True,
    help="Folder of the model repository; an older one there is replaced.",
)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "tensorrt", "python"]),
    default="onnxruntime",
    show_default=True,
    help="What runs the networks in the server; python: ONNX Runtime in its Python backend, for "
    "servers without an ONNX Runtime one.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Where the server runs the networks.  [default: cuda for tensorrt, else cpu]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    help="[default: of the engines, else fp16 on cuda and fp32 on cpu]",
)
@click.option(
    "--engines", help="Folder of the engine set, or its name in the bundle, where it has several."
)
@click.option(
    "--max-videos",
    type=click.IntRange(min=1),
    help="Most videos in one run.  [default: of the engines, else 16]",
)
@click.option(
    "--max-texts",
    type=click.IntRange(min=1),
    help="Most texts in one run.  [default: of the engines, else 64]",
)
@click.option(
    "--queue-delay-us",
    type=click.IntRange(min=0),
    default=500,
    show_default=True,
    help="Longest that a request waits for others to be batched with, microseconds.",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Of each network; on cuda, on each GPU.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads of an instance.  [default: one per core]",
)
@click.option(
    "--model-version",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Name of the models' version folders.",
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
    """Write a Triton Inference Server model repository of BUNDLE (xclip-bundle unless given).

    Its models are video_encoder, text_encoder, scorer, and text_query, which takes raw texts.
    """
    import xclip_deploy
    from xclip_deploy.runtime.manifest import Precision

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
    print_table(("model", "size"), rows, right=(1,))
    where = f"backend {description.backend.value} on {description.device}"
    click.echo(f"{where}, {description.precision.value}")
    if description.tensorrt_version is not None:
        click.echo(
            f"the server must have TensorRT {description.tensorrt_version}"
            f"{' or later' if description.server_arguments else ''} and a GPU that "
            f"{description.target} engines run on"
        )
    click.echo("text_tokenizer needs xclip-deploy in the server's Python")
    words = [f"tritonserver --model-repository={result.path}", *description.server_arguments]
    click.echo(f"wrote {result.path}; next: {' '.join(words)}")
