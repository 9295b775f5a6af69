"""An image as a video of one frame."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import VideoNotFoundError, VideoReadError
from xclip_deploy.runtime.arguments import as_path
from xclip_deploy.runtime.video.frames import VideoFrames
from xclip_deploy.runtime.video.in_memory import ImageLike
from xclip_deploy.runtime.video.preprocessing import resize_and_crop


def read_image(image: ImageLike, image_size: int) -> VideoFrames:
    """Prepare an image as :func:`read_video` prepares frames.

    ``image`` is a file that Pillow reads, one of Pillow's images, or uint8 RGB ``[H, W, 3]``.
    Files and Pillow's images are turned upright as their EXIF says, with transparency on black.
    Raises VideoNotFoundError for a missing file, VideoReadError for a file that is no image, and
    InvalidArgumentError for an array of another kind.
    """
    frame = image if isinstance(image, np.ndarray) else _decode(image)
    return VideoFrames(
        frames=resize_and_crop(frame, image_size)[np.newaxis],
        times_s=np.zeros(1),
        frame_numbers=np.zeros(1, np.int64),
        duration_s=0.0,
        frame_rate=1.0,
    )


def _decode(image: object) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(image, Image.Image):
        what: Any = image
        name = "the image"
    else:
        name = str(path := as_path("image", image))
        what = path
        if not path.exists():
            raise VideoNotFoundError(f"{path}: no such file; expected an image")
    try:
        with nullcontext(what) if isinstance(what, Image.Image) else Image.open(what) as file:
            upright: Any = ImageOps.exif_transpose(file)
            return np.asarray(upright.convert("RGB"))
    # Pillow warns or raises beyond its limit of pixels. A small file can unpack to gigabytes.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise VideoReadError(f"{name}: cannot be read as an image: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoReadError(f"{name}: has too many pixels: {error}") from error
