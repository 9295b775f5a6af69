"""``xclip-deploy optimize``."""

from __future__ import annotations

from pathlib import Path

import click

from xclip_deploy.cli.options import bundle_option, gallery_option


@click.command("optimize")
@bundle_option
@gallery_option
@click.option(
    "--keep-minutes",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    help="Remove from disk what was replaced longer ago; 0 fails searches that are under way.",
)
def command(bundle: Path, gallery: Path, keep_minutes: float) -> None:
    """Put a gallery's small files together and, from 50,000 videos on, build its index.

    For after large changes; searches go on meanwhile, and other writers wait.
    """
    import time

    import xclip_deploy
    from xclip_deploy.runtime.gallery import Gallery

    started_s = time.monotonic()
    opened = Gallery.open(gallery, xclip_deploy.Bundle.open(bundle).manifest)
    opened.optimize(lambda what: click.echo(what, err=True), keep_s=60 * keep_minutes)
    click.echo(f"{gallery}: {len(opened)} videos, {time.monotonic() - started_s:.1f} s")
