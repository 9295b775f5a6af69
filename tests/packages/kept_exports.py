"""Exports of tests' checkpoints, kept between runs for as long as the code stays the same.

An export takes half a minute of computing. Its result depends on the package's files, on the
libraries and on the checkpoint alone, and the key of a kept export covers all of them. Each run
works on a copy, so that no test can change what later runs get. ``--cache-clear`` of pytest
deletes all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
_FOLDERS = ("runtime", "training", "export", "xclip_deploy")
_NUM_KEPT = 3
"""Exports kept of each name, for instance of two branches."""


def export_or_copy(
    config: pytest.Config,
    name: str,
    inputs: Iterable[Path],
    export: Callable[[Path], object],
    folder: Path,
) -> None:
    """Fill ``folder`` by an export, or with a copy of the same export of an earlier run.

    Args:
        config: pytest's configuration. Without its cache nothing is kept.
        name: Name of the export among the kept ones.
        inputs: Files besides the package's that the export depends on.
        export: Function that fills a folder.
        folder: An empty folder.
    """
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if cache is None:
        export(folder)
        return
    exports = cache.mkdir("exports")
    kept = exports / f"{name}-{key_of(inputs)}"
    if kept.is_dir():
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        os.utime(kept)
        return
    export(folder)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=exports))
    shutil.copytree(folder, partial, dirs_exist_ok=True)
    try:
        partial.rename(kept)
    except OSError:  # another run was faster
        shutil.rmtree(partial)
    by_age = sorted(exports.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
    for old in by_age[:-_NUM_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def key_of(inputs: Iterable[Path], root: Path = REPOSITORY) -> str:
    """Return a key of all that an export depends on, in 16 hexadecimal digits."""
    digest = hashlib.sha256(sys.version.encode())
    # The folders' names hold names and versions of all that is installed.
    installed = {info.name for place in sys.path for info in Path(place).glob("*.dist-info")}
    digest.update("\n".join(sorted(installed)).encode())
    files = [
        file
        for folder in _FOLDERS
        for file in sorted((root / folder).rglob("*"))
        if file.is_file() and file.suffix != ".pyc"
    ]
    for file in (*files, *inputs):
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        digest.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]
