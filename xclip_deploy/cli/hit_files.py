"""Files that ``xclip-deploy search`` writes of its hits: cuts of videos, and a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xclip_deploy.cli.display import name_of, say

if TYPE_CHECKING:
    from xclip_deploy.runtime.media import Cut
    from xclip_deploy.runtime.moments import GridCell
    from xclip_deploy.runtime.results import SearchResult, SearchResults
    from xclip_deploy.runtime.theme import Theme

_NAME_CHARACTERS = 40
_NO_NAME = re.compile(r"[^\w.-]+")


def cut_hits(found: Sequence[tuple[str, SearchResults]], folder: Path) -> list[Cut]:
    """Cut the shown time of each hit of each query into a file of its own.

    A hit whose file is gone or changed is told on standard error and left out. Raises
    InvalidArgumentError for a folder that cannot be written, and VideoError if no hit can be cut.
    """
    from xclip_deploy.errors import InvalidArgumentError, VideoError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgumentError(f"{folder} cannot be made: {error.strerror or error}") from error
    cuts, failures = [], []
    for query, results in found:
        for hit in results:
            out = folder / _file_name(query, hit)
            try:
                cut = hit.cut(out, refined=True, overwrite=True)
            except VideoError as error:
                failures.append(error)
                say(f"not cut: {error}", err=True)
                continue
            for warning in cut.warnings:
                say(f"{out}: {warning}", err=True)
            cuts.append(cut)
    if failures and not cuts:
        raise failures[0]
    return cuts


def draw_hits(query: str, results: SearchResults, path: Path, theme: Theme) -> None:
    """Draw hits as a grid of thumbnails. Raises MissingExtraError without matplotlib."""
    from xclip_deploy.runtime.moments import plot_results

    plot_results([_cell(hit) for hit in results], path, title=query, theme=theme)


def _cell(hit: SearchResult) -> GridCell:
    from xclip_deploy.errors import MomentSourceError, VideoError
    from xclip_deploy.runtime.moments import GridCell

    start_s, end_s = _shown_time(hit)
    rgb, reason = None, ""
    try:
        rgb = hit.thumbnail()
    except VideoError as error:
        is_gone = isinstance(error, MomentSourceError)
        reason = "file gone or changed" if is_gone else "unreadable"
        say(f"no picture: {error}", err=True)
    return GridCell.of(
        rgb, hit.rank, hit.score, name_of(hit.id), start_s=start_s, end_s=end_s, reason=reason
    )


def _shown_time(hit: SearchResult) -> tuple[float, float | None]:
    if hit.range is not None:
        return hit.range.start_s, hit.range.end_s
    return hit.start_s, hit.end_s


def _file_name(query: str, hit: SearchResult) -> str:
    from xclip_deploy.runtime.presentation import time_text

    start = time_text(_shown_time(hit)[0], 1).replace(":", ".")
    video = _plain(Path(hit.path or hit.id).stem)
    return f"{_plain(query)}-{hit.rank:02}-{video}-{start}.mp4"


def _plain(text: str) -> str:
    """Return a text as part of a file name: letters, digits, dots and dashes."""
    return _NO_NAME.sub("-", text)[:_NAME_CHARACTERS].strip("-.") or "hit"
