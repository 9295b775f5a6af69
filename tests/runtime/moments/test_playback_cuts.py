"""Cuts for playback: smaller and with more key frames, but the same seconds."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_movies import decode, write_movie

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.moments import cut


@pytest.mark.parametrize(
    ("size", "aspect", "expected"),
    [
        ((96, 96), None, (96, 96)),
        ((1920, 1080), None, (1280, 720)),
        ((1440, 1080), Fraction(4, 3), (1280, 720)),
        ((720, 1284), None, (718, 1280)),
    ],
)
def test_pictures_are_small_and_square(
    tmp_path: Path, size: tuple[int, int], aspect: Fraction | None, expected: tuple[int, int]
) -> None:
    movie = write_movie(tmp_path / "movie.mp4", 3, size=size, pixel_aspect=aspect, sounds=[(0, 3)])
    done = cut(movie, 0.5, 2.5, tmp_path / "cut.mp4", quality="playback")
    found = decode(done.path)
    assert found.numbers == list(range(5, 25))
    assert found.times_s == pytest.approx([n / 10 for n in range(20)], abs=1e-3)
    assert (found.size, found.pixel_aspect) == (expected, Fraction(1))
    with av.open(str(done.path)) as container:
        keys = [float(p.pts * p.time_base) for p in container.demux(video=0) if p.is_keyframe]
    assert keys[0] == 0
    assert max(np.diff([*keys, 2.0])) <= 1.001


def test_a_copy_has_the_quality_that_it_has(tmp_path: Path) -> None:
    movie = write_movie(tmp_path / "movie.mp4", 3, sounds=())
    with pytest.raises(InvalidArgumentError, match="copy"):
        cut(movie, 0, 1, tmp_path / "cut.mp4", mode="copy", quality="playback")
    assert not (tmp_path / "cut.mp4").exists()
