"""``xclip-deploy explain``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import print_json
from xclip_deploy.cli.options import (
    bundle_option,
    gallery_option,
    json_option,
    session_options,
)

if TYPE_CHECKING:
    from xclip_deploy.runtime.retriever import Retriever
    from xclip_deploy.runtime.sessions import SessionOptions


@click.command("explain")
@click.argument("query")
@click.argument("videos", nargs=-1)
@bundle_option
@gallery_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The picture, a PNG.  [default: explain.png; with --json none]",
)
@session_options
@json_option
def command(
    query: str,
    videos: tuple[str, ...],
    bundle: Path,
    gallery: Path,
    output: Path | None,
    session: SessionOptions,
    as_json: bool,
) -> None:
    """Say and draw why a video has the score that it has for QUERY.

    VIDEOS: one video of the gallery, by its id or file; two, to learn why one ranks above the
    other; none, for the best hit.
    """
    import xclip_deploy

    if len(videos) > 2:
        raise click.UsageError(f"found {len(videos)} videos; expected none, one or two")
    with xclip_deploy.Retriever(bundle, gallery, session=session) as retriever:
        ids = [_id_of(video, retriever) for video in videos] or _best(query, retriever)
        explanation = retriever.explain(query, *ids)
        if output is None and not as_json:
            output = Path("explain.png")
        if output is not None:
            retriever.plot_explanation(explanation, output)
    if as_json:
        print_json(explanation.to_dict())
        return
    click.echo(str(explanation))
    click.echo(f"wrote {output}")


def _id_of(video: str, retriever: Retriever) -> str:
    """The id of a video that may be given as its file: then that is the absolute path."""
    absolute = str(Path(video).absolute())
    names = (video, absolute, os.path.normpath(absolute))
    return next((name for name in names if name in retriever.gallery), video)


def _best(query: str, retriever: Retriever) -> list[str]:
    from xclip_deploy.errors import GalleryError

    hits = retriever.search(query, k=1)
    if not hits:
        raise GalleryError(
            "the gallery holds no videos to explain; run: xclip-deploy index VIDEOS --gallery PATH"
        )
    return [hits[0].id]
