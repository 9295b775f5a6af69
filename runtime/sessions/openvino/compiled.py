"""The cache of compiled graphs, below the user's cache folder.

OpenVINO loads a damaged compiled graph without a word, and computes wrong features by it. So every
folder has the SHA-256 of its files, and one that differs is compiled anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xclip_deploy.runtime.files import sha256_of

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "XCLIP_DEPLOY_CACHE"
"""Environment variable with the folder of caches; empty: nothing is cached."""
_CHECKSUMS = "checksums.json"
_PARTIAL = ".partial-"
_MOST_GRAPHS = 8
_MOST_BYTES = 8 << 30
_OLD_S = 3600.0
"""Age from which no other process reads or writes a folder, seconds."""


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

    @contextmanager
    def folder(
        self, graph_sha256: str, library_version: str, properties: Mapping[str, Any]
    ) -> Iterator[Path | None]:
        """Yield a folder in which OpenVINO finds a compiled graph, or leaves it.

        ``properties``: those of the compilation. Yields None where nothing can be cached. A new
        folder is put in place whole, after the block; older ones are removed beyond 8 graphs or
        8 GiB.
        """
        key = json.dumps([graph_sha256, library_version, sorted(properties.items())])
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        new = self._prepare(name)
        if new is None or self.root is None:
            yield None
            return
        target = self.root / name
        if new == target:
            yield target
            return
        try:
            yield new
            self._put_in_place(new, target)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        self._evict(target)

    def _prepare(self, name: str) -> Path | None:
        """Return the folder of a graph if it is whole, else a new one beside it."""
        if self.root is None:
            return None
        target = self.root / name
        try:
            # Compiled graphs are run, so that nobody else may write them.
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.root.stat().st_uid != os.getuid():
                logger.warning("%s belongs to another user; graphs are compiled anew", self.root)
                return None
            if target.is_dir():
                if _is_whole(target):
                    os.utime(target)
                    return target
                logger.warning("%s is damaged or of another release; it is made anew", target)
                shutil.rmtree(target)
            return Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.root))
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s); graphs are compiled at every start",
                self.root,
                error.strerror,
            )
            return None

    @staticmethod
    def _put_in_place(new: Path, target: Path) -> None:
        with suppress(OSError):  # no room, or another process was faster
            sums = {path.name: sha256_of(path) for path in new.iterdir()}
            (new / _CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
            new.rename(target)

    def _evict(self, kept: Path) -> None:
        assert self.root is not None
        with suppress(OSError):
            folders = [each for each in self.root.iterdir() if each.is_dir() and each != kept]
            folders.sort(key=lambda each: each.stat().st_mtime, reverse=True)
            total = 0
            for number, each in enumerate(folders, start=2):
                total += sum(file.stat().st_size for file in each.iterdir())
                is_surplus = number > _MOST_GRAPHS or total > _MOST_BYTES
                is_old = each.stat().st_mtime < time.time() - _OLD_S
                if is_old and (is_surplus or each.name.startswith(_PARTIAL)):
                    shutil.rmtree(each, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Return whether a folder holds the files that were put there, and no others."""
    try:
        expected = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
        files = [path for path in folder.iterdir() if path.name != _CHECKSUMS]
        return bool(files) and expected == {path.name: sha256_of(path) for path in files}
    except (OSError, ValueError):
        return False
