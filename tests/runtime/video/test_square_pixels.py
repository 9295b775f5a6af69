"""Anamorphic video: stored pixels that are not square."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from crafted_files import with_matrix
from numpy.typing import NDArray
from PIL import Image

from xclip_deploy.errors import MissingExtraError
from xclip_deploy.runtime.decoding import DecoderPool, FileContent
from xclip_deploy.runtime.video import (
    FrameSampling,
    VideoFrames,
    VideoReading,
    read_frames,
    resize_and_crop,
)
from xclip_deploy.runtime.video.decord_reader import import_decord

SAMPLING = FrameSampling(max_frames=2)
SIDE = 64
SQUARE = VideoReading(SAMPLING, SIDE, square_pixels=True)
STORED = VideoReading(SAMPLING, SIDE)
Picture = NDArray[np.uint8]


def scene(width: int, height: int) -> Picture:
    """Draw a disc and ramps: [height, width, 3]."""
    y, x = np.mgrid[:height, :width].astype(float)
    ramp = np.stack([x / width, y / height, 1 - x / width], -1) * 200
    inside = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 3) ** 2
    ramp[inside] = 255
    return ramp.astype(np.uint8)


def write(path: Path, shown: Picture, aspect: Fraction) -> Path:
    """Store a picture with pixels of this aspect, as an anamorphic lens does."""
    height, width = shown.shape[:2]
    stored = (round(width / aspect / 2) * 2, height)
    picture = Image.fromarray(shown).resize(stored, Image.Resampling.BICUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2, options={"crf": "1"})
        stream.width, stream.height = stored
        stream.pix_fmt = "yuv444p"
        stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


ASPECTS = [Fraction(2), Fraction(1, 2), Fraction(64, 45), Fraction(16, 15), Fraction(4, 3)]


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("shape", [(160, 160), (240, 120), (96, 224)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_true_proportions(
    aspect: Fraction, shape: tuple[int, int], suffix: str, tmp_path: Path
) -> None:
    shown = scene(*shape)
    path = write(tmp_path / f"clip{suffix}", shown, aspect)
    expected = resize_and_crop(shown, SIDE).astype(int)
    square, stored = read_frames(path, SQUARE), read_frames(path, STORED)
    assert np.abs(square.frames[0] - expected).mean() < 4
    assert square.warnings == ()
    if abs(aspect - 1) > 0.1:
        assert np.abs(stored.frames[0] - expected).mean() > 6
    (warning,) = stored.warnings
    assert warning == (
        f"anamorphic: pixels are {aspect.numerator}:{aspect.denominator} and count as square; "
        "a bundle exported with --square-pixels shows them as players do"
    )


def test_nearly_square_pixels_raise_no_warning(clips: Path) -> None:
    path = clips / "edge_cases/torchcodec_test_non_zero_start.mp4"  # 224:225
    assert read_frames(path, STORED).warnings == ()


def test_square_pixels_change_no_bit(clips: Path) -> None:
    for name in ("sam2_dog.mp4", "edge_cases/decord_video_90.mov"):
        stored, square = (read_frames(clips / name, reading) for reading in (STORED, SQUARE))
        assert np.array_equal(stored.frames, square.frames)


def test_a_quarter_turn_turns_the_pixels_too(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", scene(240, 120), Fraction(3, 2))
    upright = read_frames(path, SQUARE).frames
    # In FFmpeg the matrix of a track can also stretch; this one does not.
    with_matrix(path, (0, 1, -1, 0))
    turned = read_frames(path, SQUARE).frames
    expected = np.rot90(upright, -1, axes=(1, 2)).astype(int)
    assert np.abs(turned - expected).mean() < 2


def test_in_a_decoder(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", scene(160, 160), Fraction(2))
    with DecoderPool[str](SQUARE, workers=1) as pool:
        pool.submit("a", path)
        taken = pool.take()
    assert taken is not None
    assert isinstance(taken[1], FileContent)
    assert isinstance(taken[1].frames, VideoFrames)
    assert np.array_equal(taken[1].frames.frames, read_frames(path, SQUARE).frames)


def test_with_decord(tmp_path: Path) -> None:
    try:
        import_decord()
    except MissingExtraError:
        pytest.skip("decord is not installed (it has no wheels for arm64 or macOS)")
    shown = scene(160, 160)
    path = write(tmp_path / "clip.mp4", shown, Fraction(2))
    for reading in (STORED, SQUARE):
        ours = read_frames(path, reading)
        theirs = read_frames(
            path, VideoReading(SAMPLING, SIDE, "decord", square_pixels=reading.square_pixels)
        )
        assert np.abs(ours.frames.astype(int) - theirs.frames).mean() < 3
        assert theirs.warnings == ours.warnings


def test_the_record_keeps_it(write_clip: Callable[..., Any]) -> None:
    assert VideoReading.from_dict(SQUARE.to_dict()) == SQUARE != STORED
    assert SQUARE.until(3.0).square_pixels
