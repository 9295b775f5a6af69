"""Display matrices: every turn and mirror that a track header can ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crafted_files import Linear, with_matrix
from numpy.typing import NDArray

from xclip_deploy.runtime.video import FrameSampling, read_video

SAMPLING = FrameSampling(max_frames=2)
Picture = NDArray[np.uint8]

IDENTITY = (1, 0, 0, 1)
# Matrix (a, b, c, d), and the picture that a player shows: x is a·x + c·y, y is b·x + d·y.
SHOWN: dict[str, tuple[Linear, Callable[[Picture], Picture]]] = {
    "as stored": (IDENTITY, lambda p: p),
    "mirrored left to right": ((-1, 0, 0, 1), np.fliplr),
    "mirrored upside down": ((1, 0, 0, -1), np.flipud),
    "half turn": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "quarter turn clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "quarter turn anticlockwise": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "anti-transposed": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1)),
    "half a degree off": ((0.99996, 0.0087, -0.0087, 0.99996), lambda p: p),
    "twice as large, mirrored": ((-2, 0, 0, 2), np.fliplr),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_as_a_player_shows_it(
    kind: str, tmp_path: Path, side: int, write_clip: Callable[..., Path]
) -> None:
    # The bits of this number lie so that no turn or mirror gives the same picture.
    path = write_clip(tmp_path / "clip.mp4", 12, first_number=0b0010_0001_0000_1011)
    stored = read_video(path, SAMPLING, side)
    matrix, show = SHOWN[kind]
    shown = read_video(with_matrix(path, matrix), SAMPLING, side)
    expected = np.stack([show(picture) for picture in stored.frames])
    assert np.array_equal(shown.frames, expected)
    assert shown.warnings == ()
    if kind not in ("as stored", "half a degree off"):
        assert np.abs(shown.frames.astype(int) - stored.frames).mean() > 20


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ((0.9659, 0.2588, -0.2588, 0.9659), "0.9659 0.2588 -0.2588 0.9659"),  # 15 degrees
        ((1, 0.5, 0, 1), "1 0.5 0 1"),  # slanted
        ((0, 0, 0, 0), "0 0 0 0"),
        ((1, 0, 0, 0), "1 0 0 0"),
    ],
)
def test_other_matrices_are_rounded_and_told(
    matrix: Linear, said: str, tmp_path: Path, side: int, write_clip: Callable[..., Path]
) -> None:
    path = write_clip(tmp_path / "clip.mp4", 12)
    stored = read_video(path, SAMPLING, side)
    shown = read_video(with_matrix(path, matrix), SAMPLING, side)
    assert np.array_equal(shown.frames, stored.frames)
    # FFmpeg takes a matrix that slants for one of pixels that are not square.
    (warning,) = (found for found in shown.warnings if not found.startswith("anamorphic"))
    assert warning.startswith("the display matrix (")
    assert warning.endswith(") is no quarter turn or mirror; it is rounded")
    found = [float(value) for value in warning.partition("(")[2].partition(")")[0].split()]
    assert found == pytest.approx([float(value) for value in said.split()], abs=1e-4)


def test_a_wide_picture_lies_on_its_side(
    tmp_path: Path, clips: Path, side: int, write_clip: Callable[..., Any]
) -> None:
    """Mirrored and turned, of a picture that is not square: the crop is that of the shown one."""
    plain = clips / "conditions/dog_square.mp4"
    path = tmp_path / "turned.mp4"
    path.write_bytes(plain.read_bytes())
    turned = read_video(with_matrix(path, (0, -1, -1, 0)), SAMPLING, side)
    stored = read_video(plain, SAMPLING, side)
    expected = np.stack([np.rot90(p, 2).swapaxes(0, 1) for p in stored.frames])
    # Resizing across before down differs by a little from down before across.
    assert np.abs(turned.frames.astype(int) - expected).mean() < 1
