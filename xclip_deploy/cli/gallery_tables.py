"""What ``xclip-deploy gallery`` prints of videos and of a whole gallery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xclip_deploy.cli.display import name_of, print_fields
from xclip_deploy.cli.table import Column, print_table
from xclip_deploy.runtime.presentation import time_text

if TYPE_CHECKING:
    from xclip_deploy.runtime.gallery import GalleryStats, GalleryVideo


def print_videos(videos: Sequence[GalleryVideo], *, wide: bool = False) -> None:
    """Print a table of videos. ``wide``: whether names and metadata are never cut."""
    rows = [
        (
            name_of(video.id),
            time_text(video.duration_s),
            ", ".join(f"{name}={value}" for name, value in video.metadata.items()),
        )
        for video in videos
    ]
    columns = (
        Column("video", least=None if wide else 20),
        Column("duration", right=True),
        Column("metadata", least=None if wide else 20),
    )
    print_table(columns, rows)


def print_video(video: GalleryVideo) -> None:
    """Print everything known about a video."""
    from datetime import datetime, timezone

    rows = [("id", video.id)]
    for file in video.files:
        facts = [] if file.size_bytes is None else [f"{file.size_bytes / 1e6:.1f} MB"]
        if file.modified_ns is not None:
            changed = datetime.fromtimestamp(file.modified_ns // 10**9, timezone.utc)
            facts.append(f"changed {changed:%Y-%m-%d %H:%M:%S} UTC")
        rows.append(("file", f"{file.path} ({', '.join(facts)})" if facts else file.path))
    if video.content_sha256 is not None:
        rows.append(("SHA-256", video.content_sha256))
    if video.duration_s is not None:
        duration = f"{time_text(video.duration_s)} ({video.duration_s:.3f} s)"
        rows.append(("duration", duration))
    times = ", ".join(time_text(time, 1) for time in video.frame_times_s)
    if video.num_segments > 1:
        rows.append(("segments", f"{video.num_segments}, {video.segmentation}"))
        times += " of the first segment"
    rows.append(("frames", f"{len(video.frame_times_s)}, at {times}"))
    rows += [("metadata", f"{name} = {value}") for name, value in video.metadata.items()]
    print_fields(rows, 14)


def print_stats(stats: GalleryStats) -> None:
    """Print the sums of a gallery."""
    rows = [
        ("gallery", stats.uri or "in memory"),
        ("videos", f"{stats.num_videos:,}"),
        ("files", f"{stats.num_files:,}"),
        ("duration", time_text(stats.total_duration_s)),
    ]
    if stats.segmentation is not None:
        rows.append(("segments", f"{stats.num_segments:,}, {stats.segmentation}"))
    if stats.size_bytes is not None:
        rows.append(("size on disk", f"{stats.size_bytes / 1e6:.1f} MB"))
    rows.append(("model", stats.fingerprint[:16]))
    rows.append(("index", "approximate" if stats.has_index else "none: every video is compared"))
    rows += [("metadata", f"{name} ({kind})") for name, kind in stats.metadata.items()]
    print_fields(rows, 14)
