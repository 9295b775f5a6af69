"""File names that clients give, made safe for a disk and for people's eyes."""

from __future__ import annotations

import unicodedata

from xclip_deploy.service.errors import Refusal

MAX_GIVEN_BYTES = 1024
"""Longest name that a client may give."""
MAX_NAME_BYTES = 200
"""Longest name in the store; longer ones are cut before their ending."""
_MAX_SUFFIX = 16
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode's categories of characters that are not seen, such as those that turn a text around."""


def safe_name(given: str) -> str:
    """Return a name without folders, hidden characters and dots at its start.

    Other characters stay as they are, so that people recognize their file. Raises Refusal (413) for
    a name of more than :data:`MAX_GIVEN_BYTES`.
    """
    size = len(given.encode("utf-8", "replace"))
    if size > MAX_GIVEN_BYTES:
        raise Refusal(
            413,
            "TooLarge",
            f"a file's name has {size} bytes; expected {MAX_GIVEN_BYTES} at most",
        )
    last = given.replace("\\", "/").rpartition("/")[2]
    seen = "".join(
        character
        for character in unicodedata.normalize("NFC", last)
        if unicodedata.category(character) not in _HIDDEN
    )
    name = seen.strip().lstrip(".").strip() or "video"
    return _cut(name)


def _cut(name: str) -> str:
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    stem, dot, suffix = name.rpartition(".")
    if not dot or len(suffix) > _MAX_SUFFIX:
        stem, suffix = name, ""
    room = MAX_NAME_BYTES - len((dot + suffix).encode() if suffix else b"")
    kept = stem.encode()[:room].decode("utf-8", "ignore").rstrip()
    return f"{kept}.{suffix}" if suffix else kept
