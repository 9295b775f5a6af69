"""Find the videos in folders, by ending and by content."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from xclip_deploy.errors import VideoNotFoundError, VideoReadError
from xclip_deploy.runtime.video.containers import container_of, read_head

VIDEO_SUFFIXES: frozenset[str] = frozenset(
    [
        *(".264", ".265", ".3g2", ".3gp", ".3gp2", ".3gpp", ".amv", ".asf", ".avi", ".divx"),
        *(".dv", ".f4v", ".flv", ".gif", ".gxf", ".h264", ".h265", ".hevc", ".insv", ".ivf"),
        *(".lrv", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mk3d", ".mkv"),
        *(".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".ogm"),
        *(".ogv", ".qt", ".rm", ".rmvb", ".tod", ".trp", ".ts", ".vob", ".webm", ".wmv"),
        *(".wtv", ".xvid", ".y4m"),
    ]
)
"""Endings, in lower case, of files that are videos whatever their content. A damaged video is then
reported as such."""

OTHER_SUFFIXES: frozenset[str] = frozenset(
    [
        # Pictures.
        *(".arw", ".avif", ".bmp", ".cr2", ".dng", ".exr", ".heic", ".heif", ".hdr", ".ico"),
        *(".jfif", ".jp2", ".jpeg", ".jpg", ".jxl", ".nef", ".png", ".psd", ".raw", ".svg"),
        *(".tga", ".thm", ".tif", ".tiff", ".webp", ".xcf"),
        # Sound.
        *(".aac", ".ac3", ".aif", ".aiff", ".amr", ".ape", ".flac", ".m4a", ".m4b", ".mid"),
        *(".mka", ".mp3", ".oga", ".opus", ".wav", ".wma"),
        # Texts, tables and subtitles.
        *(".ass", ".c", ".cfg", ".cpp", ".css", ".csv", ".doc", ".docx", ".h", ".htm", ".html"),
        *(".idx", ".ini", ".ipynb", ".js", ".json", ".jsonl", ".log", ".lrc", ".md", ".nfo"),
        *(".pdf", ".ppt", ".pptx", ".py", ".rst", ".rtf", ".sbv", ".sh", ".srt", ".ssa", ".sub"),
        *(".toml", ".tsv", ".txt", ".vtt", ".xls", ".xlsx", ".xml", ".yaml", ".yml"),
        # Playlists.
        *(".asx", ".cue", ".ffconcat", ".m3u", ".m3u8", ".mpd", ".pls", ".sdp", ".smil", ".xspf"),
        # Archives, arrays, models and databases.
        *(".7z", ".arrow", ".bz2", ".db", ".gz", ".h5", ".hdf5", ".lance", ".npy", ".npz"),
        *(".onnx", ".parquet", ".pickle", ".pkl", ".pt", ".pth", ".rar", ".safetensors"),
        *(".sqlite", ".tar", ".tgz", ".xz", ".zip", ".zst"),
        # Programs, links, and files that are still being written.
        *(".crdownload", ".dll", ".exe", ".lnk", ".part", ".pyc", ".so", ".tmp", ".torrent"),
        *(".url", ".ytdl"),
    ]
)
"""Endings, in lower case, of files that are no videos whatever their content."""


def find_videos(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List video files, searching folders to any depth.

    A file that is named is kept whatever it is. From folders, files are taken that
    :func:`is_video` accepts, in the order of their names. A folder's own files come before
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
    folder: Path,
    on_error: Callable[[VideoReadError], None] | None = None,
    on_other: Callable[[Path], None] | None = None,
    accepts: Callable[[Path], bool] = lambda _path: True,
) -> Iterator[Path]:
    """Yield the videos below one folder, as :func:`find_videos` lists them.

    ``on_error`` is called for a folder that cannot be listed, and the search goes on. Without
    it, the error is raised. ``on_other`` is called for every file that is no video, hidden ones
    apart. ``accepts`` is asked as :func:`walk_files` asks it.
    """
    for path in walk_files(folder, on_error, accepts):
        if is_video(path):
            yield path
        elif on_other is not None:
            on_other(path)


def walk_files(
    folder: Path,
    on_error: Callable[[VideoReadError], None] | None = None,
    accepts: Callable[[Path], bool] = lambda _path: True,
) -> Iterator[Path]:
    """Yield everything below one folder but folders and hidden files, in the order of names.

    ``accepts`` is asked about every folder and every link; those that it refuses are passed over.
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
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and accepts(Path(root, name))
        )
        for name in sorted(files):
            path = Path(root, name)
            if not name.startswith(".") and (not path.is_symlink() or accepts(path)):
                yield path


def is_video(path: Path) -> bool:
    """Tell whether a file of a folder is a video: by its ending, else by its content.

    Files with one of :data:`VIDEO_SUFFIXES` are videos, files with one of :data:`OTHER_SUFFIXES`
    are none. Any other is a video where it begins as a container of video. A pipe, a device,
    a broken link and an unreadable file are none.
    """
    if is_known_other(path) or not path.is_file():
        return False
    return suffix_of(path.name) in VIDEO_SUFFIXES or begins_as_video(path)


def is_known_other(path: str | os.PathLike[str]) -> bool:
    """Tell whether the ending of a file says that it is no video."""
    return suffix_of(os.path.basename(path)) in OTHER_SUFFIXES  # noqa: PTH119


def begins_as_video(path: Path) -> bool:
    """Tell whether a regular file begins as a container of video."""
    try:
        return container_of(read_head(path)) is not None
    except OSError:
        return False


def suffix_of(name: str) -> str:
    """Return the ending of a file name in lower case: ``.mp4``, ``.`` or an empty text."""
    # Unlike Path.suffix, which tells a bare dot at the end in some versions of Python alone.
    stem, dot, ending = name.rpartition(".")
    return (dot + ending).lower() if stem else ""


def count_by_suffix(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Describe files by their endings, most frequent first: ``3 .txt, 1 without ending``."""
    counts = Counter(suffix_of(os.path.basename(path)) for path in paths)  # noqa: PTH119
    first = counts.most_common(5)
    shown = [f"{count} {suffix[:20] or 'without ending'}" for suffix, count in first]
    others = sum(counts.values()) - sum(count for _, count in first)
    return ", ".join([*shown, *([f"{others} others"] if others else [])])
