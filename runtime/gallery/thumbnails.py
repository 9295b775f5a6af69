"""Small pictures of segments, in files beside a gallery's table.

A thumbnail is named by the content of its video and the start of its segment. Equal content
therefore shares one, and a gallery that is opened reads none. Thumbnails can be made again from
the videos: that none can be written costs a warning, never an indexing.
"""

from __future__ import annotations

import io
import re
import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import as_array, as_number, as_path

THUMBNAIL_SIDE = 256
"""Longer side of a thumbnail, pixels."""
_QUALITY = 75
_KEY = re.compile(r"([0-9a-f]{64})-([0-9]{1,12})")
_UNFINISHED = ".partial-"
_ABANDONED_S = 3600.0  # an unfinished file this old has lost its writer


def thumbnail_key(content_sha256: str, start_s: float) -> str:
    """Return the key of a segment's thumbnail: the video's content and the start in ms.

    Raises InvalidArgumentError for a text that is no SHA-256, or a negative start.
    """
    milliseconds = round(1000 * as_number("start_s", start_s, 0, 1e9))
    return _checked(f"{content_sha256}-{milliseconds}")


class ThumbnailStore:
    """Folder of WebP files, at most one a segment. Many processes can write at a time."""

    def __init__(self, directory: str | PathLike[str]) -> None:
        """Use a folder, which is made for the first thumbnail."""
        self.directory = as_path("directory", directory)
        self.warning: str | None = None
        """Why thumbnails are missing; None while all were written. It is set once."""

    def put(self, key: str, rgb: NDArray[np.uint8]) -> bool:
        """Write a thumbnail, unless there is one.

        After the first failure nothing more is written, and :attr:`warning` says why.

        Args:
            key: Result of :func:`thumbnail_key`.
            rgb: Picture, uint8 ``[height, width, 3]``. It is made smaller, never larger.

        Returns:
            Whether the thumbnail is there now.

        Raises:
            InvalidArgumentError: ``key`` or ``rgb`` is of another form.
        """
        path = self._path(key)
        as_array("rgb", rgb, np.uint8, (None, None, 3), "uint8 [height, width, 3]")
        if self.warning is not None:
            return False
        try:
            if path.exists():
                return True
            content = _as_webp(rgb)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, content)
        except OSError as error:
            reason = error.strerror or str(error)
            self.warning = (
                f"thumbnails are missing from here on: {self.directory} cannot be written "
                f"({reason}); searching works without them"
            )
            return False
        return True

    def get(self, key: str) -> Path | None:
        """Return the file of a thumbnail; None if there is none."""
        path = self._path(key)
        try:
            # A file that a crash of the machine left empty is none.
            return path if path.stat().st_size > 0 else None
        except OSError:
            return None

    def read(self, key: str) -> NDArray[np.uint8] | None:
        """Return a thumbnail, uint8 RGB ``[height, width, 3]``; None if none is there, whole."""
        from PIL import Image, UnidentifiedImageError

        path = self.get(key)
        if path is None:
            return None
        try:
            with Image.open(path, formats=("WEBP",)) as image:
                if max(image.size) > THUMBNAIL_SIDE:
                    return None  # not one of ours
                return np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, ValueError):
            return None

    def keys(self) -> Iterator[str]:
        """List the keys of all thumbnails, in no order."""
        for path in self._files():
            if _KEY.fullmatch(path.stem) and path.suffix == ".webp":
                yield path.stem

    def keep(self, keys: Collection[str], older_than_s: float = 0.0) -> int:
        """Remove the thumbnails whose keys are not among ``keys``, and what killed writers left.

        Args:
            keys: Those of all rows.
            older_than_s: Younger thumbnails stay: another process may commit their rows later.

        Returns:
            Number of thumbnails that were removed. Files that cannot be removed stay.
        """
        kept = frozenset(keys)
        removed = 0
        for path in self._files():
            with suppress(OSError):
                if path.name.startswith(_UNFINISHED):
                    if time.time() - path.stat().st_mtime > _ABANDONED_S:
                        path.unlink()
                elif (
                    _KEY.fullmatch(path.stem)
                    and path.stem not in kept
                    and time.time() - path.stat().st_mtime >= older_than_s
                ):
                    path.unlink()
                    removed += 1
        for folder in self._folders():
            with suppress(OSError):  # it still holds some
                folder.rmdir()
        return removed

    def size_bytes(self) -> int:
        """Return the bytes of all thumbnails."""
        total = 0
        for path in self._files():
            with suppress(OSError):
                total += path.stat().st_size
        return total

    def _path(self, key: str) -> Path:
        # 4,096 folders keep each small, also with millions of segments.
        return self.directory / _checked(key)[:3] / f"{key}.webp"

    def _folders(self) -> Iterator[Path]:
        with suppress(OSError):
            yield from [path for path in self.directory.iterdir() if path.is_dir()]

    def _files(self) -> Iterator[Path]:
        for folder in self._folders():
            with suppress(OSError):
                yield from list(folder.iterdir())

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        """Put a file in place whole or not at all.

        It is not forced to the disk, which would cost more than the thumbnail is worth.
        """
        partial = path.with_name(f"{_UNFINISHED}{secrets.token_hex(8)}")
        try:
            with partial.open("xb") as file:
                file.write(content)
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


def _checked(key: str) -> str:
    # A key becomes the name of a file, so nothing else may stand in it.
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidArgumentError(
            f"the thumbnail's key is {key!r:.100}; expected a SHA-256 in hexadecimal, a dash and "
            "milliseconds"
        )
    return key


def _as_webp(rgb: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(rgb))
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=_QUALITY, method=4)
    return content.getvalue()
