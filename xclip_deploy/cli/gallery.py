"""The commands ``xclip-deploy gallery …``, which need no model."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import name_of, print_json, say
from xclip_deploy.cli.gallery_tables import print_stats, print_video, print_videos
from xclip_deploy.cli.options import Group, gallery_option, json_option, wide_option
from xclip_deploy.cli.progress import counting_progress, waiting
from xclip_deploy.runtime.presentation import counted, did_you_mean, listed, printable

if TYPE_CHECKING:
    from xclip_deploy.runtime.gallery import Gallery, GalleryVideo

_LIMIT = 20

where_option = click.option(
    "--where",
    metavar="FILTER",
    help="Select the videos that match this filter: duration_s < 30 and source = 'cam1'.",
)


class _InOrder(Group):
    """A group whose help lists the commands in the order of this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)


@click.group("gallery", cls=_InOrder, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, show and remove videos of a gallery, or compact it.

    These commands need neither a bundle nor its model.
    """
    if ctx.invoked_subcommand is None:
        say(*ctx.get_help().split("\n"))


@command.command("list", short_help="List videos with their metadata.")
@gallery_option
@where_option
@click.option(
    "--offset",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Skip this many videos.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=_LIMIT,
    show_default=True,
    help="List at most this many videos.",
)
@wide_option
@json_option
def list_videos(
    gallery: str, where: str | None, offset: int, limit: int, wide: bool, as_json: bool
) -> None:
    """List videos with their metadata, in the order in which they were added."""
    with _opened(gallery) as opened:
        total = opened.count(where)
        videos = opened.videos(where, offset=offset, limit=limit)
    if as_json:
        content = {"gallery": gallery, "total": total, "offset": offset}
        print_json({**content, "videos": [video.model_dump(mode="json") for video in videos]})
        return
    matching = "" if where is None else " that match"
    if not videos:
        beyond = f"; expected an offset below {total}" if total else ""
        say(f"{gallery} holds {counted(total, 'video')}{matching}{beyond}")
        return
    print_videos(videos, wide=wide)
    line = f"{offset + 1} to {offset + len(videos)} of {counted(total, 'video')}{matching}"
    if offset + len(videos) < total:
        words = ["xclip-deploy", "gallery", "list", "--gallery", gallery]
        words += [] if where is None else ["--where", where]
        words += [] if limit == _LIMIT else ["--limit", str(limit)]
        line += f"; see more: {shlex.join([*words, '--offset', str(offset + len(videos))])}"
    say(line)


@command.command("show", short_help="Show everything known about a video.")
@click.argument("video")
@gallery_option
@json_option
def show_video(video: str, gallery: str, as_json: bool) -> None:
    """Show everything known about VIDEO, which is an id, a file, or a file name of its own."""
    with _opened(gallery) as opened:
        found = find_video(opened, video, by_file_name=True)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_video(found)


@command.command("stats", short_help="Sum up the contents of the gallery.")
@gallery_option
@json_option
def show_stats(gallery: str, as_json: bool) -> None:
    """Sum up the videos, files, duration, metadata, size, model and index of a gallery."""
    with _opened(gallery) as opened:
        stats = opened.stats()
    if as_json:
        print_json(stats.to_dict())
    else:
        print_stats(stats)


@command.command("remove", short_help="Remove videos, by name or by a filter.")
@click.argument("videos", nargs=-1)
@gallery_option
@where_option
@click.option("--dry-run", is_flag=True, help="List the videos that would be removed, and stop.")
@click.option("-y", "--yes", is_flag=True, help="Remove by filter without asking.")
@json_option
def remove_videos(
    videos: tuple[str, ...],
    gallery: str,
    where: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove VIDEOS, which are ids or files, or all videos that match a filter.

    If one of VIDEOS is not in the gallery, none is removed. The video files themselves stay.
    """
    if bool(videos) == (where is not None):
        raise click.UsageError("expected either VIDEOS or --where")
    with _opened(gallery) as opened:
        if where is None:
            chosen = [find_video(opened, video) for video in dict.fromkeys(videos)]
        else:
            chosen = opened.videos(where)
        ids = list(dict.fromkeys(video.id for video in chosen))
        if dry_run:
            removed = 0
        elif where is None or not ids:
            removed = opened.remove(ids)
        elif yes:
            removed = opened.remove(where=where)
        else:
            removed = opened.remove(ids) if _is_confirmed(len(ids), gallery) else 0
        left = len(opened)
    if as_json:
        content = {"gallery": gallery, "dry_run": dry_run, "removed": removed, "videos": left}
        print_json({**content, "ids": ids})
        return
    if dry_run:
        if chosen:
            print_videos(chosen)
        say(f"{counted(len(ids), 'video')} would be removed from {gallery}, which holds {left}")
        return
    say(f"{counted(removed, 'video')} removed; {gallery} holds {left}")


@command.command("optimize", short_help="Compact the gallery and build its index.")
@gallery_option
@click.option(
    "--keep-minutes",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    help="Keep replaced data for this many minutes, because running searches may read it.",
)
@json_option
def optimize(gallery: str, keep_minutes: float, as_json: bool) -> None:
    """Compact a gallery and, from 50,000 videos on, build its approximate index.

    Run this after large changes. Searches continue meanwhile, and other writers wait.
    """
    import time

    started_s = time.monotonic()
    with _opened(gallery) as opened, waiting("looking at the files") as line:
        opened.optimize(lambda progress: line.name(progress.note), keep_s=60 * keep_minutes)
        videos = len(opened)
    seconds = time.monotonic() - started_s
    if as_json:
        print_json({"gallery": gallery, "videos": videos, "seconds": round(seconds, 3)})
    else:
        say(f"{gallery}: {counted(videos, 'video')}, {seconds:.1f} s")


@command.command("verify", short_help="Check everything that is stored against its checksums.")
@gallery_option
@json_option
def verify(gallery: str, as_json: bool) -> None:
    """Read the whole gallery and compare it with its checksums.

    Damage is listed, and makes the exit status 10. Searches check what they read by themselves.
    """
    from xclip_deploy.errors import GalleryIntegrityError

    with _opened(gallery) as opened:
        with counting_progress("looking at the files") as progress:
            found = opened.verify(progress)
        place = str(opened.uri)
    if as_json:
        print_json({"gallery": gallery, "is_whole": found.is_whole, **found.to_dict()})
    else:
        for name in found.damaged_videos:
            say(f"damaged: {name_of(name)}")
        for name in found.damaged_files:
            say(f"damaged: {name_of(name)}")
    if not found.is_whole:
        damaged = len(found.damaged_videos) + len(found.damaged_files)
        raise GalleryIntegrityError(
            f"gallery {gallery} is damaged in {counted(damaged, 'place')}; restore it from a copy "
            f"or run: xclip-deploy gallery rescue --gallery {shlex.quote(place)} "
            "--output NEW_GALLERY"
        )
    if not as_json:
        say(f"{gallery}: {counted(found.num_videos, 'video')}, all whole")


@command.command("rescue", short_help="Copy what is whole out of a damaged gallery.")
@gallery_option
@click.option(
    "--output",
    required=True,
    metavar="GALLERY",
    help="New directory for the copy.",
)
@json_option
def rescue(gallery: str, output: str, as_json: bool) -> None:
    """Copy every whole video of a damaged gallery to a new one, and list the others.

    The damaged gallery stays as it is. Index the videos that are lost again, into the new one.
    """
    from xclip_deploy.runtime.arguments import as_path
    from xclip_deploy.runtime.gallery.lance_errors import require_packages

    require_packages()
    from xclip_deploy.runtime.gallery.rewriting import rescue_gallery

    with counting_progress("looking for what is whole") as progress:
        found = rescue_gallery(as_path("gallery", gallery), as_path("output", output), progress)
    if as_json:
        print_json({"gallery": gallery, **found.to_dict()})
        return
    for name in found.lost:
        say(f"lost: {name_of(name)}")
    if found.committed_version not in (None, found.version):
        say(
            f"version {found.committed_version} is lost; version {found.version} was read", err=True
        )
    if found.deletions_lost:
        say("a list of removed videos is lost: removed ones may be back", err=True)
    say(
        f"{counted(found.num_videos, 'video')} copied to {output}, {len(found.lost)} lost; "
        f"to index those again run: xclip-deploy index VIDEOS --gallery {shlex.quote(output)}"
    )


@command.command("upgrade", short_help="Add checksums to a gallery of an older release.")
@gallery_option
@json_option
def upgrade(gallery: str, as_json: bool) -> None:
    """Rewrite a gallery of schema version 2 in place, with checksums.

    The disk needs room for a second copy meanwhile. An interrupted upgrade changes nothing.
    """
    from xclip_deploy.runtime.arguments import as_path
    from xclip_deploy.runtime.gallery.lance_errors import require_packages

    require_packages()
    from xclip_deploy.runtime.gallery.rewriting import upgrade_gallery

    with counting_progress("opening the gallery") as progress:
        count = upgrade_gallery(as_path("gallery", gallery), progress)
    if as_json:
        print_json({"gallery": gallery, "videos": count})
    else:
        say(f"{gallery}: {counted(count, 'video')}, upgraded")


def find_video(gallery: Gallery, name: str, *, by_file_name: bool = False) -> GalleryVideo:
    """Find a video by its id or by the path of one of its files.

    ``by_file_name``: whether a file name without its folder will do, if one video alone has it.

    Raises:
        GalleryError: The gallery has no such video.
        InvalidArgumentError: The name is empty, or several videos have it.
    """
    from xclip_deploy.errors import GalleryError, InvalidArgumentError

    if not name:
        raise InvalidArgumentError("a video is ''; expected an id of the gallery, or a file")
    # A video's id is the absolute path of its file, unless the caller chose another.
    absolute = str(Path(name).absolute())
    names = list(dict.fromkeys((name, absolute, os.path.normpath(absolute))))
    found = gallery.snapshot().find(names)
    for each in names:
        if each in found:
            return gallery.get(each)
    # Files with the same content share one video, whose id is the path of the first.
    namesakes: list[str] = []
    known: set[str] = set()
    for video in gallery.snapshot().listing():
        paths = [file.path for file in video.files]
        if any(path in names for path in paths):
            return gallery.get(video.id)
        own = {Path(path).name for path in (video.id, *paths)}
        known |= own
        if by_file_name and name in own:
            namesakes.append(video.id)
    if len(namesakes) == 1:
        return gallery.get(namesakes[0])
    if namesakes:
        raise InvalidArgumentError(
            f"{name!r} names {len(namesakes)} videos ({listed(namesakes)}); expected the path of "
            "one"
        )
    raise GalleryError(
        f"no video {name!r} in the gallery {gallery.uri}{did_you_mean(Path(name).name, known)}; "
        f"to see its videos run: xclip-deploy gallery list --gallery "
        f"{shlex.quote(str(gallery.uri))}"
    )


@contextmanager
def _opened(gallery: str) -> Iterator[Gallery]:
    from xclip_deploy.runtime.gallery import Gallery

    with waiting("opening the gallery"):
        opened = Gallery.open(gallery)
    try:
        yield opened
    finally:
        opened.close()


def _is_confirmed(count: int, gallery: str) -> bool:
    """Ask on the terminal. Raises InvalidArgumentError without a terminal."""
    from xclip_deploy.errors import InvalidArgumentError

    if sys.stdin is None or not sys.stdin.isatty():
        raise InvalidArgumentError(
            f"{counted(count, 'video')} of {gallery} match, and there is no terminal to ask "
            "on; to remove them add --yes, to list them add --dry-run"
        )
    return click.confirm(printable(f"Remove {counted(count, 'video')} from {gallery}?"), err=True)
