"""The part of a gallery that a search looks into: all, what a filter leaves, or one video."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
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
    name: str = "the gallery"
    """The scope in words, for messages."""
    on_device: OnDevice | None = None
    """The snapshot on the GPU; None where it is not resident."""

    @classmethod
    def of(
        cls, snapshot: Snapshot, options: SearchOptions, on_device: OnDevice | None = None
    ) -> Scope:
        """Read the scope of a search from its options.

        Raises GalleryError and InvalidArgumentError as :func:`find_video` does.
        """
        start_s, end_s = options.span_s
        where, times = options.where, _times(start_s, end_s)
        if where is not None and (times or options.within):
            _check_parentheses(snapshot, where)
        if times is not None:
            where = times if where is None else f"({times}) and ({where})"
        span = _span_text(start_s, end_s)
        if options.within is None:
            return cls(snapshot, where, None, f"the gallery{span}", on_device)
        video_id = find_video(snapshot, options.within)
        name = f"{options.within!r:.200}{span}"
        if where is None:
            rows = np.sort(snapshot.segments([video_id])[video_id])
        else:
            rows = snapshot.matching(f"id = {_quoted(video_id)} and ({where})")
        return cls(snapshot, None, rows, name, on_device)

    def __len__(self) -> int:
        """Return how many rows an exact search scores, if no filter leaves any out."""
        return len(self.snapshot) if self.rows is None else len(self.rows)

    @property
    def is_part(self) -> bool:
        """Whether options limit the scope to a video or to a span of time."""
        return self.name != "the gallery"

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


def find_video(snapshot: Snapshot, name: str) -> str:
    """Return the id of the video with this id or path, or with a file name of its own.

    An id counts before a path, and a path before a file name. Raises GalleryError for a name that
    no video has, InvalidArgumentError for one that several have.
    """
    if len(name) <= _MAX_NAME and name.encode(errors="replace").decode() == name:
        absolute = [] if "\0" in name else [str(Path(name).absolute())]
        names = list(dict.fromkeys([name, *absolute, *map(os.path.normpath, absolute)]))
        if found := snapshot.find(names):
            return next(each for each in names if each in found)
        videos = snapshot.named(names, None if "/" in name else name)
        # A path says more than a file name.
        videos = [video for video in videos if has_name(video, names, None)] or videos
        if len(videos) == 1:
            return videos[0].id
        if videos:
            ids = listed([video.id for video in videos])
            raise InvalidArgumentError(
                f"{name!r:.200} names {len(videos)} videos ({ids}); expected the id of one"
            )
    raise GalleryError(
        f"no video {name!r:.200} in the gallery of {snapshot.num_videos}; expected an id, a path, "
        "or a file name that one video has"
    )


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
