"""The command ``xclip-deploy index``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xclip_deploy.cli.display import print_json, say, write_json
from xclip_deploy.cli.options import (
    Choice,
    Command,
    PathArgument,
    bundle_option,
    gallery_option,
    json_option,
    reader_option,
    session_options,
    workers_option,
)
from xclip_deploy.cli.progress import waiting
from xclip_deploy.runtime.presentation import counted

if TYPE_CHECKING:
    from xclip_deploy.runtime.indexing import IndexReport
    from xclip_deploy.runtime.sessions import SessionOptions


@click.command("index", cls=Command)
@click.argument("paths", nargs=-1, required=True, type=PathArgument())
@bundle_option
@gallery_option
@click.option(
    "--on-duplicate",
    type=Choice(["update", "skip", "replace", "error"]),
    default="update",
    show_default=True,
    help="Treat a video that the gallery already has in this way: update encodes it again if it "
    "changed, skip leaves it, replace always encodes it again, error stops before reading.",
)
@click.option(
    "--prune", is_flag=True, help="Remove videos whose files are gone from the folders given."
)
@click.option(
    "--segment",
    metavar="LENGTH|whole|shots",
    help="Cut longer videos into windows of this length, such as 8s or 1:30. whole keeps each "
    "video in one segment; shots cuts each shot by itself.  [default: the gallery's, or the "
    "model's span]",
)
@click.option(
    "--stride",
    metavar="TIME",
    help="Begin a window every so often, such as 4s.  [default: the length of a window]",
)
@click.option(
    "--thumbnails/--no-thumbnails",
    default=True,
    help="Keep a small picture of every segment beside the gallery.  [default: thumbnails]",
)
@workers_option
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="Give up on a video that takes more than this many seconds to decode.",
)
@click.option(
    "--report",
    "report_path",
    type=PathArgument(dir_okay=False),
    help="Write the report to this JSON file.",
)
@click.option(
    "--estimate",
    is_flag=True,
    help="Print segments, bytes and expected time, and stop before anything is written.",
)
@click.option(
    "--cluster",
    "address",
    metavar="ADDRESS",
    help="Read and encode on the Ray cluster at this address, into a gallery in shards; auto finds "
    "the one of ray start.",
)
@click.option(
    "--shards",
    type=click.IntRange(min=1, max=1024),
    help="Divide a new gallery into this many shards.  [default: 8]",
)
@click.option("--strict", is_flag=True, help="Exit with status 8 if any video failed.")
@session_options
@reader_option
@json_option
def command(
    paths: tuple[Path, ...],
    bundle: Path,
    gallery: str,
    on_duplicate: str,
    segment: str | None,
    stride: str | None,
    prune: bool,
    thumbnails: bool,
    workers: int | None,
    timeout_s: float,
    report_path: Path | None,
    estimate: bool,
    address: str | None,
    shards: int | None,
    strict: bool,
    session: SessionOptions,
    reader: str,
    as_json: bool,
) -> None:
    """Bring a gallery up to date with PATHS.

    PATHS are videos, folders, .txt lists of files, and .csv or .jsonl tables. A folder stands
    for all videos below it. A table has a column "file"; its other columns are metadata.
    An unreadable video is reported, and the rest are indexed. An interruption keeps what was
    committed before it.
    """
    from xclip_deploy.errors import InvalidArgumentError, VideoError
    from xclip_deploy.runtime.indexing.sources import stored_name

    if report_path is not None and not report_path.absolute().parent.is_dir():
        # Check this before hours of indexing.
        raise InvalidArgumentError(f"{report_path} cannot be written: no such folder")
    if estimate:
        options: dict[str, Any] = {"segment": segment, "stride": stride}
        options |= {"on_duplicate": on_duplicate, "workers": workers}
        _estimate(bundle, gallery, paths, session, reader, options, as_json=as_json)
        return
    keywords: dict[str, Any] = {
        "segment": segment,
        "stride": stride,
        "on_duplicate": on_duplicate,
        "prune": prune,
        "thumbnails": thumbnails,
        "workers": workers,
        "timeout_s": timeout_s,
        "progress": True,
    }
    if address is not None:
        report, total = _index_shards(bundle, gallery, paths, address, shards, reader, keywords)
    elif shards is not None:
        raise click.UsageError("--shards is for a gallery in shards; give --cluster too")
    else:
        report, total = _index(bundle, gallery, paths, session, reader, keywords)
    content = {"gallery": str(gallery), "videos": total, **report.to_dict()}
    if report_path is not None:
        write_json(report_path, content)
    if as_json:
        print_json(content)
    else:
        _print(report, f"{gallery} holds {counted(total, 'video')}")
    done = report.added or report.skipped or report.duplicates
    # A folder that was given and of which no file was taken is a mistake whatever else was.
    given = {stored_name(path) for path in paths if path.is_dir()}
    has_failed_folder = any(video.path in given for video in report.failed)
    if report.failed and (strict or not done or has_failed_folder):
        failed = counted(len(report.failed), "video")
        raise VideoError(f"{failed} failed; the reasons are above")


def _index(
    bundle: Path,
    gallery: str,
    paths: tuple[Path, ...],
    session: SessionOptions,
    reader: str,
    keywords: dict[str, Any],
) -> tuple[IndexReport, int]:
    """Index into a gallery here; return the report and the number of videos."""
    import xclip_deploy

    with waiting("loading the model and opening the gallery"):
        opened = xclip_deploy.Retriever(
            bundle,
            gallery,
            create=True,
            session=session,
            reader=reader,  # type: ignore[arg-type]
        )
    with opened as retriever:
        before = len(retriever)
        try:
            report = retriever.add(paths, **keywords)
        except KeyboardInterrupt:
            kept = counted(len(retriever) - before, "video")
            say(f"kept {kept} in {gallery}", err=True)
            raise
        return report, len(retriever)


def _index_shards(
    bundle: Path,
    gallery: str,
    paths: tuple[Path, ...],
    address: str,
    shards: int | None,
    reader: str,
    keywords: dict[str, Any],
) -> tuple[IndexReport, int]:
    """Index into shards on a cluster; return the report and the number of videos."""
    from xclip_deploy.runtime.cluster import index_shards, is_sharded, read_shards

    known = read_shards(gallery) if is_sharded(gallery) else None
    try:
        report = index_shards(
            bundle,
            gallery,
            paths,
            shards=shards or (8 if known is None else len(known.shards)),
            address=address,
            reader=reader,  # type: ignore[arg-type]
            **keywords,
        )
    except KeyboardInterrupt:
        if is_sharded(gallery):
            before = 0 if known is None else known.num_videos
            kept = counted(read_shards(gallery).num_videos - before, "video")
            say(f"kept {kept} in {gallery}", err=True)
        raise
    return report, read_shards(gallery).num_videos


def _estimate(
    bundle: Path,
    gallery: str,
    paths: tuple[Path, ...],
    session: SessionOptions,
    reader: str,
    options: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    import xclip_deploy
    from xclip_deploy.errors import GalleryNotFoundError

    def opened(place: str | None) -> xclip_deploy.Retriever:
        return xclip_deploy.Retriever(bundle, place, session=session, reader=reader)  # type: ignore[arg-type]

    with waiting("loading the model and opening the gallery") as line:
        try:
            retriever = opened(gallery)
        except GalleryNotFoundError:
            retriever = opened(None)  # an estimate makes no gallery
        with retriever:
            line.name("reading the first videos")
            found = retriever.estimate(paths, **options)
    if as_json:
        print_json(found.to_dict())
    else:
        say(*str(found).split("\n"))


def _print(report: IndexReport, total: str) -> None:
    from xclip_deploy.runtime.presentation import printable

    text = str(report)
    names = [words for v in (*report.failed, *report.warnings) for words in (v.path, v.reason)]
    for words in (*names, *report.passed_over):
        # A newline in a name must not end the line.
        text = text.replace(words, printable(words))
    say(*f"{text}; {total}".split("\n"))
