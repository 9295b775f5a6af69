"""Match annotated videos with the files of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xclip_deploy.errors import AmbiguousVideoError, MissingVideosError
from xclip_deploy.runtime.datasets.captions import enumerate_ids
from xclip_deploy.runtime.datasets.split import AnnotatedVideo, Split, SplitVideo
from xclip_deploy.runtime.datasets.video_files import VideoFiles, without_video_suffix


def match_videos(
    name: str, annotated: Sequence[AnnotatedVideo], folder: Path, *, max_missing_share: float
) -> Split:
    """Find the file of each annotated video and leave out videos without one.

    Args:
        name: Name of the split, for people.
        annotated: Videos as the annotations describe them, each id once.
        folder: Folder of the videos, searched at any depth.
        max_missing_share: Largest share of videos that may be left out, 0 to 1.

    Raises:
        VideoNotFoundError: The folder does not exist.
        VideoReadError: It, or a folder in it, cannot be listed.
        AmbiguousVideoError: Several files match one video, or one file matches several.
        MissingVideosError: More videos than allowed, or all, have no file.
    """
    files = VideoFiles(folder)
    paths = _match(annotated, files)
    missing = tuple(video.id for video in annotated if video.id not in paths)
    if missing and (not paths or len(missing) / len(annotated) > max_missing_share):
        raise MissingVideosError(
            f"{name}: {len(missing)} of {len(annotated)} videos "
            f"({len(missing) / len(annotated):.1%}) have no file among the {files.count} videos "
            f"in {folder}: {enumerate_ids(missing)}; expected at most "
            f"{max_missing_share:.1%} (max_missing_share) without, and at least one with",
            missing,
        )
    kept = [video for video in annotated if video.id in paths]
    counts = [len(video.captions) for video in kept]
    return Split(
        name=name,
        videos=tuple(SplitVideo(video.id, paths[video.id], video.end_s) for video in kept),
        captions=tuple(caption for video in kept for caption in video.captions),
        video_of_caption=np.repeat(np.arange(len(kept), dtype=np.int64), counts),
        missing=missing,
    )


def _match(annotated: Sequence[AnnotatedVideo], files: VideoFiles) -> dict[str, Path]:
    """Return the file of each video that has one, by id."""
    named = {video.id: files.named((video.id, *video.other_names)) for video in annotated}
    owner = {path: video_id for video_id, path in named.items() if path}
    paths: dict[str, Path] = {}
    claimed: dict[Path, str] = {}
    for video in annotated:
        path = named[video.id] or files.find((video.id, *video.other_names))
        if path is None:
            continue
        # With a.mov and a.mp4 annotated and only a.mp4 there, a.mov is missing.
        is_in_full = without_video_suffix(video.id) != video.id
        if is_in_full and owner.get(path, video.id) != video.id:
            continue
        if path in claimed:
            raise AmbiguousVideoError(
                f"{path} matches both {claimed[path]} and {video.id}; "
                "expected a file of its own for each video"
            )
        paths[video.id] = path
        claimed[path] = video.id
    return paths
