"""Find the videos in folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from xclip_deploy.errors import VideoNotFoundError, VideoReadError

VIDEO_SUFFIXES: frozenset[str] = frozenset(
    {
        ".3gp",
        ".asf",
        ".avi",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    }
)
"""Endings, in lower case, of the files that ``find_videos`` takes from folders."""


def find_videos(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List video files, searching folders to any depth.

    A file that is named is kept whatever its ending. From folders, files with one of
    ``VIDEO_SUFFIXES`` are taken in the order of their names. A folder's own files come before
    those of its subfolders. Hidden files and folders are passed over. Links to folders are
    followed, each folder once. A path that is found twice is listed once.

    Args:
        paths: Files and folders.

    Returns:
        The files, in the order of ``paths``. The list is empty where folders hold no video.

    Raises:
        VideoNotFoundError: One of ``paths`` does not exist.
        VideoReadError: A folder cannot be listed.
    """
    found: dict[Path, None] = {}  # in order, without repetition
    for path in map(Path, paths):
        if path.is_dir():
            found.update(dict.fromkeys(search_folder(path)))
        elif path.exists():
            found[path] = None
        else:
            raise VideoNotFoundError(f"{path}: no such file or folder; expected videos")
    return list(found)


def search_folder(
    folder: Path, on_error: Callable[[VideoReadError], None] | None = None
) -> Iterator[Path]:
    """Yield the videos below one folder, as :func:`find_videos` lists them.

    ``on_error`` is called for a folder that cannot be listed, and the search goes on. Without
    it, the error is raised.
    """

    def fail(error: OSError) -> None:
        failure = VideoReadError(f"{error.filename}: folder cannot be listed: {error.strerror}")
        if on_error is None:
            raise failure from error
        on_error(failure)

    visited: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        try:
            status = Path(root).stat()
        except OSError as error:  # gone since it was listed
            fail(error)
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in visited:  # a link back to where we have been
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(root, name)
            is_video = path.suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")
            if is_video and path.is_file():
                yield path
