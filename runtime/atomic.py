"""Putting files and directories in place whole, or not at all.

Everything is first written beside its target, on the same file system, and takes its place in
one rename. A reader never sees half of it, and an interrupted writer leaves what was there.
"""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_ASIDE = "-old"


def write_file(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step, replacing what is there.

    Raises OSError as the file system does (full, read-only, not permitted); then the old file
    stands unchanged.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise


@contextmanager
def replaced_directory(target: Path) -> Iterator[Path]:
    """Give an empty directory to fill; it takes the place of ``target`` when all went well.

    On any exception, Ctrl-C included, ``target`` stays as it was. A process that is killed
    leaves its unfinished directory (``.NAME.partial-PID-...``) beside the target; the next
    call for the same target removes it.
    """
    # Through links: the folder that a link names is replaced, not the link.
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    partial = Path(
        tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-{os.getpid()}-")
    )
    try:
        yield partial
        _sync_tree(partial)
        # mkdtemp makes it private; what stands in its place should follow the user's umask.
        partial.chmod(0o777 & ~_umask())
        if target.exists():
            _exchange(partial, target)
        else:
            partial.rename(target)
        _sync_directory(target.parent)
    finally:
        # The old directory after an exchange, or the unfinished one after an error.
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(target: Path) -> None:
    prefix = f".{target.name}.partial-"
    for candidate in target.parent.glob(f"{glob.escape(prefix)}*"):
        pid = candidate.name.removeprefix(prefix).split("-")[0]
        if not (candidate.is_dir() and pid.isdigit()) or Path(f"/proc/{pid}").exists():
            continue
        if candidate.name.endswith(_ASIDE) and not target.exists():
            candidate.rename(target)  # killed between the two renames of an exchange
        else:
            shutil.rmtree(candidate, ignore_errors=True)


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories: atomically where Linux can, else with two renames."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        names = (os.fsencode(new), os.fsencode(old))
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
    aside = new.with_name(new.name + _ASIDE)
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    aside.rename(new)


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
