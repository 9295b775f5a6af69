"""Find a folder's video files by the names that annotations give them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from xclip_deploy.errors import AmbiguousVideoError, VideoNotFoundError
from xclip_deploy.runtime.video.finding import (
    VIDEO_SUFFIXES,
    begins_as_video,
    is_known_other,
    suffix_of,
    walk_files,
)

_ENDINGS = VIDEO_SUFFIXES | {"."}
"""Endings of videos. DiDeMo publishes some names that end in a bare dot."""


class VideoFiles:
    """Videos of a folder and its subfolders, listed once."""

    def __init__(self, folder: Path) -> None:
        """List a folder.

        Args:
            folder: Folder that is searched to any depth, hidden files and folders apart.

        Raises:
            VideoNotFoundError: The folder does not exist.
            VideoReadError: It, or a folder in it, cannot be listed.
        """
        if folder.exists() and not folder.is_dir():
            raise VideoNotFoundError(f"{folder}: is a file; expected a folder of videos")
        self.folder = folder
        self._by_path: dict[str, list[Path]] = defaultdict(list)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._unknown: dict[str, list[Path]] = defaultdict(list)
        self.count = 0
        if not folder.exists():
            raise VideoNotFoundError(f"{folder}: no such file or folder; expected videos")
        for path in walk_files(folder):
            if is_known_other(path) or not path.is_file():
                continue
            relative = PurePosixPath(path.relative_to(folder).as_posix())
            self._by_path[str(relative)].append(path)
            self._by_name[relative.name].append(path)
            suffix = suffix_of(path.name)
            by_stem = self._by_stem if suffix in _ENDINGS else self._unknown
            for name in {relative.name, str(relative)}:
                by_stem[name[: len(name) - len(suffix)]].append(path)
            self.count += suffix in _ENDINGS

    def named(self, names: Iterable[str]) -> Path | None:
        """Find the file that has one of these names in full, ending included.

        Args:
            names: Names, or paths below the folder. A path is tried before a name.

        Raises:
            AmbiguousVideoError: Several files, in different folders, have these names.
        """
        spellings = [PurePosixPath(name).as_posix() for name in names]
        return self._one(self._by_path, spellings) or self._one(self._by_name, spellings)

    def find(self, names: Iterable[str]) -> Path | None:
        """Find the file of a video that goes by one of these names.

        A file with the name in full is taken before one that differs in its ending: for
        ``a.mov`` that is ``a.mov`` first, then ``a.mov.mp4`` or ``a.mp4``. The text after the
        last dot of a name counts as an ending only where it is a video's or empty. Last come
        files of unknown endings whose content begins as a video.

        Raises:
            AmbiguousVideoError: Several files match equally well.
        """
        names = list(names)
        spellings = [PurePosixPath(name).as_posix() for name in names]
        spellings += [without_video_suffix(name) for name in spellings]
        found = self.named(names) or self._one(self._by_stem, spellings)
        if found is not None or self._unknown.keys().isdisjoint(spellings):
            return found
        videos = {
            name: [path for path in self._unknown.get(name, ()) if begins_as_video(path)]
            for name in spellings
        }
        return self._one(videos, spellings)

    def _one(self, index: Mapping[str, list[Path]], names: Iterable[str]) -> Path | None:
        found = list(dict.fromkeys(path for name in names for path in index.get(name, ())))
        different: dict[Path, Path] = {}
        if len(found) > 1:
            for path in found:  # links to one file are that file
                different.setdefault(path.resolve(), path)
        if len(different) > 1:
            first, second, *_ = different.values()
            raise AmbiguousVideoError(
                f"{first} and {second} both match {next(iter(names))}; expected one file "
                "for each video; rename or move one of them"
            )
        return found[0] if found else None


def without_video_suffix(name: str) -> str:
    """Strip a video's ending. Other dots stay: ids such as LSMDC's hold them."""
    suffix = suffix_of(PurePosixPath(name).name)
    return name[: len(name) - len(suffix)] if suffix in _ENDINGS else name
