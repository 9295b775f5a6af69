"""Names of videos in requests and responses.

By default a video's id in the gallery is its absolute path, which no client needs to know. Such
an id is replaced by the video's handle, unless the service shows paths. A handle is the SHA-256
of the video's content. A video whose content is not known has its id in base64, or the SHA-256 of
an id that is a path.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xclip_deploy.errors import GalleryError, InvalidArgumentError
from xclip_deploy.runtime.gallery import GalleryVideo
from xclip_deploy.runtime.gallery.filters import names_in
from xclip_deploy.service.records import VideoRecords

_CONTENT = re.compile(r"[0-9a-f]{64}")
_ENCODED = "id-"
_HIDDEN = "path-"
_HASHED = re.compile(_HIDDEN + "[0-9a-f]{64}")
_PATH_COLUMNS = frozenset({"id"})
"""Columns that filters know and that hold paths."""


@dataclass(frozen=True)
class VideoNames:
    """Names of one video that clients see."""

    id: str
    """The gallery's id, or the handle in place of a path."""
    handle: str
    """Name of the video in addresses: letters, digits, ``-`` and ``_``."""
    name: str
    """File name, or the id of a video without a file."""

    @classmethod
    def of(
        cls,
        video_id: str,
        content_sha256: str | None,
        paths: Sequence[str],
        *,
        show_paths: bool,
    ) -> VideoNames:
        """Name a video by its record in the gallery. ``paths``: those of its files."""
        is_path = video_id.startswith("/") or video_id in paths
        if content_sha256 is not None and _CONTENT.fullmatch(content_sha256):
            handle = content_sha256
        elif is_path:
            handle = _HIDDEN + hashlib.sha256(video_id.encode()).hexdigest()
        else:
            encoded = base64.urlsafe_b64encode(video_id.encode()).decode("ascii").rstrip("=")
            handle = _ENCODED + encoded
        public = handle if is_path and not show_paths else video_id
        name = paths[0].rpartition("/")[2] if paths else public
        return cls(public, handle, name)


def names_of(video: GalleryVideo, *, show_paths: bool) -> VideoNames:
    """Return the names of a video of the gallery."""
    paths = [file.path for file in video.files]
    return VideoNames.of(video.id, video.content_sha256, paths, show_paths=show_paths)


def handle_of(video: GalleryVideo) -> str:
    """Return the name of a video in addresses: letters, digits, ``-`` and ``_``."""
    return names_of(video, show_paths=False).handle


def videos_with_content(records: VideoRecords, sha256: str) -> list[GalleryVideo]:
    """Return one row of every video with this content. Several ids can share one."""
    return records.videos(records.first_rows(f"fingerprint = '{sha256}'"))


def find_id(records: VideoRecords, name: str, *, show_paths: bool = False) -> str:
    """Return the id of the video with an id or handle.

    Without ``show_paths``, no path is an id: guesses would tell where files lie. Raises
    GalleryError if there is no such video, InvalidArgumentError for a handle that several share.
    """
    if (show_paths or not name.startswith("/")) and records.find([name]):
        return name
    if name.startswith(_ENCODED):
        try:
            text = name.removeprefix(_ENCODED)
            video_id = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
        except (binascii.Error, ValueError):
            video_id = ""
        found = records.find([video_id]) if video_id else {}
        videos = records.videos(np.array(list(found.values()), np.int64))
        # An id that clients do not see is no name either: guesses would tell a path.
        if videos:
            names = names_of(videos[0], show_paths=show_paths)
            if name == names.handle or video_id == names.id:
                return video_id
    if _HASHED.fullmatch(name):
        for video in records.videos(records.first_rows("fingerprint is null")):
            if handle_of(video) == name:
                return video.id
    if _CONTENT.fullmatch(name):
        ids = {video.id for video in videos_with_content(records, name)}
        if len(ids) > 1:
            raise InvalidArgumentError(
                f"{len(ids)} videos of the gallery have the content {name}; expected the id of one"
            )
        if ids:
            return ids.pop()
    raise GalleryError(f"no video {name!r:.200} in the gallery; expected an id or a handle")


def check_filter(where: str | None, *, show_paths: bool) -> None:
    """Refuse a filter over a column with paths, unless the service shows them.

    Such a filter would tell a client, guess by guess, where files lie. Raises
    InvalidArgumentError.
    """
    if where is None or show_paths:
        return
    named = sorted(_PATH_COLUMNS & names_in(where))
    if named:
        raise InvalidArgumentError(
            f"the filter names {named[0]!r}, which can hold paths of the server; expected "
            "metadata, duration_s or num_frames"
        )
