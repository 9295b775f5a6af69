"""The command ``xclip-deploy build-scan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import print_json, say
from xclip_deploy.cli.options import Command, PathArgument, json_option
from xclip_deploy.cli.progress import step_progress

if TYPE_CHECKING:
    from xclip_deploy.export.scan_kernels import BuildScanResult


@click.command("build-scan", cls=Command)
@click.argument("bundle", type=PathArgument(), default=Path("xclip-bundle"))
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="X.Y",
    help="Compile machine code for GPUs of this compute capability. Repeat it for several.  "
    "[default: 7.5, 8.0, 8.6, 8.9, 9.0, 10.0 and 12.0]",
)
@click.option("--force", is_flag=True, help="Compile again even if nothing has changed.")
@json_option
def command(
    bundle: Path, compute_capabilities: tuple[str, ...], force: bool, as_json: bool
) -> None:
    """Compile the kernels that search galleries on a GPU into BUNDLE (default: xclip-bundle).

    This needs Triton (pip install 'xclip-deploy[scan]') but no GPU. Machines that search need
    neither Triton nor PyTorch. Code for later GPUs is always added. The old kernels stay until the
    new ones are complete.
    """
    from xclip_deploy.export.scan_kernels import ARCHITECTURES, build_scan, parse_capabilities

    targets = parse_capabilities(compute_capabilities) or ARCHITECTURES
    with step_progress() as progress:
        result = build_scan(bundle, compute_capabilities=targets, force=force, progress=progress)
    if as_json:
        content = result.kernel_set.model_dump(mode="json")
        print_json({"path": str(result.path), "is_new": result.is_new, **content})
        return
    print_kernels(result)


def print_kernels(result: BuildScanResult) -> None:
    """Say what was compiled, and where it lies."""
    kernel_set = result.kernel_set
    if not result.is_new:
        say(
            f"{result.path} is up to date (compiled {kernel_set.created_utc}); --force compiles "
            "anyway"
        )
        return
    codes = [code for record in kernel_set.kernels.values() for code in record.codes]
    size = sum(code.record.size_bytes for code in codes)
    say(f"kernels:            {', '.join(kernel.value for kernel in kernel_set.kernels)}")
    say(f"compute capability: {', '.join(kernel_set.targets)} (+: and later GPUs)")
    say(f"wrote {result.path} ({len(codes)} files, {size / 1e6:.1f} MB; not run, that needs a GPU)")
