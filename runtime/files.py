"""Put files and directories in place whole or not at all, and hash files.

A writer writes beside the target, on the same file system, and renames the result into its
place. A reader never sees half of it, and an interrupted writer leaves the old content. A killed
writer leaves ``.NAME.partial-…`` beside the target. The next writer of that target removes it,
unless a lock shows that its writer still lives.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path

from xclip_deploy.errors import InvalidArgumentError, XclipDeployError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_ASIDE = "-old"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_HASHED_BYTES = 1 << 20
"""Number of bytes that are read and hashed at a time."""


def require_regular_file(
    path: Path, what: str, error: type[XclipDeployError] = InvalidArgumentError
) -> None:
    """Refuse a path that leads to anything but a regular file.

    Reading a pipe or a device can wait for ever, or never end. Call this before opening a path
    that comes from outside.

    Args:
        path: The path. Links are followed.
        what: What the file should hold, such as ``a list of videos``. The message names it.
        error: Class of the error.

    Raises:
        XclipDeployError: The path leads to a folder, pipe, socket or device. The class is
            ``error``.
        OSError: The file does not exist, or its folder may not be searched.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = next((f" but {name}" for is_kind, name in _KINDS if is_kind(mode)), "")
        raise error(f"{path}: is no regular file{kind}; expected {what}")


@contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """Yield the path of an empty file to write, which takes the place of ``target`` at the end.

    On any exception, Ctrl-C included, ``target`` stays as it was. Raises OSError where the file
    system is full, read-only or forbids it.
    """
    with _partial(target, _make_file) as (partial, target):
        yield partial
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)


def replace_text(target: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all. Raises OSError where it cannot be written."""
    with replaced_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def replaced_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory to fill, which takes the place of ``target`` at the end.

    Folders above ``target`` are made. On any exception, Ctrl-C included, ``target`` stays as
    it was. Raises OSError where the file system is full, read-only or forbids it.
    """
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with _partial(target, Path.mkdir) as (partial, target):
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                _sync(path)
        _sync(partial)
        if target.exists():
            _exchange(partial, target)
        else:
            partial.rename(target)
        _sync(target.parent)


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file. Raises OSError where it cannot be read."""
    with path.open("rb", buffering=0) as file:
        return sha256_of_stream(file)


def sha256_of_stream(file: RawIOBase) -> str:
    """Return the hexadecimal SHA-256 of an unbuffered file from its position to its end."""
    digest = hashlib.sha256()
    buffer = bytearray(_HASHED_BYTES)
    view = memoryview(buffer)
    while count := file.readinto(view):
        digest.update(view[:count])
    return digest.hexdigest()


@contextmanager
def _partial(target: Path, make: Callable[[Path], None]) -> Iterator[tuple[Path, Path]]:
    """Yield a locked file or directory beside ``target``, and ``target`` with links resolved.

    At the end, whatever has the partial name is removed: unfinished content, or the old
    directory after an exchange.
    """
    # The target of a link is replaced, not the link.
    target = Path(os.path.realpath(target))
    _remove_abandoned(target)
    partial, lock = _make_locked(target, make)
    try:
        yield partial, target
    finally:
        _remove(partial)
        os.close(lock)


def _make_file(path: Path) -> None:
    path.touch(exist_ok=False)


def _make_locked(target: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    """Make a partial file or directory. Return its path and the descriptor that locks it."""
    while True:
        partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(8)}")
        make(partial)
        try:
            descriptor = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another writer took it for abandoned before it was locked ...
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if partial.exists():
            return partial, descriptor
        os.close(descriptor)  # ... or while we waited for the lock


def _remove_abandoned(target: Path) -> None:
    """Remove what killed writers left. Put back the directory that one had moved aside."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.partial-[0-9a-f]{{16}}({_ASIDE})?")
    with suppress(OSError):
        for candidate in sorted(target.parent.iterdir()):
            if pattern.fullmatch(candidate.name):
                with _no_living_writer(candidate) as is_abandoned:
                    if not is_abandoned:
                        continue
                    if candidate.name.endswith(_ASIDE) and not target.exists():
                        candidate.rename(target)  # killed between the renames of an exchange
                    else:
                        _remove(candidate)


@contextmanager
def _no_living_writer(candidate: Path) -> Iterator[bool]:
    """Yield whether the writer is gone. If so, no other can begin on its path in the block."""
    partial = candidate.with_name(candidate.name.removesuffix(_ASIDE))
    try:
        descriptor = os.open(partial, os.O_RDONLY)
    except FileNotFoundError:
        # The lock of a directory that was moved aside has moved to its target.
        yield candidate != partial
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_free = True
    except BlockingIOError:
        is_free = False
    try:
        yield is_free
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories, atomically where Linux can, else with two renames."""
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
