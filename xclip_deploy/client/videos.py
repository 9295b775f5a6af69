"""Videos and images as callers name them: local files, or videos of the gallery."""

from __future__ import annotations

import base64
import io
import re
from os import PathLike, fspath
from pathlib import Path
from typing import TypeAlias

import numpy as np

from xclip_deploy.client.bodies import FilePart
from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import as_array, as_path, as_text, shown
from xclip_deploy.runtime.results import SearchResult
from xclip_deploy.runtime.video import ImageLike

_MAX_BYTES = 16_384
"""Longest text in an address, in bytes of UTF-8."""
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
Video: TypeAlias = str | PathLike[str] | SearchResult
"""A local file, or a video of the gallery: by id, handle or hit. A path object is always a file. A
text is a file where there is one of that name, else an id."""


def local_file(video: object) -> Path | None:
    """Return the local file that is meant; None for a video of the gallery."""
    if isinstance(video, SearchResult):
        return None
    if isinstance(video, PathLike):
        return as_path("video", video)
    if not isinstance(video, str):
        raise InvalidArgumentError(
            f"video is {shown(video)}; expected a local file, or an id or hit of the gallery"
        )
    try:
        return Path(video) if video and Path(video).is_file() else None
    except (OSError, ValueError):  # too long for a name of a file, or a zero byte
        return None


def name_of(argument: str, video: object) -> str:
    """Return the name that addresses a video of the gallery: of a hit, its id."""
    name = video.id if isinstance(video, SearchResult) else video
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError(
            f"{argument} is {shown(video)}; expected an id, a handle or a hit of the gallery"
        )
    return sendable(argument, name)


def sendable(argument: str, text: object) -> str:
    """Accept a text that is not empty and has a form in UTF-8. Raises InvalidArgumentError."""
    try:
        content = as_text(argument, text).encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"{argument} is {shown(text)}; expected a text of characters"
        ) from error
    if not 0 < len(content) <= _MAX_BYTES:
        raise InvalidArgumentError(
            f"{argument} has {len(content):,} bytes; expected 1 to {_MAX_BYTES:,}"
        )
    return str(text)


def address_name(name: str) -> str:
    """Return the name of a video in addresses: letters, digits, ``-`` and ``_``.

    An id may hold slashes and more, so it becomes a handle, as the service makes them.
    """
    if _PLAIN.fullmatch(name):
        return name
    return "id-" + base64.urlsafe_b64encode(name.encode()).decode("ascii").rstrip("=")


def picture_part(image: ImageLike) -> FilePart:
    """Return an image as the file of a form; arrays and Pillow's images become PNG."""
    from PIL import Image

    if isinstance(image, (str, PathLike)):
        return FilePart.of("file", fspath(image))
    if isinstance(image, np.ndarray):
        as_array("image", image, np.uint8, (None, None, 3), "uint8 RGB [height, width, 3]")
        if not image.size:
            raise InvalidArgumentError(f"image is {shown(image)}; expected at least one pixel")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InvalidArgumentError(
            f"image is {shown(image)}; expected a file, a Pillow image or uint8 RGB "
            "[height, width, 3]"
        )
    content = io.BytesIO()
    try:
        image.save(content, "PNG", exif=image.getexif())
    except (OSError, ValueError) as error:
        # PNG has no floating-point numbers, and rounding them would change the search.
        raise InvalidArgumentError(
            f"a Pillow image of mode {image.mode} cannot be sent as PNG; expected a file, or an "
            "image of 8 or 16 bits"
        ) from error
    return FilePart("file", "image.png", content.getvalue(), len(content.getvalue()))
