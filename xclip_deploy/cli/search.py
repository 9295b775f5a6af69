"""``xclip-deploy search``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import print_json, print_table
from xclip_deploy.cli.options import (
    backend_option,
    bundle_option,
    device_id_option,
    device_option,
    gallery_option,
    json_option,
    precision_option,
    threads_option,
)

if TYPE_CHECKING:
    from xclip_deploy.runtime.results import SearchResult


@click.command("search")
@click.argument("texts", nargs=-1)
@click.option(
    "--video", type=click.Path(path_type=Path), help="Search by this video instead of a text."
)
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Results.")
@bundle_option
@gallery_option
@device_option
@device_id_option
@backend_option
@precision_option
@threads_option
@json_option
def command(
    texts: tuple[str, ...],
    video: Path | None,
    k: int,
    bundle: Path,
    gallery: Path,
    device: str,
    device_id: int,
    backend: str,
    precision: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find videos that fit each of TEXTS, or are like the one given with --video."""
    import xclip_deploy
    from xclip_deploy.runtime.sessions import SessionOptions

    if bool(texts) == (video is not None):
        raise click.UsageError("give texts to search for, or --video")
    session = SessionOptions(
        device=device,  # type: ignore[arg-type]  # click.Choice has checked these
        precision=precision,  # type: ignore[arg-type]
        threads=threads,
        backend=backend,  # type: ignore[arg-type]
        device_id=device_id,
    )
    with xclip_deploy.Retriever(
        bundle,
        gallery,
        threads=threads,
        session=session,
    ) as retriever:
        if video is not None:
            found = [(str(video), retriever.search_by_video(video, k))]
        else:
            found = list(zip(texts, retriever.search_batch(texts, k), strict=True))
        is_empty = len(retriever) == 0
    if is_empty:
        click.echo(
            f"{gallery} holds no videos; run: xclip-deploy index VIDEOS --gallery {gallery}",
            err=True,
        )
    if as_json:
        print_json(
            [
                {"query": query, "results": [result.to_dict() for result in results]}
                for query, results in found
            ]
        )
        return
    for query, results in found:
        click.echo(query)
        if results:
            _print_results(results)


def _print_results(results: list[SearchResult]) -> None:
    grain_names = [
        name
        for name in ("video_sentence", "video_word", "frame_sentence", "frame_word")
        if any(result.grains and getattr(result.grains, name) is not None for result in results)
    ]
    rows = []
    for result in results:
        grains = [f"{getattr(result.grains, name):.3f}" for name in grain_names]
        minutes, seconds = divmod(result.best_frame_time_s, 60)
        time = f"{int(minutes)}:{seconds:04.1f}"
        rows.append((str(result.rank), f"{result.score:.3f}", *grains, time, _name(result)))
    grain_headers = [name.replace("_", "–") for name in grain_names]
    headers = ("#", "score", *grain_headers, "best frame", "video")
    print_table(headers, rows, right=range(len(headers) - 1))
    click.echo()


def _name(result: SearchResult) -> str:
    """The id; where that is the path of a file below the current directory, from here."""
    try:
        return str(Path(result.id).relative_to(Path.cwd()))
    except ValueError:
        return result.id
