"""Errors of the service: their statuses, their bodies, and messages without paths.

Every response whose status is 4xx or 5xx has an :class:`ErrorBody`. Its message never carries a
path of the server; an unexpected error shows nothing of itself, and its traceback is logged.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path

from xclip_deploy import errors
from xclip_deploy.errors import MAX_MESSAGE, XclipDeployError
from xclip_deploy.runtime.presentation import printable
from xclip_deploy.wire import ErrorBody, ErrorModel

RETRY_AFTER_S = 2
"""Seconds after which a client may try again where nothing tells better."""


class Refusal(Exception):  # noqa: N818 - it is an answer, not a fault
    """A request that the service refuses by itself, with a status of its own."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        retry_after_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        """Name for programs, such as ``TooManyRequests``."""
        self.retry_after_s = retry_after_s
        """Seconds for the header ``Retry-After``; None leaves the header out."""
        self.headers = headers or {}


# Statuses of the package's errors. The first class that fits an error decides.
_STATUS: tuple[tuple[type[XclipDeployError], int], ...] = (
    (errors.InvalidArgumentError, 422),
    (errors.MissingExtraError, 501),
    (errors.VideoNotFoundError, 404),
    (errors.MomentSourceError, 409),
    (errors.VideoError, 422),
    (errors.SessionError, 503),
    (errors.EngineError, 503),
    (errors.GallerySegmentationError, 409),
    (errors.DuplicateIdError, 409),
    (errors.MetadataError, 422),
    (errors.GalleryNotFoundError, 503),
    (errors.GalleryIntegrityError, 500),
    (errors.GalleryVersionError, 503),
    (errors.GalleryModelError, 503),
    (errors.GalleryError, 404),  # a name that the gallery lacks
    (errors.ClusterError, 503),
    (errors.ServiceError, 502),  # another service, which this one was asked to use
    (errors.AnnotationError, 422),  # a list of files to index
    (errors.DatasetError, 422),
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FULL = "the disk is full"  # as the gallery's messages say it
_MISSING = re.compile(r"damaged or missing.*\bNot found\b")  # as the gallery's messages say it
_GONE = re.compile(r"\bis gone\b")


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error; 500 for one that nobody expected."""
    if isinstance(error, Refusal):
        return error.status
    if _is_full_disk(error):
        return 507
    if isinstance(error, errors.MomentSourceError):
        is_gone = isinstance(error.__cause__, FileNotFoundError) or _GONE.search(str(error))
        return 410 if is_gone else 409
    if isinstance(error, errors.GalleryIntegrityError) and _MISSING.search(str(error)):
        return 503  # another process compacted or replaced what the next refresh reads anew
    if type(error) is errors.GalleryError and error.__cause__ is not None:
        return 507 if _FULL in str(error) else 503  # its files cannot be read or written
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def _is_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        error = error.__cause__
    return False


def error_of(
    error: BaseException, request_id: str = "", folders: Sequence[Path] = ()
) -> ErrorModel:
    """Describe an error to a client.

    ``folders``: folders of the service, whose names are cut out of the message. An error that
    nobody expected shows its request id alone.
    """
    if not isinstance(error, Refusal) and _is_full_disk(error):
        kind, message = "NoRoom", "the service's disk is full; expected room, so free some"
    elif isinstance(error, Refusal | XclipDeployError):
        kind = error.kind if isinstance(error, Refusal) else type(error).__name__
        # The message is cut after its paths are, since half a path would not be recognized.
        message = shortened(redacted(Exception.__str__(error), folders))
    else:
        kind = "UnexpectedError"
        message = "the service failed; its log says why, under this request id"
    return ErrorModel(kind=kind, message=message, request_id=request_id)


def error_body(
    error: BaseException, request_id: str = "", folders: Sequence[Path] = ()
) -> ErrorBody:
    """Return the body of an error's response; see :func:`error_of`."""
    return ErrorBody(error=error_of(error, request_id, folders))


def headers_of(error: BaseException) -> dict[str, str]:
    """Return the headers of an error's response, such as ``Retry-After``."""
    headers = dict(error.headers) if isinstance(error, Refusal) else {}
    wait_s = error.retry_after_s if isinstance(error, Refusal) else None
    if wait_s is None and status_of(error) in (429, 503):
        wait_s = RETRY_AFTER_S
    if wait_s is not None:
        headers["Retry-After"] = str(max(1, round(wait_s)))
    return headers


def shortened(message: str, limit: int = MAX_MESSAGE) -> str:
    """Return a message in one printable line of ``limit`` characters, cut in the middle."""
    line = printable(" ".join(message.split()))
    half = limit // 2
    return line if len(line) <= limit else f"{line[:half]}…{line[half + 1 - limit :]}"


# A path begins at the start of a word, or after a bracket, a quote or a mark. It is absolute, below
# the home folder, a URI, or has two slashes at least.
_START = re.compile(
    r"(?:^|(?<=[\s'\"`(\[{<>=:,;|…]))"
    r"(?:[A-Za-z][A-Za-z0-9+.-]*:/+|~[^\s/]*/|\.{0,2}/|[^\s/'\"`(\[{<>=:,;]+/[^\s/'\"]+/)",
    re.MULTILINE,
)
# Within a clause, only a slash after white space is told from one within a path.
_NEXT = re.compile(r"(?<=\s)/")
# A sentence goes on after these marks; folders with such names are too rare to count.
_END = re.compile(r"[;:]\s|\n|\Z")
_CLOSING = re.compile(r"/+(?=[\s'\"`)\]}>,;:…]|\Z)")


def redacted(message: str, folders: Sequence[Path] = ()) -> str:
    """Return a message with the name of a file in place of every path.

    Folders may have spaces in their names, so everything from a path's start to the last slash of
    its clause goes. Too much may go; no folder stays. ``folders``: absolute folders, whatever
    their names, which are also found where a library writes them without the first slash.
    """
    for folder in sorted({str(folder) for folder in folders}, key=len, reverse=True):
        if below := re.escape(folder.strip("/")):
            name = Path(folder).name.replace("\\", r"\\")
            start = r"(?<![\w./-])/?" + below
            message = re.sub(start + r"/+(?=[^\s/'\"])", "/", message)
            message = re.sub(start + r"(?![\w-])/*", name, message)
    parts: list[str] = []
    position = 0
    while found := _START.search(message, position):
        parts.append(message[position : found.start()])
        limits = (_END.search(message, found.end()), _NEXT.search(message, found.end()))
        end = min(limit.start() for limit in limits if limit is not None)
        parts.append(_name(message[found.start() : end]))
        position = end
    return "".join(parts) + message[position:]


def _name(clause: str) -> str:
    """Return a clause that begins with a path from the last name of that path on."""
    before, _, rest = clause.rpartition("/")
    if _CLOSING.match(clause, len(before)):
        # The path is a folder's, with a slash at its end.
        return before.rstrip("/").rpartition("/")[2] + rest
    return rest
