"""Folders whose files may be added by path, and the check that a path lies below one.

A path is judged by where it leads, not by how it is written: ``..`` and links at any level are
followed first. What lies outside is refused with one answer, whether or not it exists, so that
nobody can look around by asking. Names are compared letter for letter; a name that differs in case
is another name. Nothing is decoded: ``%2e`` and ``~`` are plain characters.

Between this check and the reading, somebody who can write to an allowed folder may replace a file
by a link. The decoder processes therefore ask again (``MediaPolicy.within``), whenever they open
the file and once they have read it. A link that comes and goes between two of these looks is not
noticed; only users who may write to the folder can make one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from xclip_deploy.errors import InvalidArgumentError, VideoNotFoundError, VideoReadError
from xclip_deploy.service.errors import Refusal

MAX_PATH_BYTES = 4096
"""Longest path, as Linux has it."""


class AllowedRoots:
    """Folders whose files may be added by path."""

    def __init__(self, roots: Sequence[Path], excluded: Sequence[Path] = ()) -> None:
        """Resolve the folders once. Raises InvalidArgumentError for one that is no folder.

        ``excluded``: folders whose files are never added, such as the service's own.
        """
        self._roots: dict[str, Path] = {}
        for root in roots:
            if not root.is_dir():
                raise InvalidArgumentError(
                    f"{root}: is no folder; expected a folder whose files may be added"
                )
            self._roots.setdefault(os.path.realpath(root), root.absolute())
        self._excluded = tuple(os.path.realpath(folder) for folder in excluded)

    def __bool__(self) -> bool:
        """Tell whether there is any folder."""
        return bool(self._roots)

    @property
    def real(self) -> tuple[str, ...]:
        """The folders, free of links."""
        return tuple(self._roots)

    def locate(self, text: str) -> Path:
        """Return the file or folder that a client names, below the folder as it was given.

        ``text`` is absolute or relative to one of the folders. The result has no link below that
        folder.

        Raises:
            Refusal: The path leads out of the folders (403).
            VideoNotFoundError: There is nothing at it.
            VideoReadError: It is neither a file nor a folder, such as a pipe.
            InvalidArgumentError: It is no possible path.
        """
        _check_text(text)
        candidates = (
            [text] if text.startswith("/") else [os.path.join(root, text) for root in self._roots]  # noqa: PTH118
        )
        reals = [os.path.realpath(path) for path in candidates]
        if not reals or not all(map(self._root_of, reals)):
            raise Refusal(
                403,
                "PathNotAllowed",
                f"{_shown(text)!r} is not below a folder whose files may be added; expected one "
                "that is",
            )
        found = next((real for real in reals if os.path.lexists(real)), None)
        if found is None:
            raise VideoNotFoundError(f"{_shown(text)}: no such file or folder; expected videos")
        try:
            mode = Path(found).stat().st_mode
        except OSError as error:  # a circle of links, or no permission
            raise VideoReadError(
                f"{_shown(text)}: cannot be read: {error.strerror or error}"
            ) from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise VideoReadError(f"{_shown(text)}: is no regular file; expected a video or folder")
        root = self._root_of(found)
        assert root is not None
        return self._roots[root] / os.path.relpath(found, root)

    def holds(self, path: Path) -> bool:
        """Tell whether a file or folder, its links followed, lies in one of the folders."""
        return self._root_of(os.path.realpath(path)) is not None

    def _root_of(self, real: str) -> str | None:
        """Return the innermost folder that a path without links lies in."""
        if any(_is_in(real, folder) for folder in self._excluded):
            return None
        return max((root for root in self._roots if _is_in(real, root)), key=len, default=None)


def _is_in(real: str, folder: str) -> bool:
    return real == folder or real.startswith(folder.rstrip("/") + "/")


def _check_text(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgumentError("a path is no text in UTF-8; expected one that is") from error
    if not text or "\0" in text or size > MAX_PATH_BYTES:
        raise InvalidArgumentError(
            f"a path has {size} bytes or a NUL; expected 1 to {MAX_PATH_BYTES} bytes without one"
        )


def _shown(text: str) -> str:
    """Return the last name of a path, as a message shows it."""
    return text.rstrip("/").rpartition("/")[2][:200] or "/"
