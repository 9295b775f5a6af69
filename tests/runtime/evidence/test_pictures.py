"""Pictures of explanations, compared with small ones in ``golden/`` beside this file.

A picture that is meant to change is written anew by ``python -m pytest --regenerate-pictures``
on this file; look at it before it is committed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from drawn_explanations import coloured_frames, explanation
from PIL import Image

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.evidence import Contrast, draw_explanation
from xclip_deploy.runtime.evidence.panel import Panel
from xclip_deploy.runtime.grains import CLIP_GRAINS, PUBLISHED_GRAINS
from xclip_deploy.runtime.lettering import lettering_for, middle_cut, width_of, wrapped
from xclip_deploy.runtime.theme import PALETTES, Theme

GOLDEN = Path(__file__).parent / "golden"
QUERY = "a red square moves right, then a blue triangle grows"
LONG = "a man in a yellow jacket walks slowly across a crowded market square while two children "
SHAPES: dict[str, dict[str, Any]] = {
    "four-grains-12-frames": {"query": QUERY},
    "one-grain-12-frames": {"query": QUERY, "grains": CLIP_GRAINS},
    "four-grains-32-frames": {"query": QUERY, "frames": 32},
    "padded-frames": {"query": "a dog runs", "frames": 6, "valid": 3},
    "long-query-and-name": {
        "query": LONG * 3,
        "words": 24,
        "frames": 2,
        "path": "/srv/archive/" + "a folder with a long name/" * 6 + "video.mp4",
    },
}
_WIDTH = 320
"""Width of the compared pictures: letters are blurred, places and colours stay."""
_ALLOWED = 2.5
"""Largest mean difference of the worst tile, of 255 grey levels. Font hinting gives about 1."""
_TILE = 20


def drawn(shape: dict[str, Any], path: Path, theme: Theme = "light") -> Image.Image:
    found = explanation(**shape)
    valid = sum(frame.time_s is not None for frame in found.frames)
    draw_explanation(found, path, [coloured_frames(valid)], theme=theme)
    with Image.open(path) as image:
        return image.convert("RGB")


def reduced(image: Image.Image) -> Image.Image:
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


@pytest.mark.parametrize(
    # One dark picture tells the colours: the layout is the light one's.
    ("name", "theme"),
    [*((name, "light") for name in SHAPES), ("four-grains-12-frames", "dark")],
)
def test_pictures_look_as_before(
    name: str, theme: Theme, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = reduced(drawn(SHAPES[name], tmp_path / "a.png", theme))
    golden = GOLDEN / f"{name}-{theme}.png"
    if request.config.getoption("--regenerate-pictures"):
        GOLDEN.mkdir(exist_ok=True)
        found.save(golden, optimize=True)
    with Image.open(golden) as before:
        expected = before.convert("RGB")
    assert difference(found, expected) <= _ALLOWED, f"look at {golden} and at {tmp_path / 'a.png'}"


def test_a_change_is_seen() -> None:
    """The comparison fails for what a reader would notice, and for nothing less."""
    with Image.open(GOLDEN / "four-grains-12-frames-light.png") as image:
        golden = image.convert("RGB")
    moved = golden.copy()
    moved.paste(golden.crop((40, 40, 80, 60)), (200, 100))
    assert difference(golden, moved) > _ALLOWED
    with Image.open(GOLDEN / "four-grains-12-frames-dark.png") as image:
        assert difference(golden, image.convert("RGB")) > _ALLOWED
    noise = np.random.default_rng(0).integers(-2, 3, (golden.height, golden.width, 3))
    noisy = np.clip(np.asarray(golden, np.int64) + noise, 0, 255).astype(np.uint8)
    assert difference(golden, Image.fromarray(noisy)) < _ALLOWED


def test_a_model_with_one_grain_has_no_charts_of_words() -> None:
    """Its picture is lower and narrower: axes that would be empty are left out."""
    palette = PALETTES["light"]
    four, one = (
        Panel(explanation(QUERY, grains=grains), None, [], palette)
        for grains in (PUBLISHED_GRAINS, CLIP_GRAINS)
    )
    assert one.width < four.width
    assert one.height_at(15) < four.height_at(15)


def test_two_explanations_in_dark(tmp_path: Path) -> None:
    both = Contrast(
        explanation("a", frames=1, words=4, seed=1),
        explanation("a", frames=1, words=4, seed=2, path="b.mp4"),
    )
    draw_explanation(both, tmp_path / "a.png", theme="dark")
    with Image.open(tmp_path / "a.png") as image:
        assert image.convert("RGB").getpixel((2, 2)) == (0x16, 0x18, 0x1C)
    with pytest.raises(InvalidArgumentError, match="theme is 'blue'"):
        draw_explanation(both, tmp_path / "a.png", theme="blue")  # type: ignore[arg-type]


def test_letters_that_no_font_has_are_named() -> None:
    latin = lettering_for(["a dog", "été", "الأحمر"])
    assert latin.missing == ""
    # A private letter, which no font of this kind has.
    strange = lettering_for(["a dog \U000f1234"])
    assert strange.missing == "\U000f1234"
    assert "U+F1234" in strange.notes[0]
    assert all(not name.startswith("Last Resort") for name in strange.families)


@pytest.mark.parametrize("text", ["a " * 80, "赤い四角" * 30, "one" * 60, "", "short"])
def test_lines_are_as_wide_as_allowed(text: str) -> None:
    lines = wrapped(text, 40, 3)
    assert len(lines) <= 3
    assert max(map(width_of, lines)) <= 40
    if width_of(text.strip()) <= 40:
        assert lines == [text.strip()]
    elif width_of(text) > 120:
        assert lines[-1].endswith("…")
    assert width_of(middle_cut(text, 20)) <= 20
