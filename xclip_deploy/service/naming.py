"""Names of videos in requests and responses.

By default a video's id in the gallery is its absolute path, which no client needs to know. Such
an id is replaced by the video's handle, unless the service shows paths. A handle is the SHA-256
of the video's content, or the id in base64 for a video without a file.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

import numpy as np

from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.gallery import GalleryVideo, Snapshot

_CONTENT = re.compile(r"[0-9a-f]{64}")
_ENCODED = "id-"


def handle_of(video: GalleryVideo) -> str:
    """Return the name of a video in addresses: letters, digits, ``-`` and ``_``."""
    if video.content_sha256 is not None and _CONTENT.fullmatch(video.content_sha256):
        return video.content_sha256
    encoded = base64.urlsafe_b64encode(video.id.encode()).decode("ascii").rstrip("=")
    return _ENCODED + encoded


def public_id(video: GalleryVideo, *, show_paths: bool) -> str:
    """Return the id that clients see: the gallery's, or the handle in place of a path."""
    is_path = video.id.startswith("/") or any(file.path == video.id for file in video.files)
    return handle_of(video) if is_path and not show_paths else video.id


def shown_name(video: GalleryVideo) -> str:
    """Return the video's file name, or its id if it has no file."""
    return Path(video.path).name if video.path else video.id


def find_id(snapshot: Snapshot, name: str) -> str:
    """Return the id of the video with an id or handle. Raises GalleryError if there is none."""
    if snapshot.find([name]):
        return name
    if name.startswith(_ENCODED):
        try:
            text = name.removeprefix(_ENCODED)
            video_id = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
        except (binascii.Error, ValueError):
            video_id = ""
        if video_id and snapshot.find([video_id]):
            return video_id
    if _CONTENT.fullmatch(name):
        found = snapshot.find_content([name])
        if found:
            return snapshot.videos(np.array([found[name]], np.int64))[0].id
    raise GalleryError(f"no video {name!r:.200} in the gallery; expected an id or a handle")
