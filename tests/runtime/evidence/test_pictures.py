"""Pictures of explanations, compared with small ones in ``golden/`` beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared_pictures import ALLOWED, assert_as_before, difference, opened
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


def draw(shape: dict[str, Any], path: Path, theme: Theme = "light") -> None:
    found = explanation(**shape)
    valid = sum(frame.time_s is not None for frame in found.frames)
    draw_explanation(found, path, [coloured_frames(valid)], theme=theme)


@pytest.mark.parametrize(
    # One dark picture tells the colours: the layout is the light one's.
    ("name", "theme"),
    [*((name, "light") for name in SHAPES), ("four-grains-12-frames", "dark")],
)
def test_pictures_look_as_before(
    name: str, theme: Theme, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    draw(SHAPES[name], tmp_path / "a.png", theme)
    regenerate = request.config.getoption("--regenerate-pictures")
    golden = GOLDEN / f"{name}-{theme}.png"
    assert_as_before(tmp_path / "a.png", golden, regenerate=regenerate)


def test_a_change_is_seen() -> None:
    """The comparison fails for what a reader would notice, and for nothing less."""
    golden = opened(GOLDEN / "four-grains-12-frames-light.png")
    moved = golden.copy()
    moved.paste(golden.crop((40, 40, 80, 60)), (200, 100))
    assert difference(golden, moved) > ALLOWED
    assert difference(golden, opened(GOLDEN / "four-grains-12-frames-dark.png")) > ALLOWED
    noise = np.random.default_rng(0).integers(-2, 3, (golden.height, golden.width, 3))
    noisy = np.clip(np.asarray(golden, np.int64) + noise, 0, 255).astype(np.uint8)
    assert difference(golden, Image.fromarray(noisy)) < ALLOWED


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
