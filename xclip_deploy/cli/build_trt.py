"""``xclip-deploy build-trt``."""

from __future__ import annotations

from pathlib import Path

import click

from xclip_deploy.cli.display import print_json, print_table, step_progress
from xclip_deploy.cli.options import json_option


@click.command("build-trt")
@click.argument("bundle", type=click.Path(path_type=Path), default=Path("xclip-bundle"))
@click.option(
    "--fp16", "precision", flag_value="fp16", default="fp16", help="FP16 engines.  [default]"
)
@click.option("--fp32", "precision", flag_value="fp32", help="FP32 engines.")
@click.option(
    "--flavor",
    type=click.Choice(["auto", "tensorrt", "rtx"]),
    default="auto",
    show_default=True,
    help="tensorrt: for data-centre GPUs, built on the GPU; rtx: TensorRT-RTX, built anywhere.",
)
@json_option
def command(bundle: Path, precision: str, flavor: str, as_json: bool) -> None:
    """Build the three TensorRT engines of BUNDLE (xclip-bundle unless given)."""
    import xclip_deploy

    with step_progress() as progress:
        result = xclip_deploy.build_engines(
            bundle,
            precision=xclip_deploy.Precision(precision),
            flavour=flavor,
            progress=progress,
        )
    if as_json:
        content = result.engine_set.model_dump(mode="json")
        print_json({"path": str(result.path), **content})
        return
    rows = []
    for graph, engine in result.engine_set.engines.items():
        ranges = [
            f"{name} {shape.min[0]}…{shape.max[0]}" for name, shape in engine.profiles[0].items()
        ]
        size = f"{engine.file.size_bytes / 1e6:.1f} MB"
        rows.append((graph.value, size, f"{engine.build_s:.1f} s", ", ".join(ranges)))
    print_table(("engine", "size", "built in", "batch"), rows, right=(1, 2))
    click.echo(f"wrote {result.path}")
