"""The command ``xclip-deploy explain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import print_json, say, warn_of_cuts
from xclip_deploy.cli.gallery import find_video
from xclip_deploy.cli.options import (
    Command,
    PathArgument,
    bundle_option,
    gallery_option,
    json_option,
    session_options,
)

if TYPE_CHECKING:
    from xclip_deploy.runtime.evidence import Hit
    from xclip_deploy.runtime.retriever import Retriever
    from xclip_deploy.runtime.sessions import SessionOptions


@click.command("explain", cls=Command)
@click.argument("query")
@click.argument("videos", nargs=-1)
@bundle_option
@gallery_option
@click.option(
    "-o",
    "--output",
    type=PathArgument(dir_okay=False),
    help="Draw into this PNG file.  [default: explain.png; with --json, nothing is drawn]",
)
@session_options
@json_option
def command(
    query: str,
    videos: tuple[str, ...],
    bundle: Path,
    gallery: str,
    output: Path | None,
    session: SessionOptions,
    as_json: bool,
) -> None:
    """Explain in words and in a picture why a video has its score for QUERY.

    VIDEOS are ids or files of the gallery. One video is explained by itself. Two are compared:
    why does one rank above the other? Without VIDEOS, the best hit is explained. Of a video that
    is cut into segments, the one that fits QUERY best is explained.
    """
    import xclip_deploy

    if len(videos) > 2:
        raise click.UsageError(f"found {len(videos)} videos; expected none, one or two")
    with xclip_deploy.Retriever(bundle, gallery, session=session) as retriever:
        hits: list[Hit] = [find_video(retriever.gallery, video).id for video in videos]
        hits = hits or _best(query, retriever)
        warn_of_cuts(retriever, "the query", [query])
        explanation = retriever.explain(query, *hits)
        if output is None and not as_json:
            output = Path("explain.png")
        if output is not None:
            retriever.plot_explanation(explanation, output)
    if as_json:
        print_json(explanation.to_dict())
        return
    say(str(explanation))
    say(f"wrote {output}")


def _best(query: str, retriever: Retriever) -> list[Hit]:
    from xclip_deploy.errors import GalleryError

    hits = retriever.search(query, k=1)
    if not hits:
        raise GalleryError(
            "the gallery holds no videos to explain; run: xclip-deploy index VIDEOS --gallery PATH"
        )
    return [hits[0]]
