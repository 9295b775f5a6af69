"""The command ``xclip-deploy explain``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import name_of, print_json, say, warn_of_cuts
from xclip_deploy.cli.gallery import find_video
from xclip_deploy.cli.options import (
    Command,
    PathArgument,
    bundle_option,
    gallery_option,
    json_option,
    session_options,
    theme_option,
    wide_option,
)
from xclip_deploy.cli.progress import waiting
from xclip_deploy.cli.table import Column, print_table, shortened, terminal_width
from xclip_deploy.runtime.presentation import counted, printable, time_text

if TYPE_CHECKING:
    from xclip_deploy.runtime.evidence import Contrast, Explanation, Hit
    from xclip_deploy.runtime.retriever import Retriever
    from xclip_deploy.runtime.sessions import SessionOptions
    from xclip_deploy.runtime.theme import Theme

_RANKED = 1000
"""Hits among which the rank of an explained video is looked for."""


@click.command("explain", cls=Command)
@click.argument("query")
@click.argument("videos", nargs=-1)
@bundle_option
@gallery_option
@click.option(
    "-o",
    "--output",
    type=PathArgument(dir_okay=False),
    help="Draw into this PNG file.  [default: explain.png; with --json, or without matplotlib, "
    "nothing is drawn]",
)
@theme_option
@session_options
@wide_option
@json_option
def command(
    query: str,
    videos: tuple[str, ...],
    bundle: Path,
    gallery: str,
    output: Path | None,
    theme: Theme,
    session: SessionOptions,
    wide: bool,
    as_json: bool,
) -> None:
    """Explain in words and in a picture why a video has its score for QUERY.

    VIDEOS are ids, files or file names of the gallery. One video is explained by itself. Two are
    compared: why does one rank above the other? Without VIDEOS, the best hit is explained. Of a
    video that is cut into segments, the one that fits QUERY best is explained.
    """
    import xclip_deploy
    from xclip_deploy.runtime.theme import can_draw

    if len(videos) > 2:
        raise click.UsageError(f"found {len(videos)} videos; expected none, one or two")
    with (
        waiting("loading the model and opening the gallery") as line,
        xclip_deploy.Retriever(bundle, gallery, session=session) as retriever,
    ):
        line.name("searching and explaining")
        hits: list[Hit] = [
            find_video(retriever.gallery, video, by_file_name=True).id for video in videos
        ]
        hits = hits or _best(query, retriever)
        warn_of_cuts(retriever, "the query", [query])
        explanation = retriever.explain(query, *hits)
        parts = _parts(explanation)
        ranks = [] if as_json else _ranks(retriever, query, [part.video_id for part in parts])
        if output is None and not as_json and can_draw():
            output = Path("explain.png")
        if output is not None:
            line.name("drawing the picture")
            retriever.plot_explanation(explanation, output, theme=theme)
    if as_json:
        print_json(explanation.to_dict())
        return
    say(str(explanation))
    for part, rank in zip(parts, ranks, strict=True):
        say()
        _print(part, rank, wide=wide)
    say()
    if output is None:
        say("no picture: matplotlib is missing; run: pip install 'xclip-deploy[plot]'")
    else:
        say(f"wrote {output}")


def _parts(explanation: Explanation | Contrast) -> tuple[Explanation, ...]:
    from xclip_deploy.runtime.evidence import Contrast

    return explanation.explanations if isinstance(explanation, Contrast) else (explanation,)


def _ranks(retriever: Retriever, query: str, ids: Sequence[str]) -> list[str]:
    """Say for each video where a search for the query ranks it among all."""
    total = len(retriever)
    found = retriever.search(query, k=min(total, _RANKED))
    ranks = {hit.id: hit.rank for hit in found}
    of = f"of {counted(total, 'video')}"
    return [
        f"rank {ranks[name]:,} {of}"
        if name in ranks
        else f"not among the first {len(found):,} {of}"
        for name in ids
    ]


def _print(explanation: Explanation, rank: str, *, wide: bool) -> None:
    """Print the words of one explanation, and the frames that count most."""
    width = terminal_width()
    name = printable(name_of(explanation.path or explanation.video_id))
    line = f"score {explanation.score:.2f}, {rank}"
    room = 10_000 if width is None or wide else max(width - len(line) - 2, 20)
    say(f"{shortened(name, room)}: {line}")
    missing, unfound = explanation.missing_words, explanation.unfound_words
    has_parts = any(word.contribution for word in explanation.words)
    rows = []
    for word in explanation.words:
        if word.score_without is None:
            continue
        change = word.score_without - explanation.score
        found = "nothing found" if word in unfound else "no lower without it"
        frame = explanation.frames[word.best_frame].time_s
        rows.append(
            (
                word.text,
                f"{word.contribution:+.2f}" if has_parts else "",
                f"{change:+.2f}",
                time_text(frame, 1),
                found if word in missing else "",
            )
        )
    columns = (
        Column("word", least=None if wide else 12),
        Column("points", right=True),
        Column("without it", right=True),
        Column("nearest frame", right=True),
        Column(""),
    )
    print_table(columns, rows)


def _best(query: str, retriever: Retriever) -> list[Hit]:
    from xclip_deploy.errors import GalleryError

    hits = retriever.search(query, k=1)
    if not hits:
        raise GalleryError(
            "the gallery holds no videos to explain; run: xclip-deploy index VIDEOS --gallery PATH"
        )
    return [hits[0]]
