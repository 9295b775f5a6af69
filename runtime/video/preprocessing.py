"""Resize and crop a decoded frame to the square image that the model takes."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import InvalidArgumentError

CLIP_MEAN: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue in 0..1, from the training of OpenAI's CLIP."""
CLIP_STD: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue in 0..1, from the training of OpenAI's CLIP."""


def resize_and_crop(
    frame: NDArray[np.uint8], image_size: int, pixel_aspect: Fraction = Fraction(1)
) -> NDArray[np.uint8]:
    """Resize the short side to ``image_size`` and crop the centre, as CLIP does.

    The filter is PIL's antialiased bicubic. The long side becomes
    ``int(image_size * long / short)``; the crop starts at ``round((long - image_size) / 2)``.
    Both match torchvision's ``Resize`` and ``CenterCrop``. Only pixels that the crop keeps are
    computed. Compared with resizing the whole frame and cropping afterwards, few values differ,
    by 1 of 255 (seldom by 2 at the hardest edges). The reason is that PIL holds the edges of
    the crop in single precision.

    Args:
        frame: RGB, uint8 ``[H, W, 3]``.
        image_size: Side S of the result, pixels.
        pixel_aspect: Width of a pixel of ``frame`` in units of its height. The sides compared
            are those of the picture with square pixels.

    Returns:
        RGB, uint8 ``[S, S, 3]``, contiguous.

    Raises:
        InvalidArgumentError: ``frame`` has another shape or dtype, or ``image_size`` is
            less than 1.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or frame.size == 0:
        raise InvalidArgumentError(
            f"frame is {frame.dtype} {list(frame.shape)}; expected uint8 [H, W, 3], not empty"
        )
    if image_size < 1:
        raise InvalidArgumentError(f"image_size is {image_size}; expected at least 1")
    from PIL import Image  # imported here, so a server without video input does not load it

    height, width = frame.shape[:2]
    # The sides of the picture with square pixels, in units that make both whole numbers.
    wide, high = width * pixel_aspect.numerator, height * pixel_aspect.denominator
    if wide <= high:
        resized_width, resized_height = image_size, int(image_size * high / wide)
    else:
        resized_width, resized_height = int(image_size * wide / high), image_size
    left = round((resized_width - image_size) / 2)
    top = round((resized_height - image_size) / 2)
    # The crop, in coordinates of the frame before resizing.
    to_source_x = width / resized_width
    to_source_y = height / resized_height
    left_x, right_x = left * to_source_x, min(width, (left + image_size) * to_source_x)
    top_y, bottom_y = top * to_source_y, min(height, (top + image_size) * to_source_y)
    # The bicubic kernel, two samples wide on each side, reaches these rows from the crop.
    reach = 2 * max(1.0, to_source_y) + 1
    first_row = max(0, math.floor(top_y - reach))
    last_row = min(height, math.ceil(bottom_y + reach))
    rows = np.ascontiguousarray(frame[first_row:last_row])

    # Resize horizontally first, in a separate call. Later versions of Pillow choose the order
    # by cost. Values are clipped to 0..255 between the passes, so the other order changes sharp
    # edges by up to 30 against the frames that the models were trained on.
    bicubic = Image.Resampling.BICUBIC
    row_count = last_row - first_row
    across = Image.fromarray(rows).resize(
        (image_size, row_count), bicubic, box=(left_x, 0, right_x, row_count)
    )
    down = across.resize(
        (image_size, image_size),
        bicubic,
        box=(0, top_y - first_row, image_size, bottom_y - first_row),
    )
    return np.array(down)
