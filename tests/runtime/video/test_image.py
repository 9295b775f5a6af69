"""Images as videos of one frame."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xclip_deploy.errors import InvalidArgumentError, VideoNotFoundError, VideoReadError
from xclip_deploy.runtime.video import read_image, resize_and_crop


def gradient(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm"])
def test_a_file_is_its_pixels_prepared(tmp_path: Path, name: str) -> None:
    pixels = gradient(90, 160)
    Image.fromarray(pixels).save(tmp_path / name)
    for image in (tmp_path / name, str(tmp_path / name), pixels):
        found = read_image(image, 32)
        assert found.frames.shape == (1, 32, 32, 3)
        np.testing.assert_array_equal(found.frames[0], resize_and_crop(pixels, 32))
        assert found.times_s.tolist() == [0]


def test_a_photo_taken_sideways_is_turned(tmp_path: Path) -> None:
    pixels = gradient(40, 80)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    expected = resize_and_crop(np.ascontiguousarray(np.rot90(pixels, -1)), 32)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 32).frames[0], expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    Image.fromarray(gradient(40, 40)).convert(mode).save(tmp_path / "a.tiff")
    assert read_image(tmp_path / "a.tiff", 32).frames.dtype == np.uint8


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(VideoNotFoundError, match="no such file"):
        read_image(tmp_path / "none.png", 32)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    whole = io.BytesIO()
    Image.fromarray(gradient(90, 160)).save(whole, "png")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:200])
    for name in ("text.png", "empty.png", "cut.png", "."):
        with pytest.raises(VideoReadError, match="cannot be read as an image"):
            read_image(tmp_path / name, 32)
    with pytest.raises(InvalidArgumentError, match="float64"):
        read_image(np.zeros((8, 8, 3)), 32)  # type: ignore[arg-type]


def test_a_small_file_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        size, check = len(data).to_bytes(4, "big"), zlib.crc32(kind + data).to_bytes(4, "big")
        return size + kind + data + check

    header = (50_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    (tmp_path / "bomb.png").write_bytes(content + chunk(b"IEND", b""))
    with pytest.raises(VideoReadError, match="too many pixels"):
        read_image(tmp_path / "bomb.png", 32)
