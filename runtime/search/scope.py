"""The part of a gallery that a search looks into: all, what a filter leaves, or one video."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xclip_deploy.errors import GalleryError, InvalidArgumentError
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.gallery.flat import FlatVectors
from xclip_deploy.runtime.gallery.records import Rows, has_name
from xclip_deploy.runtime.gallery.store import Nearest, QueryVectors
from xclip_deploy.runtime.presentation import listed, time_text
from xclip_deploy.runtime.resident.on_device import OnDevice
from xclip_deploy.runtime.search.options import SearchOptions

_SCAN_VIDEOS = 2048
"""Videos that an exact search reads and scores at a time if they do not fit into memory."""
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"[^"]+"|`[^`]+`""")
_MAX_NAME = 4096
"""Longest name that a video is looked for by, in characters."""


@dataclass(frozen=True)
class Scope:
    """The rows of a snapshot that a search may find."""

    snapshot: Snapshot
    where: str | None
    """Filter that rows must match; None for every row."""
    rows: Rows | None = None
    """The only rows, ascending, which match all filters already; None for no such limit."""
    on_device: OnDevice | None = None
    """The snapshot on the GPU; None where it is not resident."""

    @classmethod
    def of(
        cls, snapshot: Snapshot, options: SearchOptions, on_device: OnDevice | None = None
    ) -> Scope:
        """Read the scope of a search from its options, of which ``within`` is an id.

        Raises InvalidArgumentError for a filter that cannot be parsed.
        """
        start_s, end_s = options.span_s
        where, times = options.where, _times(start_s, end_s)
        if where is not None and (times or options.within):
            _check_parentheses(snapshot, where)
        if times is not None:
            where = times if where is None else f"({times}) and ({where})"
        if options.within is None:
            return cls(snapshot, where, None, on_device)
        own = snapshot.segments([options.within]).get(options.within)
        if own is None:  # it is in another shard
            rows = np.empty(0, np.int64)
        elif where is None:
            rows = np.sort(own)
        else:
            rows = snapshot.matching(f"id = {_quoted(options.within)} and ({where})")
        return cls(snapshot, None, rows, on_device)

    def __len__(self) -> int:
        """Return how many rows an exact search scores, if no filter leaves any out."""
        return len(self.snapshot) if self.rows is None else len(self.rows)

    @property
    def ranks_on_device(self) -> bool:
        """Whether :meth:`nearest` compares rows on the GPU."""
        is_small = self.rows is not None and len(self.rows) <= _SCAN_VIDEOS
        return self.on_device is not None and self.on_device.has_products and not is_small

    @property
    def first_stage(self) -> str:
        """Place of the first stage in words, for a plan's reason; empty on the CPU."""
        if self.on_device is None or not self.ranks_on_device:
            return ""
        where = f"first stage resident on {self.on_device.device_name}"
        return where if self.on_device.scan is not None else f"{where}, as frames do not fit"

    def count(self) -> int:
        """Return how many rows the scope holds, after evaluating its filter."""
        return len(self) if self.where is None else len(self.snapshot.matching(self.where))

    def allowed_rows(self) -> Rows | None:
        """Return the rows of the scope, ascending, after evaluating its filter; None for all."""
        return self.rows if self.where is None else self.snapshot.matching(self.where)

    def parts(self) -> Iterator[tuple[Rows, VideoFeatures, bool]]:
        """Yield rows and features, and whether engines should keep them for later searches.

        These get the same object. Of a gallery that is on the GPU, no second copy is kept.
        """
        held = self.snapshot.held() if self.rows is None else None
        if held is not None and self.where is None:
            yield *held, self.on_device is None
            return
        if held is None and self.rows is None:
            for part, features in self.snapshot.scan(_SCAN_VIDEOS, self.where):
                yield part, features, False
            return
        rows = self.rows
        if rows is None:
            assert self.where is not None
            rows = self.snapshot.matching(self.where)
        for start in range(0, len(rows), _SCAN_VIDEOS):
            part = rows[start : start + _SCAN_VIDEOS]
            yield part, self.snapshot.features(part), False

    def nearest(
        self, queries: QueryVectors, limit: int, without: Rows | None = None
    ) -> list[Nearest]:
        """Return what :meth:`Snapshot.nearest` does, of the scope's rows."""
        if self.on_device is not None and self.ranks_on_device:
            allowed = self.on_device.allowed(self.allowed_rows(), without)
            return self.on_device.nearest(queries, limit, allowed)
        if self.rows is None:
            return self.snapshot.nearest(queries, limit, self.where, without)
        vectors = FlatVectors(self.rows, self.snapshot.video_features(self.rows))
        left_out = None if without is None else np.intersect1d(without, self.rows)
        return vectors.nearest(queries, limit, None, left_out)


def scope_name(options: SearchOptions) -> str:
    """Return the scope of a search in words; ``within`` is the name that the user gave."""
    what = "the gallery" if options.within is None else f"{options.within!r:.200}"
    return what + _span_text(*options.span_s)


@dataclass(frozen=True)
class Match:
    """Videos of a shard with a name that is looked for."""

    rank: int
    """Place of what matched: an id counts before a path, and a path before a file name."""
    ids: tuple[str, ...]


def names_of(name: str) -> tuple[list[str], str | None]:
    """Return the ids and paths that a name may mean, best first, and the file name, if it is one.

    No names mean that no video can have this name.
    """
    if len(name) > _MAX_NAME or name.encode(errors="replace").decode() != name:
        return [], None
    absolute = [] if "\0" in name else [str(Path(name).absolute())]
    names = list(dict.fromkeys([name, *absolute, *map(os.path.normpath, absolute)]))
    return names, None if "/" in name else name


def look_up(snapshot: Snapshot, names: Sequence[str], file_name: str | None) -> Match:
    """Look for the videos with the results of :func:`names_of`."""
    if not names:
        return Match(0, ())
    if found := snapshot.find(names):
        rank = next(n for n, each in enumerate(names) if each in found)
        return Match(rank, (names[rank],))
    videos = snapshot.named(names, file_name)
    # A path says more than a file name.
    with_path = [video for video in videos if has_name(video, names, None)]
    ids = tuple(video.id for video in with_path or videos)
    return Match(len(names) + (not with_path), ids)


def chosen(name: str, matches: Sequence[Match], num_videos: int) -> str:
    """Return the id of the one video that ``name`` means among the matches of all shards.

    Raises GalleryError for a name that no video has, InvalidArgumentError for one that several
    have.
    """
    found = [match for match in matches if match.ids]
    best = min((match.rank for match in found), default=0)
    ids = [each for match in found if match.rank == best for each in match.ids]
    if not ids:
        raise GalleryError(
            f"no video {name!r:.200} in the gallery of {num_videos}; expected an id, a path, "
            "or a file name that one video has"
        )
    if len(ids) > 1:
        raise InvalidArgumentError(
            f"{name!r:.200} names {len(ids)} videos ({listed(ids)}); expected the id of one"
        )
    return ids[0]


def find_video(snapshot: Snapshot, name: str) -> str:
    """Return the id of the video of a gallery that ``name`` means: see :func:`chosen`."""
    return chosen(name, [look_up(snapshot, *names_of(name))], snapshot.num_videos)


def _times(start_s: float, end_s: float | None) -> str | None:
    """Return the filter for rows that overlap a span; None for the span of every row.

    A row without times is a whole video: it lasts from 0 to its duration.
    """
    parts = []
    if start_s > 0:
        parts.append(f"(_end_s > {start_s!r} or _end_s is null and duration_s > {start_s!r})")
    if end_s is not None:
        parts.append(f"(_start_s < {end_s!r} or _start_s is null)")
    return " and ".join(parts) or None


def _check_parentheses(snapshot: Snapshot, where: str) -> None:
    """Refuse a filter that would end the parentheses around it. Raises InvalidArgumentError."""
    depth = 0
    for sign in _QUOTED.sub("", where):
        depth += (sign == "(") - (sign == ")")
        if depth < 0 or sign in "'\"`":
            break
    else:
        if not depth:
            return
    snapshot.matching(where)  # names the mistake


def _span_text(start_s: float, end_s: float | None) -> str:
    if start_s == 0 and end_s is None:
        return ""
    end = "" if end_s is None else f" to {time_text(end_s, 1)}"
    return f" from {time_text(start_s, 1)}{end}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
