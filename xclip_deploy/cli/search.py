"""The command ``xclip-deploy search``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import click

from xclip_deploy.cli.cluster_options import Cluster, cluster_options
from xclip_deploy.cli.display import name_of, print_json, say, warn_of_cuts
from xclip_deploy.cli.hit_files import cut_hits, draw_hits
from xclip_deploy.cli.options import (
    Choice,
    Command,
    PathArgument,
    bundle_option,
    gallery_option,
    json_option,
    resident_options,
    session_options,
    theme_option,
    wide_option,
)
from xclip_deploy.cli.progress import waiting
from xclip_deploy.cli.table import Column, print_table, shortened, terminal_width
from xclip_deploy.runtime.presentation import counted, printable, time_text

if TYPE_CHECKING:
    from xclip_deploy.runtime.grains import Grain
    from xclip_deploy.runtime.results import Moment, SearchResult, SearchResults, TimeRange
    from xclip_deploy.runtime.sessions import SessionOptions
    from xclip_deploy.runtime.theme import Theme


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
    type=Choice(["video", "moment"]),
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
@theme_option
@bundle_option
@gallery_option
@cluster_options
@session_options
@resident_options
@wide_option
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
    theme: Theme,
    bundle: Path,
    gallery: str,
    cluster: Cluster,
    session: SessionOptions,
    wide: bool,
    as_json: bool,
) -> None:
    """Find videos that match each of TEXTS, or that resemble a video or an image."""
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
        "confidence": True,
    }
    with (
        waiting("loading the model and opening the gallery") as line,
        cluster.open(bundle, gallery, session) as retriever,
    ):
        line.name("searching")
        if texts and query_bank:
            require_regular_file(query_bank, "texts, one a line")
            lines = query_bank.read_text(encoding="utf-8").splitlines()
            bank = [line.strip() for line in lines if line.strip()]
            warn_of_cuts(retriever, "a text of the query bank", bank)
            options["query_bank"] = retriever.query_bank(bank)
        searches: list[Callable[..., SearchResults]]
        if image is not None:
            names, searches = [str(image)], [partial(retriever.search_by_image, image)]
        elif video is not None and not texts:
            names, searches = [str(video)], [partial(retriever.search_by_video, video)]
        elif video is not None:
            names = [f"{texts[0]} + {video}"]
            searches = [partial(retriever.search, texts[0], video=video)]
        else:
            names, searches = list(texts), [partial(retriever.search, text) for text in texts]
        if len(texts) > 1:
            results = retriever.search_batch(texts, **options)
        else:
            results = [search(**options) for search in searches]
        found = list(zip(names, results, strict=True))
        warn_of_cuts(retriever, "the text", texts)
        is_empty = len(retriever) == 0
        # A picture or a video would be read and encoded again.
        is_text = video is None and image is None
        middles = [
            _middle(search, results, options) if is_text else None
            for search, (_, results) in zip(searches, found, strict=True)
        ]
    if is_empty:
        say(
            f"{gallery} holds no videos; run: xclip-deploy index VIDEOS "
            f"--gallery {shlex.quote(str(gallery))}",
            err=True,
        )
    written: list[object] = [] if cut_folder is None else list(cut_hits(found, cut_folder))
    if picture is not None:
        draw_hits(*found[0], picture, theme)
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
                    "reason": results.reason,
                    "note": results.note,
                    "truncated_tokens": results.truncated_tokens,
                    "warnings": list(results.warnings),
                    "answered_shards": list(results.answered_shards),
                    "failed_shards": [vars(shard).copy() for shard in results.failed_shards],
                    "results": [result.to_dict() for result in results],
                }
                for query, results in found
            ]
        )
    else:
        _print(found, middles, is_empty=is_empty, wide=wide)
    for file in written:
        say(f"wrote {file}", err=as_json)


def _middle(
    search: Callable[..., SearchResults], results: SearchResults, options: Mapping[str, Any]
) -> float | None:
    """Return the median score of a gallery that is too small for confidences, else None.

    Scores differ between queries: beside the median, a reader can tell a good one.
    """
    from xclip_deploy.runtime.search.confidence import LEAST

    count = results.num_segments or results.num_videos
    is_told = any(hit.confidence is not None for hit in results)
    is_part = options["within"] or options.get("where")
    if not results or is_told or count > LEAST or is_part:
        return None
    own = ("query_bank", "exact")
    kept = {name: options[name] for name in own if name in options}
    everything = search(k=count, group="moment", nms=1.0, **kept)
    return median(hit.score for hit in everything)


def _print(
    found: Sequence[tuple[str, SearchResults]],
    middles: Sequence[float | None],
    *,
    is_empty: bool,
    wide: bool,
) -> None:
    for (query, results), middle in zip(found, middles, strict=True):
        width = terminal_width()
        say(query if width is None or wide else shortened(printable(query), width))
        if results:
            _print_hits(results.hits, has_segments=results.num_segments is not None, wide=wide)
            notes = [_meaning(results, middle), results.note]
            # The reason tells why a gallery is on the GPU, or why not.
            why = f"; {results.reason}" if "resident" in results.reason else ""
            say(f"{results.method}: {_scored(results)}{why}", *filter(None, notes), "")
        elif not is_empty:
            say(results.note or "nothing found", "")
        for shard in results.failed_shards:
            say(f"shard {shard.number} on {shard.node} is missing: {shard.reason}", err=True)


def _meaning(results: SearchResults, middle: float | None) -> str:
    """Return a line that says what the scores mean."""
    if any(hit.confidence is not None for hit in results):
        return "sure: chance that no video without a match scores so high; look-alikes lower it"
    if middle is None:
        return ""
    of = "video" if results.num_segments is None else "segment"
    return f"score: higher is better; the median {of} of this gallery has {middle:.3f}"


def _scored(results: SearchResults) -> str:
    videos = counted(results.num_videos, "video")
    if results.num_segments is None:
        return f"{results.num_scored:,} of {videos} scored"
    return (
        f"{results.num_scored:,} of {counted(results.num_segments, 'segment')} of {videos} scored"
    )


def _print_hits(results: Sequence[SearchResult], *, has_segments: bool, wide: bool) -> None:
    """Print hits, a line for each. In a gallery with segments, a line for each moment follows."""
    from xclip_deploy.runtime.grains import Grain

    found = dict.fromkeys(name for result in results for name in result.grains or ())
    grains = [Grain(name) for name in found]
    rows = []
    for hit in results:
        sure = "" if hit.confidence is None else _percent(hit.confidence)
        # The refined range, where there is one, is nearer to what was asked for.
        span = (hit.start_s, hit.end_s) if hit.range is None else _ends(hit.range)
        rows.append(
            (
                str(hit.rank),
                f"{hit.score:.3f}",
                sure,
                *_grain_cells(hit, grains),
                _span(*span) if has_segments else "",
                time_text(hit.best_frame_time_s, 1),
                name_of(hit.id),
            )
        )
        rows += [
            (
                "",
                f"{moment.score:.3f}",
                "",
                *_grain_cells(moment, grains),
                _span(moment.start_s, moment.end_s),
                time_text(moment.best_frame_time_s, 1),
                "",
            )
            for moment in hit.moments
        ]
    columns = (
        Column("#", right=True),
        Column("score", right=True),
        Column("sure", right=True),
        *(Column(grain.spoken, right=True, wide=True) for grain in grains),
        Column("time", right=True),
        Column("best frame", right=True),
        Column("video", least=None if wide else 16),
    )
    print_table(columns, rows, wide=wide)


def _grain_cells(hit: SearchResult | Moment, grains: Sequence[Grain]) -> list[str]:
    if hit.grains is None:
        return [""] * len(grains)
    return [f"{hit.grains[grain.value]:.3f}" for grain in grains]


def _ends(span: TimeRange) -> tuple[float, float]:
    return span.start_s, span.end_s


def _span(start_s: float, end_s: float | None) -> str:
    return f"{time_text(start_s, 1)}-{time_text(end_s, 1)}"


def _percent(share: float) -> str:
    """Return a share in whole percent; what is not all is no 100 %, what is not none no 0 %."""
    if 0.995 <= share < 1:
        return ">99 %"
    return "<1 %" if 0 < share < 0.005 else f"{share:.0%}".replace("%", " %")
