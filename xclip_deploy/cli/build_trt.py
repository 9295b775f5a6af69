"""The command ``xclip-deploy build-trt``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import print_json, say
from xclip_deploy.cli.options import (
    Choice,
    Command,
    PathArgument,
    json_option,
    wide_option,
)
from xclip_deploy.cli.progress import engine_progress, waiting
from xclip_deploy.cli.table import Column, print_table

if TYPE_CHECKING:
    from xclip_deploy.export.tensorrt import BatchRange, BuildResult, DryRun

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read a number of bytes, or one with K, M or G (powers of 1024)."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)([KMG]?)(?:I?B)?", value.strip().upper())
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(
            f"{value!r}: expected bytes, or a number with K, M or G", ctx=ctx, param=param
        )
    return int(match[1]) * _UNITS[match[2]]


def _batch(ctx: click.Context, param: click.Parameter, value: str) -> BatchRange:
    """Read ``MIN:OPT:MAX``."""
    from xclip_deploy.errors import InvalidArgumentError
    from xclip_deploy.export.tensorrt import BatchRange

    try:
        return BatchRange.parse(value)
    except InvalidArgumentError as error:
        raise click.BadParameter(str(error), ctx=ctx, param=param) from error


@click.command("build-trt", cls=Command)
@click.argument("bundle", type=PathArgument(), default=Path("xclip-bundle"))
@click.option(
    "--fp16", "precision", flag_value="fp16", default="fp16", help="Build FP16 engines.  [default]"
)
@click.option("--fp32", "precision", flag_value="fp32", help="Build FP32 engines.")
@click.option(
    "--bf16",
    "precision",
    flag_value="bf16",
    help="Build BF16 engines, for which the bundle must be exported with --bf16.",
)
@click.option(
    "--flavor",
    type=Choice(["auto", "tensorrt", "rtx"]),
    default="auto",
    show_default=True,
    help="Build for this library. tensorrt serves data-centre GPUs and builds on the GPU. rtx is "
    "TensorRT-RTX, for RTX GPUs, and builds anywhere.",
)
@click.option(
    "--video-batch",
    callback=_batch,
    metavar="MIN:OPT:MAX",
    default="1:8:32",
    show_default=True,
    help="Set the smallest, best and largest number of videos in one run of the encoder.",
)
@click.option(
    "--text-batch",
    callback=_batch,
    metavar="MIN:OPT:MAX",
    default="1:32:128",
    show_default=True,
    help="Set the smallest, best and largest number of texts in one run of the encoder.",
)
@click.option(
    "--scored-texts",
    callback=_batch,
    metavar="MIN:OPT:MAX",
    default="1:32:64",
    show_default=True,
    help="Set the smallest, best and largest number of texts in one run of the scorer.",
)
@click.option(
    "--scored-videos",
    callback=_batch,
    metavar="MIN:OPT:MAX",
    default="1:256:1024",
    show_default=True,
    help="Set the smallest, best and largest number of videos in one run of the scorer, which "
    "reads the gallery in chunks.",
)
@click.option(
    "--query-profile/--no-query-profile",
    default=True,
    show_default=True,
    help="Tune the text encoder and the scorer for exactly one text too.",
)
@click.option(
    "--workspace",
    callback=_bytes,
    metavar="SIZE",
    help="Limit the scratch memory of a layer, such as 2G.  [default: the library's own]",
)
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    help="Search this hard for fast kernels: 0 builds fastest, 5 searches longest. For tensorrt "
    "only.  [default: the library's own, 3]",
)
@click.option(
    "--timing-cache",
    type=PathArgument(dir_okay=False),
    help="Keep measurements from one build to the next in this file. For tensorrt only.",
)
@click.option(
    "--hardware-compatibility",
    type=Choice(["none", "ampere-plus", "same-compute-capability"]),
    default="none",
    show_default=True,
    help="Let engines run on this group of GPUs too, at some cost in speed. For tensorrt only.",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Let later versions load the engines, at some cost in speed. For tensorrt only.",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="X.Y",
    help="Build for GPUs of this compute capability. Repeat it for several. For rtx only.  "
    "[default: all from 8.0 on]",
)
@click.option("--force", is_flag=True, help="Build again even if nothing that matters has changed.")
@click.option(
    "--self-test/--no-self-test",
    default=True,
    show_default=True,
    help="On a GPU, run new engines before they replace the old ones.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Parse the graphs and report the operators that TensorRT refuses; build nothing.",
)
@wide_option
@json_option
def command(
    bundle: Path,
    precision: str,
    flavor: str,
    video_batch: BatchRange,
    text_batch: BatchRange,
    scored_texts: BatchRange,
    scored_videos: BatchRange,
    query_profile: bool,
    workspace: int | None,
    optimization_level: int | None,
    timing_cache: Path | None,
    hardware_compatibility: str,
    version_compatible: bool,
    compute_capabilities: tuple[str, ...],
    force: bool,
    self_test: bool,
    dry_run: bool,
    wide: bool,
    as_json: bool,
) -> None:
    """Build the three TensorRT engines of BUNDLE (default: xclip-bundle).

    The old engines stay until the new ones are complete and, on a GPU, tested. Ctrl-C keeps
    the old ones. An option that the library does not have is an error.
    """
    from xclip_deploy.export import tensorrt
    from xclip_deploy.export.tensorrt.options import parse_compute_capabilities
    from xclip_deploy.runtime.engine_set import BuildOptions, HardwareCompatibility
    from xclip_deploy.runtime.manifest import Precision

    if dry_run:
        with waiting("loading TensorRT and parsing the graphs"):
            parsed = tensorrt.dry_run(bundle, precision=Precision(precision), flavour=flavor)
        _print_dry_run(parsed, as_json=as_json, wide=wide)
        if not parsed.is_supported:
            raise click.exceptions.Exit(7)
        return
    with engine_progress() as progress:
        result = tensorrt.build_engines(
            bundle,
            precision=Precision(precision),
            flavour=flavor,
            shapes=tensorrt.EngineShapes(
                videos=video_batch,
                texts=text_batch,
                scored_texts=scored_texts,
                scored_videos=scored_videos,
                query_profile=query_profile,
            ),
            options=BuildOptions(
                workspace_bytes=workspace,
                optimization_level=optimization_level,
                hardware_compatibility=HardwareCompatibility(hardware_compatibility),
                version_compatible=version_compatible,
                compute_capabilities=parse_compute_capabilities(compute_capabilities),
            ),
            timing_cache=timing_cache,
            force=force,
            self_test=tensorrt.verify_on_gpu if self_test else None,
            progress=progress,
        )
    _print_result(result, as_json=as_json, wide=wide)


def _print_dry_run(parsed: DryRun, *, as_json: bool, wide: bool) -> None:
    if as_json:
        graphs = {
            graph.value: {
                "layers": parse.layers,
                "unsupported": [
                    {"node": one.node, "operator": one.operator, "reason": one.reason}
                    for one in parse.unsupported
                ],
            }
            for graph, parse in parsed.graphs.items()
        }
        print_json(
            {"library": parsed.library, "precision": parsed.precision.value, "graphs": graphs}
        )
        return
    refused = []
    for graph, parse in parsed.graphs.items():
        if not parse.unsupported:
            say(f"{graph.value}: {parsed.library} takes all of it ({parse.layers} layers)")
        refused += [(graph.value, one.node, one.operator, one.reason) for one in parse.unsupported]
    if refused:
        columns = (
            Column("graph"),
            Column("node", least=12),
            Column("operator", least=10),
            Column("why it is refused", least=20),
        )
        print_table(columns, refused, wide=wide)
        say(f"{parsed.library} refuses {len(refused)} operators; nothing was built")
    else:
        say("nothing was built; leave out --dry-run to build")


def _print_result(result: BuildResult, *, as_json: bool, wide: bool) -> None:
    engine_set = result.engine_set
    if as_json:
        content = engine_set.model_dump(mode="json")
        notes = list(result.notes)
        print_json({"path": str(result.path), "is_new": result.is_new, "notes": notes, **content})
        return
    rows = []
    for graph, engine in engine_set.engines.items():
        attention = engine.attention
        fused = "" if attention.fused is None else f"{attention.fused} of {attention.blocks}"
        for number, profile in enumerate(engine.profiles):
            sizes: dict[str, str] = {}
            for tensor in engine.inputs:
                shape = profile[tensor.name]
                bounds = [str(size[0]) for size in (shape.min, shape.opt, shape.max)]
                bounds = bounds if len({*bounds}) > 1 else bounds[:1]
                sizes[str(tensor.shape[0])] = ":".join(bounds)
            ranges = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
            needed = engine.memory.activation_bytes[number] + engine.memory.tensor_bytes[number]
            memory = f"{(engine.memory.weights_bytes + needed) / 1e6:.0f} MB"
            first = (
                graph.value,
                f"{engine.file.size_bytes / 1e6:.1f} MB",
                f"{engine.build_s:.1f} s",
                fused if attention.blocks else "",
            )
            rows.append((*(first if number == 0 else ("", "", "", "")), ranges, memory))
    columns = (
        Column("engine"),
        Column("size", right=True),
        Column("built in", right=True, wide=True),
        Column("fused attention" if wide else "fused", right=True),
        Column("profile", least=20),
        Column("GPU memory", right=True),
    )
    print_table(columns, rows, wide=wide)
    for note in result.notes:
        say(f"note: {note}")
    if not result.is_new:
        say(f"{result.path} is up to date (built {engine_set.created_utc}); --force builds anyway")
        return
    tested = "run on this GPU" if engine_set.self_tested else "not run, as there is no GPU for them"
    say(f"wrote {result.path} ({tested})")
