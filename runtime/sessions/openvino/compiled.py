"""The cache of compiled graphs, below the user's cache folder.

OpenVINO loads a damaged compiled graph without a word, and computes wrong features by it. So every
file has checksums of its content, and one that differs is compiled anew. Checksums of 32 bits find
accidents; against other users, the folder's permissions protect.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.files import replaced_file
from xclip_deploy.runtime.resources import usable_cores

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "XCLIP_DEPLOY_CACHE"
"""Environment variable with the folder of caches; empty: nothing is cached."""
_SUFFIX = ".compiled"
_HEADER_BYTES = 1 << 16
"""Size of the header, which is JSON padded with spaces. The graph begins on a page's boundary."""
_BLOCK_BYTES = 16 << 20
"""Number of bytes that one checksum covers."""
_MOST_GRAPHS = 8
_MOST_BYTES = 8 << 30
_OLD_S = 3600.0
"""Age from which no other process reads or writes a file, seconds."""


@dataclass(frozen=True)
class CompiledCache:
    """A folder with a file for each compiled graph, the most recently used ones."""

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

    @staticmethod
    def name_of(graph_sha256: str, machine: str, properties: Mapping[str, Any]) -> str:
        """Return the name of a compiled graph.

        ``machine``: version of the library and model of the CPU. ``properties``: those of the
        compilation.
        """
        key = json.dumps([graph_sha256, machine, sorted(properties.items())])
        return hashlib.sha256(key.encode()).hexdigest()[:32]

    def find(self, name: str) -> npt.NDArray[np.uint8] | None:
        """Return a compiled graph, uint8 [bytes], mapped from its file.

        Returns None where there is none, or where its content differs from its checksums.
        """
        if self.root is None or not self._is_ours():
            return None
        path = self.root / f"{name}{_SUFFIX}"
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(_HEADER_BYTES))
                # OpenVINO takes no array that is read-only. A copy-on-write map leaves the file.
                content = np.memmap(file, np.uint8, mode="c")[_HEADER_BYTES:]
            if header != _header(content):
                raise ValueError("the checksums differ")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s is damaged (%s); it is made anew", path, error)
            return None
        return content

    def put(self, name: str, compiled: memoryview) -> None:
        """Keep a compiled graph. Older ones are removed beyond 8 graphs or 8 GiB.

        Where the folder cannot be written, a warning is logged.
        """
        if self.root is None:
            return
        try:
            # Compiled graphs are run, so that nobody else may write them.
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_ours():
                return
            path = self.root / f"{name}{_SUFFIX}"
            header = json.dumps(_header(np.frombuffer(compiled, np.uint8))).encode()
            if len(header) > _HEADER_BYTES:
                return
            with replaced_file(path) as partial, partial.open("wb") as file:
                file.write(header.ljust(_HEADER_BYTES))
                file.write(compiled)
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s); graphs are compiled at every start",
                self.root,
                error.strerror,
            )
            return
        self._evict(path)

    def _is_ours(self) -> bool:
        assert self.root is not None
        with suppress(OSError):
            if self.root.stat().st_uid != os.getuid():
                logger.warning("%s belongs to another user; graphs are compiled anew", self.root)
                return False
        return True

    def _evict(self, kept: Path) -> None:
        assert self.root is not None
        with suppress(OSError):
            files = [each for each in self.root.iterdir() if each.is_file() and each != kept]
            files.sort(key=lambda each: each.stat().st_mtime, reverse=True)
            total = kept.stat().st_size
            for number, each in enumerate(files, start=2):
                total += each.stat().st_size
                is_surplus = number > _MOST_GRAPHS or total > _MOST_BYTES
                is_old = each.stat().st_mtime < time.time() - _OLD_S
                if is_old and (is_surplus or each.suffix != _SUFFIX):
                    each.unlink()


def _header(content: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return the size and the CRC-32 of every block."""
    starts = range(0, len(content), _BLOCK_BYTES)
    view = content.data
    # zlib releases the GIL.
    with ThreadPoolExecutor(min(4, usable_cores())) as pool:
        sums = pool.map(lambda start: zlib.crc32(view[start : start + _BLOCK_BYTES]), starts)
        return {"bytes": len(content), "crc32": list(sums)}
