"""The command ``xclip-deploy search``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from xclip_deploy.cli.display import name_of, print_json, print_table, say, warn_of_cuts
from xclip_deploy.cli.hit_files import cut_hits, draw_hits
from xclip_deploy.cli.options import (
    Command,
    PathArgument,
    bundle_option,
    gallery_option,
    json_option,
    session_options,
)

if TYPE_CHECKING:
    from xclip_deploy.runtime.results import SearchResult, SearchResults
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
@click.option(
    "--group",
    type=click.Choice(["video", "moment"]),
    default="video",
    show_default=True,
    help="Rank videos by their best moment, or rank moments.",
)
@click.option(
    "--per-video",
    type=click.IntRange(min=1, max=1000),
    default=3,
    show_default=True,
    help="Show at most this many moments of a video, its best one included.",
)
@click.option(
    "--nms",
    type=float,
    default=0.5,
    show_default=True,
    help="Suppress a moment that overlaps a better one of its video by more than this temporal "
    "IoU; 1 suppresses none.",
)
@click.option(
    "--within", metavar="VIDEO", help="Search this video alone: its id, path or file name."
)
@click.option(
    "--from", "from_s", metavar="TIME", help="Search only moments that end after 72, 1:12 or 72s."
)
@click.option("--to", "to_s", metavar="TIME", help="Search only moments that begin before this.")
@click.option(
    "--min-confidence",
    type=click.FloatRange(0, 1),
    help="Leave out results with a lower confidence that they are no chance; 0 shows all.",
)
@click.option(
    "--cut",
    "cut_folder",
    type=PathArgument(),
    help="Write the time that is shown of each hit to a video file in this folder.",
)
@click.option(
    "--picture",
    type=PathArgument(dir_okay=False),
    help="Draw the hits of one query with their thumbnails and times, to this PNG file.",
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
    group: Literal["video", "moment"],
    per_video: int,
    nms: float,
    within: str | None,
    from_s: str | None,
    to_s: str | None,
    min_confidence: float | None,
    cut_folder: Path | None,
    picture: Path | None,
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
    if picture and len(texts) > 1:
        raise click.UsageError("--picture draws the hits of one query; expected one text")
    options: dict[str, Any] = {
        "k": k,
        "where": where,
        "offset": offset,
        "min_score": min_score,
        "deduplicate": deduplicate,
        "exact": exact,
        "candidates": candidates or DEFAULT_CANDIDATES,
        "group": group,
        "per_video": per_video,
        "nms": nms,
        "within": within,
        "from_s": from_s,
        "to_s": to_s,
        "min_confidence": min_confidence,
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
    written: list[object] = [] if cut_folder is None else list(cut_hits(found, cut_folder))
    if picture is not None:
        draw_hits(*found[0], picture)
        written.append(picture)
    if as_json:
        print_json(
            [
                {
                    "query": query,
                    "method": results.method,
                    "num_scored": results.num_scored,
                    "num_videos": results.num_videos,
                    "num_segments": results.num_segments,
                    "note": results.note,
                    "truncated_tokens": results.truncated_tokens,
                    "warnings": list(results.warnings),
                    "results": [result.to_dict() for result in results],
                }
                for query, results in found
            ]
        )
    else:
        _print(found, is_empty=is_empty)
    for file in written:
        say(f"wrote {file}", err=as_json)


def _print(found: Sequence[tuple[str, SearchResults]], *, is_empty: bool) -> None:
    for query, results in found:
        say(query)
        if results:
            (_print_results if results.num_segments is None else _print_moments)(results.hits)
            say(f"{results.method}: {_scored(results)}", *filter(None, [results.note]), "")
        elif not is_empty:
            say(results.note or "nothing found", "")


def _scored(results: SearchResults) -> str:
    if results.num_segments is None:
        return f"{results.num_scored} of {results.num_videos} videos scored"
    return (
        f"{results.num_scored} of {results.num_segments} segments of {results.num_videos} videos "
        "scored"
    )


def _print_results(results: Sequence[SearchResult]) -> None:
    from xclip_deploy.runtime.grains import Grain
    from xclip_deploy.runtime.presentation import time_text

    found = dict.fromkeys(name for result in results for name in result.grains or ())
    shown = [Grain(name) for name in found]
    sure = _confidences(results)
    rows = []
    for n, result in enumerate(results):
        grains = [f"{result.grains[grain.value]:.3f}" for grain in shown] if result.grains else []
        time = time_text(result.best_frame_time_s, 1)
        cells = (*sure[n], *grains, time, name_of(result.id))
        rows.append((str(result.rank), f"{result.score:.3f}", *cells))
    names = (*(["sure"] if any(sure) else []), *(grain.spoken for grain in shown))
    headers = ("#", "score", *names, "best frame", "video")
    print_table(headers, rows, right=range(len(headers) - 1))


def _print_moments(results: Sequence[SearchResult]) -> None:
    """Print hits of a gallery with segments, a line for each moment."""
    from xclip_deploy.runtime.presentation import time_text

    def span(start_s: float, end_s: float | None) -> str:
        return f"{time_text(start_s, 1)}-{time_text(end_s, 1)}"

    sure = _confidences(results)
    rows = []
    for n, hit in enumerate(results):
        found = hit.range
        # The refined range, where there is one, is nearer to what was asked for.
        where = span(hit.start_s, hit.end_s) if found is None else span(found.start_s, found.end_s)
        best = time_text(hit.best_frame_time_s, 1)
        rows.append([str(hit.rank), f"{hit.score:.3f}", *sure[n], where, best, name_of(hit.id)])
        for moment in hit.moments:
            where, best = span(moment.start_s, moment.end_s), time_text(moment.best_frame_time_s, 1)
            empty = [""] * len(sure[n])
            rows.append(["", f"{moment.score:.3f}", *empty, where, best, ""])
    headers = ["#", "score", *(["sure"] if any(sure) else []), "time", "best frame", "video"]
    print_table(headers, rows, right=range(len(headers) - 1))


def _confidences(results: Sequence[SearchResult]) -> list[list[str]]:
    """Return a cell for each hit, or none if confidences were not asked for."""
    if all(result.confidence is None for result in results):
        return [[] for _ in results]
    return [["" if r.confidence is None else f"{r.confidence:.2f}"] for r in results]
