"""Video with transparency, which lies over black as an image's does."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from xclip_deploy.errors import MissingExtraError
from xclip_deploy.runtime.video import FrameSampling, read_image, read_video
from xclip_deploy.runtime.video.decord_reader import import_decord

SAMPLING = FrameSampling(max_frames=2)
SIDE = 96


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """Colours in the middle, half of them half transparent; a hidden white around: [S, S, 4]."""
    pixels = np.full((SIDE, SIDE, 4), (250, 250, 250, 0), np.uint8)
    pixels[24:72, 24:72] = (200, 90, 30, 255)
    pixels[24:48, 24:72, 3] = np.linspace(0, 255, 48).astype(np.uint8)
    return pixels


def write(path: Path, picture: NDArray[np.uint8], codec: str, pixel_format: str) -> Path:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=2)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, pixel_format
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba")
            container.mux(stream.encode(frame.reformat(format=pixel_format)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "tolerance"),
    [
        ("a.mov", "png", "rgba", 0),
        ("a.apng", "apng", "rgba", 0),
        ("a.mov", "qtrle", "argb", 0),
        ("a.avi", "ffv1", "bgra", 0),
        ("a.nut", "rawvideo", "rgba", 0),
        ("a.mov", "png", "rgba64be", 1),
        ("a.mkv", "ffv1", "yuva444p", 3),
        ("a.mov", "prores_ks", "yuva444p10le", 4),
    ],
)
def test_transparency_lies_over_black(
    name: str,
    codec: str,
    pixel_format: str,
    tolerance: int,
    tmp_path: Path,
    picture: NDArray[np.uint8],
) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    expected = read_image(tmp_path / "a.png", SIDE).frames[0].astype(int)
    assert expected[5, 5].tolist() == [0, 0, 0]
    video = read_video(write(tmp_path / name, picture, codec, pixel_format), SAMPLING, SIDE)
    # A codec with losses blurs the edges, which the mean hardly sees.
    assert np.abs(video.frames.astype(int) - expected).mean() <= tolerance / 4
    assert video.warnings == ()


@pytest.mark.parametrize(("codec", "pixel_format"), [("png", "rgba"), ("ffv1", "yuva420p")])
def test_opaque_frames_are_as_without_transparency(
    tmp_path: Path, picture: NDArray[np.uint8], codec: str, pixel_format: str
) -> None:
    opaque = picture.copy()
    opaque[..., 3] = 255
    plain = {"rgba": "rgb24", "yuva420p": "yuv420p"}[pixel_format]
    found, expected = (
        read_video(write(tmp_path / f"{kind}.nut", opaque, codec, kind), SAMPLING, SIDE)
        for kind in (pixel_format, plain)
    )
    assert np.array_equal(found.frames, expected.frames)


def test_a_fourth_byte_that_nobody_wrote_is_no_transparency(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    """Uncompressed AVI of 32 bits a pixel: the fourth byte is 0."""
    unused = picture.copy()
    unused[..., 3] = 0
    video = read_video(write(tmp_path / "a.avi", unused, "rawvideo", "bgra"), SAMPLING, SIDE)
    assert np.array_equal(video.frames[0], picture[..., :3])


def test_transparency_that_is_not_read_is_told(
    tmp_path: Path, picture: NDArray[np.uint8], clips: Path
) -> None:
    path = write(tmp_path / "a.webm", picture, "libvpx-vp9", "yuva420p")
    (warning,) = read_video(path, SAMPLING, SIDE).warnings
    assert warning.startswith("transparency is not read, so hidden colours show")
    announced = clips / "edge_cases/moviepy_no_duration.webm"  # and holds none
    assert not any("transparency" in said for said in read_video(announced, SAMPLING, 32).warnings)


def test_with_decord(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    try:
        import_decord()
    except MissingExtraError:
        pytest.skip("decord is not installed (it has no wheels for arm64 or macOS)")
    path = write(tmp_path / "a.mov", picture, "qtrle", "argb")
    (warning,) = read_video(path, SAMPLING, SIDE, reader="decord").warnings
    assert warning == "decord does not know transparency; use reader='pyav'"
