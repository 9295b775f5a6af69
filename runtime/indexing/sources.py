"""Find the videos to index: files, folders, and lists of files with ids and metadata."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from xclip_deploy.errors import InvalidArgumentError, VideoError, VideoNotFoundError
from xclip_deploy.runtime.failures import FailedVideo
from xclip_deploy.runtime.gallery.records import MetadataValue, check_metadata
from xclip_deploy.runtime.indexing.lists import read_list
from xclip_deploy.runtime.indexing.records import SourceVideo
from xclip_deploy.runtime.video.finding import count_by_suffix, search_folder

LIST_SUFFIXES = frozenset({".txt", ".csv", ".jsonl"})
"""Endings, in lower case, of files that list videos."""


@dataclass(frozen=True)
class Sources:
    """Videos to index, and where they were looked for."""

    videos: Sequence[SourceVideo]
    """Videos found, each file once."""
    folders: tuple[str, ...] = ()
    """Folders that were given, as absolute paths. ``prune`` looks below them for missing files."""
    empty_folders: frozenset[str] = frozenset()
    """Those of ``folders`` that hold no video, such as one on a disk that is not mounted."""
    failed: tuple[FailedVideo, ...] = field(default=())
    """Files and folders that could not even be listed, and folders of files without a video."""
    passed_over: tuple[str, ...] = ()
    """Files below ``folders`` that are no videos, hidden ones apart."""


def open_sources(
    paths: Sequence[str | os.PathLike[str]],
    ids: Sequence[str] | None = None,
    metadata: Mapping[str, MetadataValue] | None = None,
    accepts: Callable[[Path], bool] = lambda _path: True,
) -> Sources:
    """Find the videos that ``paths`` name, and give them ``ids`` where there are any.

    ``metadata`` applies to every video. Metadata in a list of videos takes precedence. Raises
    MetadataError, and the errors of :func:`find_sources` and :func:`name_sources`. ``accepts`` is
    asked as :func:`find_sources` asks it.
    """
    sources = find_sources(paths, accepts) if ids is None else name_sources(paths, ids)
    return sources if metadata is None else with_metadata(sources, metadata)


def with_metadata(sources: Sources, metadata: Mapping[str, MetadataValue]) -> Sources:
    """Give every source metadata, which its own takes precedence over. Raises MetadataError."""
    check_metadata(metadata)
    videos = [
        replace(source, metadata={**metadata, **(source.metadata or {})})
        for source in sources.videos
    ]
    return replace(sources, videos=videos)


def find_sources(
    paths: Iterable[str | os.PathLike[str]],
    accepts: Callable[[Path], bool] = lambda _path: True,
) -> Sources:
    """Find the videos that ``paths`` name.

    A folder stands for the videos below it, as ``find_videos`` lists them. A folder that holds
    files, but no video, is among the failures. A ``.txt`` file
    lists files, one a line; ``#`` begins a comment line. A ``.csv`` file has a header with a
    column ``file`` or ``path`` and optionally ``id``. Its other columns are metadata. A
    ``.jsonl`` file has an object a line with the same names. Paths in a list are relative to
    the list's folder. Any other file is a video.

    ``accepts`` is asked about every link and folder below a folder, and about every file that a
    list names, but not about ``paths`` themselves. Those that it refuses are among the failures.

    A listed file need not exist; reading it then fails. Raises VideoNotFoundError for one of
    ``paths`` that does not exist, and InvalidArgumentError for a malformed list.
    """
    collected = _Collected(accepts)
    for given in paths:
        path = _absolute(given)
        if path.is_dir():
            collected.add_folder(path)
        elif not path.exists():
            raise VideoNotFoundError(f"{given}: no such file or folder; expected videos")
        elif path.suffix.lower() in LIST_SUFFIXES:
            for line, source in read_list(path):
                collected.add_listed(source, f"{path} line {line}")
        else:
            collected.add(SourceVideo(str(path)))
    return collected.sources()


def name_sources(paths: Sequence[str | os.PathLike[str]], ids: Sequence[str]) -> Sources:
    """Give each of ``paths``, which are files, the id of the same position.

    Raises VideoNotFoundError for a missing file. Raises InvalidArgumentError for a folder, and
    for ids that are no texts, not unique or not as many as ``paths``.
    """
    if isinstance(ids, str) or len(ids) != len(paths):
        raise InvalidArgumentError(f"found {len(ids)} ids for {len(paths)} paths")
    for name in ids:
        if not isinstance(name, str) or not name or not _is_utf8(name):
            raise InvalidArgumentError(f"ids must be texts and not empty; found {name!r}")
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if list(ids).count(name) > 1)
        raise InvalidArgumentError(f"ids must be unique; found {twice!r} twice")
    collected = _Collected()
    for given, name in zip(paths, ids, strict=True):
        path = _absolute(given)
        if path.is_dir():
            raise InvalidArgumentError(f"{given} is a folder; ids can only be given for files")
        if not path.exists():
            raise VideoNotFoundError(f"{given}: no such file or folder; expected videos")
        collected.add_listed(SourceVideo(str(path), name), f"id {name!r}")
    return collected.sources()


class _Collected:
    """Sources collected so far, each file once, in the order in which they were named."""

    def __init__(self, accepts: Callable[[Path], bool] = lambda _path: True) -> None:
        self._accepts = accepts
        self._videos: dict[str, SourceVideo] = {}
        self._ids: set[str] = set()
        self._folders: dict[str, bool] = {}
        self._failed: list[FailedVideo] = []
        self._passed_over: dict[str, None] = {}

    def add(self, source: SourceVideo) -> None:
        """Add a file without id or metadata."""
        if _is_utf8(source.path):
            self._videos.setdefault(source.path, source)
        else:
            name = _printable(source.path)
            self._failed.append(FailedVideo(name, f"{name}: is no UTF-8 path; rename it"))

    def add_folder(self, folder: Path) -> None:
        found = False
        others: list[str] = []
        for path in search_folder(
            folder, self._note, lambda other: others.append(str(other)), self._accepts_path
        ):
            found = True
            self.add(SourceVideo(str(path)))
        self._folders[str(folder)] = found
        self._passed_over.update(dict.fromkeys(map(_printable, others)))
        if others and not found:
            name = _printable(str(folder))
            reason = f"holds {len(others)} files and no video ({count_by_suffix(others)})"
            expected = "expected at least one video, or the paths of files"
            self._failed.append(FailedVideo(name, f"{name}: {reason}; {expected}"))

    def add_listed(self, source: SourceVideo, where: str) -> None:
        """Add a file that a list names. ``where`` is its place, for errors."""
        if not self._accepts_path(Path(source.path)):
            return
        before = self._videos.get(source.path)
        if source.id is None and source.metadata is None:
            self.add(source)
            return
        if before is not None and (before.id, before.metadata) != (None, None):
            if before != source:
                raise InvalidArgumentError(
                    f"{where}: {source.path} was named before with another id or other metadata; "
                    "expected one line for a file"
                )
            return
        if source.id is not None:
            if source.id in self._ids:
                raise InvalidArgumentError(
                    f"{where}: the id {source.id!r} was given to another file; expected one each"
                )
            self._ids.add(source.id)
        if _is_utf8(source.path):
            self._videos[source.path] = source
        else:
            self.add(source)

    def sources(self) -> Sources:
        for source in self._videos.values():
            other = self._videos.get(source.id) if source.id is not None else None
            if other is not None and other is not source and other.id is None:
                raise InvalidArgumentError(
                    f"{source.path} is given the id {source.id!r}, which is another file's path; "
                    "expected an id of its own"
                )
        return Sources(
            list(self._videos.values()),
            tuple(self._folders),
            frozenset(name for name, found in self._folders.items() if not found),
            tuple(self._failed),
            tuple(self._passed_over),
        )

    def _accepts_path(self, path: Path) -> bool:
        if self._accepts(path):
            return True
        name = _printable(str(path))
        reason = "leads out of the folders whose files can be added; expected a file below them"
        self._failed.append(FailedVideo(name, f"{name}: {reason}"))
        return False

    def _note(self, error: VideoError) -> None:
        path = str(error).split(": folder cannot")[0]
        self._failed.append(FailedVideo(_printable(path), _printable(str(error))))


def folders_above(path: str, folders: Iterable[str]) -> Iterator[str]:
    """Yield those of ``folders`` that ``path`` lies below."""
    for folder in folders:
        if path.startswith(folder if folder.endswith(os.sep) else folder + os.sep):
            yield folder


def stored_name(given: str | os.PathLike[str]) -> str:
    """Return the text by which a gallery and a report name a file or folder."""
    return _printable(str(_absolute(given)))


def _absolute(given: str | os.PathLike[str]) -> Path:
    """Return the path as it is stored: one for each file however it is named, links apart."""
    path = Path(given).absolute()
    # Behind a link, ".." leads to the folder above the link's target.
    return path.resolve() if ".." in path.parts else path


def _printable(name: str) -> str:
    """Return a name as text that can be stored: bytes that are no UTF-8 are written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _is_utf8(name: str) -> bool:
    """Tell whether a name can be stored. A file name can hold bytes that are no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
