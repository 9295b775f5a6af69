"""The command ``xclip-deploy cut``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import print_json, say
from xclip_deploy.cli.options import Choice, Command, PathArgument, json_option
from xclip_deploy.cli.progress import waiting

if TYPE_CHECKING:
    from xclip_deploy.runtime.media import CutMode


@click.command("cut", cls=Command)
@click.argument("video", type=PathArgument())
@click.option("--from", "start", metavar="TIME", required=True, help="Begin here, as 1:02.")
@click.option("--to", "end", metavar="TIME", required=True, help="End here, as 1:10 or 1:02:03.5.")
@click.option(
    "-o",
    "--output",
    type=PathArgument(),
    help="Write this file: .mp4, .m4v, .mov, .mkv or .webm.  [default: by video and times]",
)
@click.option(
    "--mode",
    type=Choice(["exact", "copy"]),
    default="exact",
    show_default=True,
    help="Encode exactly these seconds; or copy the streams from the key frame before.",
)
@click.option("--pad", metavar="TIME", default="0", help="Add this many seconds at both ends.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@json_option
def command(
    video: Path,
    start: str,
    end: str,
    output: Path | None,
    mode: CutMode,
    pad: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Cut the seconds between two times out of VIDEO, with sound."""
    from xclip_deploy.runtime.moments import cut
    from xclip_deploy.runtime.presentation import parse_time, time_text

    start_s, end_s = parse_time("--from", start), parse_time("--to", end)
    with waiting("cutting"):
        done = cut(
            video,
            start_s,
            end_s,
            output or _default_name(video, start_s, end_s, mode),
            mode=mode,
            pad_s=parse_time("--pad", pad),
            overwrite=overwrite,
        )
    for warning in done.warnings:
        say(f"warning: {video}: {warning}", err=True)
    if as_json:
        print_json(done.to_dict())
        return
    sound = "with sound" if done.has_sound else "without sound"
    length = done.end_s - done.start_s
    say(
        f"wrote {done.path}: {time_text(done.start_s, 3)} to {time_text(done.end_s, 3)} "
        f"({length:.3f} s, {done.mode}, {sound})"
    )
    if mode == "copy":
        say(
            f"asked for {time_text(start_s, 3)} to {time_text(end_s, 3)}; a copy begins at a key "
            "frame; --mode exact cuts exactly"
        )


def _default_name(video: Path, start_s: float, end_s: float, mode: CutMode) -> Path:
    """Return a name in the current folder, such as ``talk_1.02.0-1.10.0.mp4``."""
    from xclip_deploy.runtime.moments.containers import FORMATS
    from xclip_deploy.runtime.presentation import time_text

    times = "-".join(time_text(time, 1).replace(":", ".") for time in (start_s, end_s))
    ending = ".mp4"
    if mode == "copy":  # nearly every codec fits into Matroska
        ending = video.suffix.lower() if video.suffix.lower() in FORMATS else ".mkv"
    return Path(f"{video.stem}_{times}{ending}")
