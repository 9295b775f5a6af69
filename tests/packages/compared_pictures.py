"""Pictures compared with golden ones, by what a reader would notice.

A picture that is meant to change is written anew by ``python -m pytest --regenerate-pictures``
on its test file; look at it before it is committed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

_WIDTH = 320
"""Width of the compared pictures: letters are blurred, places and colours stay."""
ALLOWED = 2.5
"""Largest mean difference of the worst tile, of 255 grey levels. Font hinting gives about 1."""
_TILE = 20


def opened(path: Path) -> Image.Image:
    """Read a picture as RGB."""
    image: Image.Image
    with Image.open(path) as image:
        return image.convert("RGB")


def reduced(image: Image.Image) -> Image.Image:
    """Return the picture in the size in which pictures are compared and kept."""
    height = round(image.height * _WIDTH / image.width)
    return image.convert("RGB").resize((_WIDTH, height), Image.Resampling.BOX)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the largest mean difference of a tile, of slightly blurred pictures."""
    if one.size != other.size:
        return 255.0
    pictures: list[npt.NDArray[np.float64]] = []
    for image in (one, other):
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        pictures.append(np.asarray(half, np.float64))
    apart = np.abs(pictures[0] - pictures[1]).mean(axis=2)
    side = _TILE // 2
    tiles = [
        apart[top : top + side, left : left + side].mean()
        for top in range(0, apart.shape[0], side)
        for left in range(0, apart.shape[1], side)
    ]
    return float(max(tiles))


def assert_as_before(drawn: Path, golden: Path, *, regenerate: bool) -> None:
    """Compare a picture with its golden one, which ``regenerate`` writes first."""
    found = reduced(opened(drawn))
    if regenerate:
        golden.parent.mkdir(exist_ok=True)
        found.save(golden, optimize=True)
    assert difference(found, opened(golden)) <= ALLOWED, f"look at {golden} and at {drawn}"
