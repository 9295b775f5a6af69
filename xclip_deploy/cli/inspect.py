"""The command ``xclip-deploy inspect``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import print_fields, print_json, print_parity, say
from xclip_deploy.cli.options import (
    Command,
    PathArgument,
    json_option,
    wide_option,
)
from xclip_deploy.cli.progress import waiting
from xclip_deploy.cli.table import Column, print_table

if TYPE_CHECKING:
    from xclip_deploy.runtime.bundle import Bundle
    from xclip_deploy.runtime.engine_set import EngineSet
    from xclip_deploy.runtime.manifest import GraphSpec
    from xclip_deploy.runtime.resident.kernel_set import KernelSet


@click.command("inspect", cls=Command)
@click.argument("bundle", type=PathArgument(), default=Path("xclip-bundle"))
@click.option("--verify", is_flag=True, help="Check every file against its SHA-256.")
@wide_option
@json_option
def command(bundle: Path, verify: bool, wide: bool, as_json: bool) -> None:
    """Show what is in BUNDLE (default: xclip-bundle).

    It prints the model, its graphs, their agreement with PyTorch, the engines, the kernels that
    search galleries on a GPU, and the certificate.
    """
    import xclip_deploy
    from xclip_deploy.export.verification.certificate import read_certificate
    from xclip_deploy.runtime.engine_set import engine_sets
    from xclip_deploy.runtime.resident.kernel_set import has_kernels, read_kernel_set

    opened = xclip_deploy.Bundle.open(bundle)
    if verify:
        with waiting("reading every file"):
            opened.verify()
    engines = engine_sets(opened)
    kernels = read_kernel_set(opened) if has_kernels(opened) else None
    if as_json:
        content = opened.manifest.model_dump(mode="json")
        content["engine_sets"] = {
            path.name: engine_set.model_dump(mode="json") for path, engine_set in engines.items()
        }
        content["scan_kernels"] = kernels and kernels.model_dump(mode="json")
        certificate = read_certificate(opened)
        content["certificate"] = certificate and certificate.model_dump(mode="json")
        print_json(content)
        return
    _print_model(opened)
    _print_graphs(opened)
    print_parity(opened.manifest.parity, wide=wide)
    _print_engines(engines, wide=wide)
    _print_kernels(kernels)
    _print_certificate(opened)
    if verify:
        say(f"all {len(opened.manifest.files)} files are as exported")


def _print_model(bundle: Bundle) -> None:
    manifest = bundle.manifest
    model, source = manifest.model, manifest.provenance
    vision, text = model.vision, model.text
    rows = [
        ("model", f"{model.family.value}, {model.temporal_head.value}, D = {model.embed_dim}"),
        (
            "vision",
            f"{vision.layers} layers of {vision.width}, {vision.image_size} px in patches of "
            f"{vision.patch_size} ({model.patch_embedding.value})",
        ),
        ("text", f"{text.layers} layers of {text.width}, {model.activation.value}"),
        ("limits", f"{model.max_words} words, {model.max_frames} frames"),
        ("sampling", _rate(manifest.frames_per_second)),
        ("grains", ", ".join(grain.value for grain in model.grains)),
        ("fingerprint", manifest.fingerprint[:16]),
        ("checkpoint", f"{source.checkpoint} ({source.layout})"),
        ("exported", f"{source.created_utc} with torch {source.versions.get('torch', '?')}"),
        *(("note", note) for note in source.notes),
    ]
    print_fields(rows, 13)
    say()


def _rate(frames_per_second: float) -> str:
    unit = "frame" if frames_per_second == 1 else "frames"
    return f"{frames_per_second:g} {unit} per second"


def _print_graphs(bundle: Bundle) -> None:
    from xclip_deploy.runtime.manifest import VideoPart

    manifest = bundle.manifest
    precisions = list(manifest.graphs)
    rows: list[tuple[str, ...]] = []
    for graph in manifest.graphs[precisions[0]]:
        sizes = [f"{manifest.graph_bytes(graph, each) / 1e6:.1f} MB" for each in precisions]
        rows.append((graph.value, "", "", *sizes))
        rows += _tensor_rows([manifest.graphs[each][graph] for each in precisions])
    for part in VideoPart if manifest.video_parts else ():
        of_part = [manifest.video_parts.get(each, {}).get(part) for each in precisions]
        rows.append(
            (part.value, "", "", *("none" if spec is None else "shared" for spec in of_part))
        )
        rows += _tensor_rows(of_part)
    columns = [Column(precision.value) for precision in precisions]
    print_table((Column("graph"), Column("side"), Column("shape", least=12), *columns), rows)
    if manifest.video_parts:
        names = " and ".join(part.value for part in VideoPart)
        say(f"{names} are halves of video_encoder, whose weights they share")
    for precision, fused in manifest.fused_graphs.items():
        names = ", ".join(graph.value for graph in fused)
        say(f"fused for ONNX Runtime on NVIDIA GPUs in {precision.value}: {names}")
    say()


def _tensor_rows(specs: Sequence[GraphSpec | None]) -> list[tuple[str, ...]]:
    """Make a row for each tensor of a graph, with its dtype in every precision that has it."""
    first = next(spec for spec in specs if spec is not None)
    rows = []
    for side, short in (("inputs", "in"), ("outputs", "out")):
        for number, tensor in enumerate(getattr(first, side)):
            shape = f"[{', '.join(str(size) for size in tensor.shape)}]"
            dtypes = ["" if s is None else getattr(s, side)[number].dtype.value for s in specs]
            rows.append((f"  {tensor.name}", short, shape, *dtypes))
    return rows


def _print_engines(engines: dict[Path, EngineSet], *, wide: bool) -> None:
    if not engines:
        say("engines:     none; run: xclip-deploy build-trt --fp16")
        return
    rows = [
        (
            engine_set.flavour.value,
            engine_set.version,
            engine_set.precision.value,
            engine_set.target,
            f"{sum(engine.file.size_bytes for engine in engine_set.engines.values()) / 1e6:.1f} MB",
            engine_set.created_utc,
        )
        for engine_set in engines.values()
    ]
    columns = (
        Column("engines"),
        Column("version"),
        Column("precision"),
        Column("target", least=8),
        Column("size", right=True),
        Column("built", wide=True),
    )
    print_table(columns, rows, wide=wide)


def _print_kernels(kernels: KernelSet | None) -> None:
    if kernels is None:
        command = "xclip-deploy build-scan"
        say(f"kernels:     none, so that galleries are not kept on a GPU; run: {command}")
        return
    codes = [code for record in kernels.kernels.values() for code in record.codes]
    size = sum(code.record.size_bytes for code in codes) / 1e6
    say(f"kernels:     {', '.join(kernel.value for kernel in kernels.kernels)}")
    say(
        f"             for compute capability {', '.join(kernels.targets)} (+: and later GPUs), "
        f"{len(codes)} files, {size:.1f} MB, compiled {kernels.created_utc}"
    )


def _print_certificate(bundle: Bundle) -> None:
    from xclip_deploy.errors import BundleError
    from xclip_deploy.export.verification.certificate import read_certificate

    command = f"xclip-deploy verify {shlex.quote(str(bundle.path))}"
    try:
        certificate = read_certificate(bundle)
    except BundleError as error:
        say(f"certificate: {error}")
        return
    if certificate is None:
        say(f"certificate: none; run: {command}")
    elif not certificate.fits(bundle):
        say(f"certificate: of another export; run: {command}")
    else:
        verdict = "passed" if certificate.passed else "FAILED"
        runs = ", ".join(comparison.run.name for comparison in certificate.comparisons)
        say(
            f"certificate: {verdict} {certificate.created_utc}: {runs} "
            f"against {certificate.reference.name}"
        )
        for failure in certificate.failures:
            say(f"  {failure}")
