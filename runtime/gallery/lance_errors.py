"""LanceDB's errors as the package's own, and the error where LanceDB is not installed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from xclip_deploy.errors import (
    GalleryError,
    GalleryIntegrityError,
    MissingExtraError,
    XclipDeployError,
)

REINDEX = "xclip-deploy index VIDEOS --gallery {uri}"
_WAY_OUT = (
    "restore it from a copy or run: xclip-deploy gallery rescue --gallery {uri} "
    "--output NEW_GALLERY"
)
_ATTEMPTS = 20
_CONFLICT = "commit conflict"
"""Words of LanceDB's error for a change that another process was faster than."""
_FULL = re.compile(r"no space left|disk quota|os error (28|122)\b", re.IGNORECASE)
_REFUSED = re.compile(r"permission denied|too many open files|os error (13|24)\b", re.I)
_READ_ONLY = re.compile(r"read-only file system|permission denied|os error (1|13|30)\b", re.I)


class _Process:
    """State of this process, which tells whether LanceDB is safe to use in it."""

    has_used_lancedb = False
    is_forked = False
    """True in a process that was forked from one that had used LanceDB.

    LanceDB's threads are not there then. Its calls end the process, or hang: 12 and 1 of 30 forks.
    """


def note_use() -> None:
    """Note that LanceDB's threads are about to start in this process."""
    _Process.has_used_lancedb = True


def _note_fork() -> None:
    _Process.is_forked = _Process.has_used_lancedb


os.register_at_fork(after_in_child=_note_fork)


def require_packages(purpose: str = "a gallery on disk", *packages: str) -> None:
    """Check that packages are installed which the extra ``gallery`` brings; import none.

    Encoders and galleries in memory do without them: they weigh as much as all the rest.

    Args:
        purpose: What needs them; it begins the message.
        packages: Names to import; by default those of galleries on disk.

    Raises MissingExtraError.
    """
    for package in packages or ("pyarrow", "lancedb"):
        if not _is_installed(package):
            raise MissingExtraError(package, "gallery", purpose)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def damaged(uri: str, what: str) -> GalleryIntegrityError:
    """Make the error for a damaged gallery; it names the way out."""
    return GalleryIntegrityError(
        f"gallery {uri} cannot be read: {what}; {_WAY_OUT.format(uri=uri)}"
    )


@contextmanager
def lance_errors(uri: str, doing: str) -> Iterator[None]:
    """Translate LanceDB's errors into a GalleryError that names the gallery and the operation.

    Raises GalleryIntegrityError if a file of the gallery cannot be decoded, and GalleryError at
    once in a process that was forked from one that had used LanceDB.
    """
    if _Process.is_forked:
        raise GalleryError(
            f"gallery {uri} cannot be {doing}: this process was forked from one that had used a "
            "gallery, and LanceDB does not survive that; fork first and open galleries then, or "
            "start processes by 'spawn' or 'forkserver'"
        )
    try:
        yield
    except XclipDeployError:
        raise
    except BaseException as error:
        # Damaged files can make LanceDB's Rust code panic. A panic arrives as a BaseException
        # whose module cannot be imported.
        is_panic = type(error).__name__ == "PanicException"
        if not isinstance(error, Exception) and not is_panic:
            raise
        raise _translated(uri, doing, error) from error


def change_in_turn(change: Callable[[], None], catch_up: Callable[[], object]) -> None:
    """Make a change to a table that other processes write without a lock.

    If another one was faster, ``catch_up`` goes to the newest version, and ``change`` begins anew.
    Raises LanceDB's error of the last attempt.
    """
    for attempts_left in range(_ATTEMPTS - 1, -1, -1):
        try:
            change()
        except Exception as error:  # noqa: PERF203 - each turn is a commit
            if not attempts_left or _CONFLICT not in str(error):
                raise
            catch_up()
        else:
            return


def _translated(uri: str, doing: str, error: BaseException) -> GalleryError:
    message = " ".join(str(error).split())
    found = re.split(r", /\S+\.rs:\d+", message)[0][:300]
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_full or _FULL.search(message):
        return GalleryError(
            f"gallery {uri} cannot be {doing}: the disk is full; what was committed before stands. "
            "Make room and run the command again"
        )
    if _READ_ONLY.search(message) and doing == "written":
        return GalleryError(f"gallery {uri} cannot be written: it is read-only ({found})")
    if doing == "written":
        return GalleryError(f"gallery {uri} cannot be written ({found}); what was there stands")
    if _REFUSED.search(message):  # the files themselves may be whole
        return GalleryError(f"gallery {uri} cannot be {doing} ({found})")
    return damaged(uri, f"a file is damaged or missing ({found})")
