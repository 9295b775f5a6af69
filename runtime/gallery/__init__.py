"""The searchable collection of encoded videos: in memory, or in LanceDB.

A :class:`Gallery` checks its input and hands out :class:`Snapshot`, which searches read. It keeps
videos in a :class:`GalleryStore`; another database implements that protocol.
"""

from __future__ import annotations

from xclip_deploy.runtime.gallery.gallery import Gallery
from xclip_deploy.runtime.gallery.records import GalleryVideo, MetadataValue, VideoFile
from xclip_deploy.runtime.gallery.reports import GalleryStats, Rescue, Verification
from xclip_deploy.runtime.gallery.store import FeatureModel, GalleryStore, Nearest, Snapshot

__all__ = [
    "FeatureModel",
    "Gallery",
    "GalleryStats",
    "GalleryStore",
    "GalleryVideo",
    "MetadataValue",
    "Nearest",
    "Rescue",
    "Snapshot",
    "Verification",
    "VideoFile",
]
