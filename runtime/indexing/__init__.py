"""Keep a gallery up to date with videos on disk.

A run takes each file through five stages: ``sources`` finds it, ``planning`` decides whether it
must be read, a pool of decoders reads it, the caller's encoder embeds it, and ``committing`` writes
it to the gallery. ``indexer`` drives the stages; ``records`` defines the records between them.
"""

from __future__ import annotations

from xclip_deploy.runtime.indexing.adding import (
    add_sources,
    add_videos,
    choose_segmentation,
    estimate_videos,
)
from xclip_deploy.runtime.indexing.estimating import IndexEstimate
from xclip_deploy.runtime.indexing.indexer import IndexRun, IndexSettings
from xclip_deploy.runtime.indexing.planning import warn_of_older_readings
from xclip_deploy.runtime.indexing.records import OnDuplicate, SourceVideo, Task
from xclip_deploy.runtime.indexing.report import IndexReport
from xclip_deploy.runtime.indexing.sources import (
    Sources,
    find_sources,
    name_sources,
    open_sources,
    with_metadata,
)

__all__ = [
    "IndexEstimate",
    "IndexReport",
    "IndexRun",
    "IndexSettings",
    "OnDuplicate",
    "SourceVideo",
    "Sources",
    "Task",
    "add_sources",
    "add_videos",
    "choose_segmentation",
    "estimate_videos",
    "find_sources",
    "name_sources",
    "open_sources",
    "warn_of_older_readings",
    "with_metadata",
]
