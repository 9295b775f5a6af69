"""Images as videos of one frame."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crafted_files import png
from PIL import Image, features

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
    for name in ("text.png", "empty.png", "cut.png"):
        with pytest.raises(VideoReadError, match="cannot be read as an image"):
            read_image(tmp_path / name, 32)
    with pytest.raises(VideoReadError, match="is no regular file but a folder; expected an image"):
        read_image(tmp_path, 32)
    with pytest.raises(InvalidArgumentError, match="float64"):
        read_image(np.zeros((8, 8, 3)), 32)  # type: ignore[arg-type]


@pytest.mark.skipif(not features.check("avif"), reason="Pillow reads AVIF from 11.3 on")
def test_a_damaged_avif(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(gradient(64, 64)).save(whole, "avif")
    content = bytearray(whole.getvalue())
    start = content.index(b"mdat") + 4
    content[start:] = b"\xff" * (len(content) - start)
    (tmp_path / "a.avif").write_bytes(content)
    with pytest.raises(VideoReadError, match="cannot be read as an image"):
        read_image(tmp_path / "a.avif", 32)


def frame(image: Any, size: int = 16) -> np.ndarray:
    """Read an image of 16 x 16 pixels as it is."""
    pixels: np.ndarray = read_image(image, size).frames[0]
    return pixels


GREY = gradient(16, 16)[..., 1] * 16
WIDE = GREY.astype(np.uint16) * 257


def write_tiff(path: Path, image: Image.Image, **tags: int) -> Path:
    image.save(path, tiffinfo={{"photometric": 262}[name]: value for name, value in tags.items()})
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("ending", ["png", "tif", "memory"])
def test_sixteen_bits_of_grey_are_the_same_grey(tmp_path: Path, ending: str, order: str) -> None:
    image = Image.fromarray(WIDE.astype(f"{order}u2"))
    if ending != "memory":
        image.save(tmp_path / f"a.{ending}")
    found = frame(image if ending == "memory" else tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(found, np.repeat(GREY[..., None], 3, -1))


@pytest.mark.parametrize("values", [(0, 255), (128, 32896), (200, 51400)])
def test_levels_between_round_to_the_nearest(tmp_path: Path, values: tuple[int, int]) -> None:
    wide = np.full((16, 16), values[1], np.uint16)
    expected = round(values[1] / 257)
    assert np.unique(frame(Image.fromarray(wide))).tolist() == [expected]
    rgb = np.full((16, 16, 3), values[1] >> 8, np.uint8)
    assert abs(int(frame(rgb)[0, 0, 0]) - expected) <= 1


def test_floating_point_numbers_are_shares_of_white(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(frame(tmp_path / "a.tif"), np.repeat(GREY[..., None], 3, -1))
    white = np.full((16, 16), 1.0005, np.float32)
    assert np.unique(frame(Image.fromarray(white))).tolist() == [255]


@pytest.mark.parametrize("value", [2.0, 255.0, -0.5, np.nan, np.inf])
def test_floating_point_numbers_of_another_range_are_refused(value: float) -> None:
    values = np.zeros((16, 16), np.float32)
    values[3, 4] = value
    with pytest.raises(VideoReadError, match=r"has grey values from .*; expected 0 to 1; scale"):
        frame(Image.fromarray(values))


def test_whole_numbers_without_a_known_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 70_000, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(VideoReadError, match="signed or 32-bit grey values"):
        frame(tmp_path / "a.tif")
    with pytest.raises(VideoReadError, match="grey values from 70000 to 70000; expected 0 to"):
        frame(Image.fromarray(np.full((16, 16), 70_000, np.int32)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_may_count_from_white_to_black(tmp_path: Path, dtype: type[np.generic]) -> None:
    values = {np.uint8: GREY, np.uint16: WIDE, np.float32: GREY.astype(np.float32) / 255}[dtype]
    path = write_tiff(tmp_path / "a.tif", Image.fromarray(values), photometric=0)
    with Image.open(path) as file:
        assert file.tag_v2[262] == 0
    # Pillow turns 8 bits over as it saves them, and leaves others as they are.
    expected = GREY if dtype is np.uint8 else 255 - GREY
    np.testing.assert_array_equal(frame(path), np.repeat(expected[..., None], 3, -1))


# Transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_transparency_lies_over_black(tmp_path: Path, mode: str) -> None:
    pixels = np.full((16, 16, 4), (250, 250, 250, 0), np.uint8)  # a hidden white
    pixels[4:12, 4:12, 3] = 255
    pixels[4:8, 4:8, 3] = 128
    image = Image.fromarray(pixels)
    if mode in ("LA", "PA"):
        image = image.convert(mode)
    elif mode == "La":
        image = image.convert("LA").convert("La")
    else:
        image = image.convert(mode)
    found = frame(image)
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[10, 10].tolist() == [250, 250, 250]
    np.testing.assert_allclose(found[5, 5], 250 * 128 / 255, atol=2)
    if mode in ("RGBA", "LA"):
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(frame(tmp_path / "a.png"), found)


@pytest.mark.parametrize(
    ("bits", "colour", "hidden", "other"),
    [
        (8, 0, bytes([200]), bytes([100])),
        (16, 0, bytes([200, 200]), bytes([100, 100])),
        (8, 2, bytes([200, 10, 30]), bytes([100, 100, 100])),
        (16, 2, bytes([200, 200, 10, 10, 30, 30]), bytes([100] * 6)),
        (16, 2, bytes([0, 100, 0, 100, 0, 100]), bytes([100] * 6)),
    ],
)
def test_a_colour_declared_transparent_is_black(
    tmp_path: Path, bits: int, colour: int, hidden: bytes, other: bytes
) -> None:
    rows = [hidden * 8 + other * 8] * 16
    key = hidden if bits == 16 else b"".join(bytes([0, level]) for level in hidden)
    (tmp_path / "a.png").write_bytes(png(bits, colour, rows, 16, 16, key))
    found = frame(tmp_path / "a.png")
    assert not found[:, :8].any()
    assert np.unique(found[:, 8:]).tolist() == [100]


@pytest.mark.parametrize(("bits", "level", "shown"), [(1, 1, 0), (2, 2, 255), (4, 9, 255)])
def test_a_level_declared_transparent_in_few_bits(
    tmp_path: Path, bits: int, level: int, shown: int
) -> None:
    other = 2**bits - 1 if shown else 0
    pixels = [level] * 8 + [other] * 8
    packed = int("".join(f"{pixel:0{bits}b}" for pixel in pixels), 2).to_bytes(2 * bits, "big")
    (tmp_path / "a.png").write_bytes(png(bits, 0, [packed] * 16, 16, 16, bytes([0, level])))
    found = frame(tmp_path / "a.png")
    assert not found[:, :8].any()
    assert np.unique(found[:, 8:]).tolist() == [shown]


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_transparent_entry_of_a_palette_is_black(tmp_path: Path, ending: str) -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 250, 250, 0, 0])
    image.paste(0, (0, 0, 8, 16))
    image.save(tmp_path / f"a.{ending}", transparency=0)
    found = frame(tmp_path / f"a.{ending}")
    assert found[8, 2].tolist() == [0, 0, 0]
    assert found[8, 12].tolist() == [250, 0, 0]


def test_the_files_that_were_read_wrongly() -> None:
    cases = Path(__file__).resolve().parents[3].parent / "shared" / "cases"
    if not (cases / "dog_gray16.png").is_file():
        pytest.skip(f"{cases} is not here")
    few, many = (frame(cases / f"dog_gray{bits}.png", 96).astype(int) for bits in (8, 16))
    assert few.std() > 20
    assert np.abs(few - many).mean() <= 3
    red = frame(cases / "red_on_transparent.png", 96)
    assert red[0, 0].tolist() == [0, 0, 0]
    assert red[48, 48].tolist() == [255, 0, 0]


# What is refused


def test_a_format_that_starts_another_program(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(VideoReadError, match="is EPS; expected a picture of pixels"):
        read_image(path, 16)


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    for name in ("pipe.png", "link.png"):
        with pytest.raises(VideoReadError, match="is no regular file but a pipe; expected"):
            read_image(tmp_path / name, 16)
    with pytest.raises(VideoReadError, match="is no regular file but a device; expected"):
        read_image("/dev/zero", 16)


def test_a_small_file_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(8, 2, [], 50_000, 50_000))
    with pytest.raises(VideoReadError, match="too many pixels"):
        read_image(tmp_path / "bomb.png", 32)
