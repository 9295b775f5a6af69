"""The command ``xclip-deploy search``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xclip_deploy.cli.display import name_of, print_json, print_table, say, warn_of_cuts
from xclip_deploy.cli.options import (
    Command,
    PathArgument,
    bundle_option,
    gallery_option,
    json_option,
    session_options,
)

if TYPE_CHECKING:
    from xclip_deploy.runtime.results import SearchResult
    from xclip_deploy.runtime.sessions import SessionOptions


@click.command("search", cls=Command)
@click.argument("texts", nargs=-1)
@click.option(
    "--video",
    type=PathArgument(),
    help="Search by this video. With one text, search for videos that match both.",
)
@click.option("--image", type=PathArgument(), help="Search by this image.")
@click.option(
    "-k",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Return at most this many videos.",
)
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Skip this many results.")
@click.option(
    "--where",
    metavar="FILTER",
    help="Search only the videos that match this filter: duration_s < 30 and source = 'cam1'.",
)
@click.option("--min-score", type=float, help="Leave out results with a lower score.")
@click.option(
    "--deduplicate",
    is_flag=True,
    help="Leave out results that are nearly identical to a better one.",
)
@click.option(
    "--exact/--two-stage",
    default=None,
    help="Score every video, or only the best candidates.  [default: by the gallery's size]",
)
@click.option(
    "--candidates", type=click.IntRange(min=1), help="Score this many candidates.  [default: 300]"
)
@click.option(
    "--query-bank",
    type=PathArgument(exists=True, dir_okay=False),
    help="Calibrate the scores over the texts of this file, one a line.",
)
@bundle_option
@gallery_option
@session_options
@json_option
def command(
    texts: tuple[str, ...],
    video: Path | None,
    image: Path | None,
    k: int,
    offset: int,
    where: str | None,
    min_score: float | None,
    deduplicate: bool,
    exact: bool | None,
    candidates: int | None,
    query_bank: Path | None,
    bundle: Path,
    gallery: str,
    session: SessionOptions,
    as_json: bool,
) -> None:
    """Find videos that match each of TEXTS, or that resemble a video or an image."""
    import xclip_deploy
    from xclip_deploy.runtime.files import require_regular_file
    from xclip_deploy.runtime.search import DEFAULT_CANDIDATES

    if not (texts or video or image) or (image and (texts or video)) or (video and len(texts) > 1):
        raise click.UsageError("expected texts, or --video, or one text with --video, or --image")
    if query_bank and not texts:
        raise click.UsageError("--query-bank calibrates the scores of texts; give one")
    options: dict[str, Any] = {
        "k": k,
        "where": where,
        "offset": offset,
        "min_score": min_score,
        "deduplicate": deduplicate,
        "exact": exact,
        "candidates": candidates or DEFAULT_CANDIDATES,
    }
    with xclip_deploy.Retriever(bundle, gallery, session=session) as retriever:
        if texts and query_bank:
            require_regular_file(query_bank, "texts, one a line")
            lines = query_bank.read_text(encoding="utf-8").splitlines()
            bank = [line.strip() for line in lines if line.strip()]
            warn_of_cuts(retriever, "a text of the query bank", bank)
            options["query_bank"] = retriever.query_bank(bank)
        if image is not None:
            found = [(str(image), retriever.search_by_image(image, **options))]
        elif video is not None and not texts:
            found = [(str(video), retriever.search_by_video(video, **options))]
        elif video is not None:
            results = retriever.search(texts[0], video=video, **options)
            found = [(f"{texts[0]} + {video}", results)]
        else:
            found = list(zip(texts, retriever.search_batch(texts, **options), strict=True))
        warn_of_cuts(retriever, "the text", texts)
        is_empty = len(retriever) == 0
    if is_empty:
        say(
            f"{gallery} holds no videos; run: xclip-deploy index VIDEOS "
            f"--gallery {shlex.quote(str(gallery))}",
            err=True,
        )
    if as_json:
        print_json(
            [
                {
                    "query": query,
                    "method": results.method,
                    "num_scored": results.num_scored,
                    "num_videos": results.num_videos,
                    "truncated_tokens": results.truncated_tokens,
                    "results": [result.to_dict() for result in results],
                }
                for query, results in found
            ]
        )
        return
    for query, results in found:
        say(query)
        if results:
            _print_results(results.hits)
            say(f"{results.method}: {results.num_scored} of {results.num_videos} videos scored", "")
        elif not is_empty:
            say("nothing found", "")


def _print_results(results: Sequence[SearchResult]) -> None:
    from xclip_deploy.runtime.grains import Grain
    from xclip_deploy.runtime.presentation import time_text

    found = dict.fromkeys(name for result in results for name in result.grains or ())
    shown = [Grain(name) for name in found]
    rows = []
    for result in results:
        grains = [f"{result.grains[grain.value]:.3f}" for grain in shown] if result.grains else []
        time = time_text(result.best_frame_time_s, 1)
        rows.append((str(result.rank), f"{result.score:.3f}", *grains, time, name_of(result.id)))
    headers = ("#", "score", *(grain.spoken for grain in shown), "best frame", "video")
    print_table(headers, rows, right=range(len(headers) - 1))
