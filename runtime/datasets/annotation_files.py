"""Find annotation files by their published names and read them as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.files import require_regular_file

MAX_BYTES = 2 * 2**30
"""Largest annotation file that is read, in bytes. The largest published one has 30 MB."""

_NAMES_SHOWN = 10


def find_annotation(folder: Path, *names: str) -> Path:
    """Find the first of several files that a folder holds.

    Args:
        folder: Folder of the annotations. Its subfolders are not searched.
        names: Published file names, the preferred one first.

    Raises:
        AnnotationError: The folder does not exist, or holds none of the files.
    """
    expected = " or ".join(names)
    try:
        found = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise AnnotationError(
            f"{folder}: {error.strerror or error}; expected a folder with {expected}"
        ) from error
    for name in names:
        if name in found:
            return folder / name
    shown = ", ".join(found[:_NAMES_SHOWN]) or "nothing"
    more = f" and {len(found) - _NAMES_SHOWN} more" if len(found) > _NAMES_SHOWN else ""
    raise AnnotationError(f"{folder} holds {shown}{more}; expected {expected}")


def read_bytes(path: Path) -> bytes:
    """Read a whole annotation file.

    Raises:
        AnnotationError: The file is missing, not regular, unreadable, empty or too large.
    """
    try:
        require_regular_file(path, "annotations", AnnotationError)
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise AnnotationError(
                f"{path} has {size} bytes; expected annotations of at most {MAX_BYTES} bytes"
            )
        content = path.read_bytes()
    except OSError as error:
        raise AnnotationError(
            f"{path}: cannot be read: {error.strerror or error}; expected annotations"
        ) from error
    if not content:
        raise AnnotationError(f"{path}: is empty (0 bytes); expected annotations")
    return content


def read_text(path: Path) -> str:
    """Read a whole annotation file as UTF-8, without a byte order mark.

    Raises:
        AnnotationError: ``read_bytes`` refuses the file, or it is not UTF-8.
    """
    content = read_bytes(path)
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"{path}: byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8; "
            f"expected UTF-8 text; if the file is Latin-1, run: "
            f"iconv -f LATIN1 -t UTF-8 {path.name}"
        ) from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines that are not blank, with their numbers, counted from 1.

    Raises:
        AnnotationError: ``read_text`` refuses the file.
    """
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    # Not splitlines(), which also cuts at characters such as U+2028 inside a sentence.
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def read_ids(path: Path) -> list[str]:
    """Read a list of video ids, one a line.

    Raises:
        AnnotationError: ``read_text`` refuses the file, an id occurs twice, or none is there.
    """
    return check_unique(
        path, [(f"line {number}", line.strip()) for number, line in read_lines(path)]
    )


def check_unique(path: Path, placed_ids: Sequence[tuple[str, str]]) -> list[str]:
    """Return the ids in their order. Refuse repetitions.

    Args:
        path: File of the ids. Messages name it.
        placed_ids: Place in the file and id. Messages name the place.

    Raises:
        AnnotationError: An id is empty or occurs twice, or there is no id.
    """
    first_seen: dict[str, str] = {}
    for place, video_id in placed_ids:
        if not video_id:
            raise AnnotationError(f"{path}: {place}: the video id is empty; expected one")
        if video_id in first_seen:
            raise AnnotationError(
                f"{path}: {place}: video {video_id} was listed before, at "
                f"{first_seen[video_id]}; expected each video once"
            )
        first_seen[video_id] = place
    if not first_seen:
        raise AnnotationError(f"{path}: lists no video; expected at least one")
    return list(first_seen)
