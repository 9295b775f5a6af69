"""``xclip-deploy index``."""

from __future__ import annotations

from pathlib import Path

import click

from xclip_deploy.cli.display import print_json
from xclip_deploy.cli.options import (
    backend_option,
    bundle_option,
    device_id_option,
    device_option,
    gallery_option,
    json_option,
    precision_option,
    reader_option,
    threads_option,
)


@click.command("index")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@bundle_option
@gallery_option
@click.option(
    "--on-duplicate",
    type=click.Choice(["skip", "replace", "error"]),
    default="skip",
    show_default=True,
    help="What to do with a video that the gallery has.",
)
@click.option("--strict", is_flag=True, help="Exit with status 8 if any video failed.")
@device_option
@device_id_option
@backend_option
@precision_option
@threads_option
@reader_option
@json_option
def command(
    paths: tuple[Path, ...],
    bundle: Path,
    gallery: Path,
    on_duplicate: str,
    strict: bool,
    device: str,
    device_id: int,
    backend: str,
    precision: str,
    threads: int | None,
    reader: str,
    as_json: bool,
) -> None:
    """Add videos to a gallery: files, and folders with all videos below them.

    A video that cannot be read is reported and the rest goes on. What was encoded before an
    interruption is kept.
    """
    import xclip_deploy
    from xclip_deploy.errors import VideoError
    from xclip_deploy.runtime.sessions import SessionOptions

    is_new = not gallery.exists() or (gallery.is_dir() and not any(gallery.iterdir()))
    session = SessionOptions(
        device=device,  # type: ignore[arg-type]  # click.Choice has checked these
        precision=precision,  # type: ignore[arg-type]
        threads=threads,
        backend=backend,  # type: ignore[arg-type]
        device_id=device_id,
    )
    with xclip_deploy.Retriever(
        bundle,
        None if is_new else gallery,
        threads=threads,
        session=session,
        reader=reader,  # type: ignore[arg-type]
    ) as retriever:
        if is_new:
            # Now rather than after hours of encoding: can it be written?
            retriever.save(gallery)
        before = len(retriever)
        try:
            report = retriever.add(
                paths,
                on_duplicate=on_duplicate,  # type: ignore[arg-type]
                progress=True,
            )
        except BaseException:  # Ctrl-C too
            if len(retriever) > before:
                retriever.save(gallery)
                click.echo(f"kept {len(retriever) - before} videos in {gallery}", err=True)
            raise
        if report.added:
            retriever.save(gallery)
        total = len(retriever)
    if as_json:
        print_json({"gallery": str(gallery), "videos": total, **report.to_dict()})
    else:
        for failure in report.failed:
            click.echo(f"failed: {failure.reason}")  # which begins with the path
        for warning in report.warnings:
            click.echo(f"warning: {warning.path}: {warning.reason}")
        click.echo(
            f"{len(report.added)} added, {len(report.skipped)} there already, "
            f"{len(report.failed)} failed; {gallery} holds {total} videos"
        )
    if report.failed and (strict or not (report.added or report.skipped)):
        raise VideoError(f"{len(report.failed)} of the videos failed; the reasons are above")
