"""The cache of compiled graphs, below the user's cache folder."""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "XCLIP_DEPLOY_CACHE"
"""Environment variable with the folder of caches; empty: nothing is cached."""
_MOST_GRAPHS = 8
_MOST_BYTES = 8 << 30


@dataclass(frozen=True)
class CompiledCache:
    """A folder with a folder for each compiled graph, the most recently used ones."""

    root: Path | None
    """None caches nothing."""

    @classmethod
    def of_user(cls) -> CompiledCache:
        """Return the cache of this user: ``$XCLIP_DEPLOY_CACHE``, else ``~/.cache/xclip-deploy``.

        A folder that cannot be written is no error; graphs are then compiled at every start.
        """
        chosen = os.environ.get(CACHE_VARIABLE)
        if chosen == "":
            return cls(None)
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return cls(Path(chosen or Path(base, "xclip-deploy")).absolute() / "openvino")

    def folder(self, graph_sha256: str, library_version: str) -> Path | None:
        """Return the folder of a graph for a version of the library; None where none can be.

        Older folders are removed beyond 8 graphs or 8 GiB.
        """
        if self.root is None:
            return None
        release = "".join(
            c if c.isascii() and (c.isalnum() or c in ".-") else "_" for c in library_version
        )
        folder = self.root / f"{graph_sha256[:32]}-{release[:64]}"
        try:
            # Compiled graphs are run, so that nobody else may write them.
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            if self.root.stat().st_uid != os.getuid() or folder.stat().st_uid != os.getuid():
                logger.warning("%s belongs to another user; graphs are compiled anew", self.root)
                return None
            os.utime(folder)
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s); graphs are compiled at every start",
                self.root,
                error.strerror,
            )
            return None
        self._evict(folder)
        return folder

    def _evict(self, kept: Path) -> None:
        assert self.root is not None
        with suppress(OSError):
            folders = sorted(
                (each for each in self.root.iterdir() if each.is_dir() and each != kept),
                key=lambda each: each.stat().st_mtime,
                reverse=True,
            )
            total, hour_ago = 0, time.time() - 3600
            for number, each in enumerate(folders, start=2):
                total += sum(file.stat().st_size for file in each.iterdir())
                is_old = each.stat().st_mtime < hour_ago  # else another process may be reading it
                if is_old and (number > _MOST_GRAPHS or total > _MOST_BYTES):
                    shutil.rmtree(each, ignore_errors=True)
