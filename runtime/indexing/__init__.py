"""Keeping a gallery up to date with videos on disk.

Files are found (``sources``), read in processes of their own (``decoding``, ``processes``,
``worker``), encoded in batches and committed (``indexer``, ``committing``, ``edit``).
"""

from __future__ import annotations

from xclip_deploy.runtime.indexing.indexer import (
    Indexer,
    IndexSettings,
    OnDuplicate,
    Progress,
)
from xclip_deploy.runtime.indexing.indexing import index_videos
from xclip_deploy.runtime.indexing.report import IndexReport
from xclip_deploy.runtime.indexing.sources import (
    Sources,
    SourceVideo,
    find_sources,
    name_sources,
)

__all__ = [
    "IndexReport",
    "IndexSettings",
    "Indexer",
    "OnDuplicate",
    "Progress",
    "SourceVideo",
    "Sources",
    "find_sources",
    "index_videos",
    "name_sources",
]
