from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.video import resize_and_crop


def plain_resize_and_crop(frame: Any, size: int) -> Any:
    """torchvision's Resize(size, BICUBIC) and CenterCrop(size) of a PIL image."""
    height, width = frame.shape[:2]
    if width <= height:
        new = (size, int(size * height / width))
    else:
        new = (int(size * width / height), size)
    # In two calls, since the order in which one call does both depends on Pillow's version.
    across = Image.fromarray(frame).resize((new[0], height), Image.Resampling.BICUBIC)
    resized = across.resize(new, Image.Resampling.BICUBIC)
    left = round((new[0] - size) / 2.0)
    top = round((new[1] - size) / 2.0)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def noise(height: int, width: int) -> Any:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    values[height // 3 :] = (values[height // 3 :] > 127) * np.uint8(255)  # the hardest edges
    return values


def largest_difference(a: Any, b: Any) -> int:
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("size", [224, 64])
@pytest.mark.parametrize(
    ("height", "width"),
    [(720, 1280), (1280, 720), (480, 854), (333, 517), (301, 299), (1001, 225), (224, 300)],
)
def test_equals_resizing_and_cropping(height: int, width: int, size: int) -> None:
    frame = noise(height, width)
    result = resize_and_crop(frame, size)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert largest_difference(result, plain_resize_and_crop(frame, size)) <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 100))
def test_any_size(height: int, width: int, size: int) -> None:
    frame = noise(height, width)
    result = resize_and_crop(frame, size)
    assert largest_difference(result, plain_resize_and_crop(frame, size)) <= 2


def test_right_size_is_left_alone() -> None:
    frame = noise(96, 96)
    assert np.array_equal(resize_and_crop(frame, 96), frame)


def test_centre_is_kept() -> None:
    frame = np.zeros((90, 270, 3), np.uint8)
    frame[:, 90:180] = 200
    result = resize_and_crop(frame, 45)
    assert (result[:, 3:-3] == 200).all()


def test_very_long_frames_need_little_memory() -> None:
    assert resize_and_crop(np.full((1, 16384, 3), 7, np.uint8), 224).tolist()[0][0] == [7, 7, 7]


def test_views_that_are_not_contiguous() -> None:
    frame = noise(50, 70)
    turned = np.rot90(frame)
    assert np.array_equal(resize_and_crop(turned, 32), resize_and_crop(turned.copy(), 32))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(frame: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"expected uint8 \[H, W, 3\]"):
        resize_and_crop(frame, 8)


def test_impossible_size_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="image_size is 0"):
        resize_and_crop(noise(4, 4), 0)
