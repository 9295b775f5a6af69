"""An image as a video of one frame.

One rule holds for every kind of image. Black is 0. White is the largest value of whole numbers
(255, 4,095 or 65,535), and 1 of floating-point numbers. Transparency lies over black.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import VideoNotFoundError, VideoReadError
from xclip_deploy.runtime.arguments import as_path
from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.files import require_regular_file
from xclip_deploy.runtime.video.containers import check_pixels, max_pixels
from xclip_deploy.runtime.video.frames import VideoFrames
from xclip_deploy.runtime.video.in_memory import ImageLike
from xclip_deploy.runtime.video.preprocessing import resize_and_crop

if TYPE_CHECKING:
    from PIL.Image import Image

_REFUSED_FORMATS = frozenset({"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MIC", "MPEG", "WMF"})
"""Formats that Pillow knows but hands to other programs (Ghostscript), or does not decode."""
_WHITE = 65535
"""White of a picture with more than 8 bits, unless its file says otherwise."""
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
_ROUNDING = 1e-3
"""How far floating-point numbers may lie outside 0 to 1, as resampling leaves them."""
_ROWS = 256
"""Rows of floating-point numbers that are converted at a time."""


def read_image(image: ImageLike, image_size: int) -> VideoFrames:
    """Prepare an image as :func:`read_video` prepares frames.

    ``image`` is a file that Pillow reads, one of Pillow's images, or uint8 RGB ``[H, W, 3]``.
    Files and Pillow's images are turned upright as their EXIF says. The module's docstring says
    what becomes of values and transparency.

    Raises VideoNotFoundError for a missing file, and InvalidArgumentError for an array of
    another kind. Raises VideoReadError for a file that is no image, for one with more pixels
    than ``max_pixels()``, and for values whose white is not known: signed or 32-bit whole
    numbers, and floating-point numbers outside 0 to 1.
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
        require_regular_file(path, "an image", VideoReadError)
        if max_pixels() > (Image.MAX_IMAGE_PIXELS or 0) > 0:  # the user asked for more
            Image.MAX_IMAGE_PIXELS = max_pixels()
    try:
        with nullcontext(what) if isinstance(what, Image.Image) else Image.open(what) as file:
            if file.format in _REFUSED_FORMATS:
                raise VideoReadError(f"{name}: is {file.format}; expected a picture of pixels")
            check_pixels(name, *file.size)
            # Read before the pixels are, with which they go.
            key, black, white = _colour_key(file), *_levels(file, name)
            upright = ImageOps.exif_transpose(file)
            if upright.mode.startswith(("I", "F")):
                return _grey(np.asarray(upright), key, black, white, name)
            if key is not None:
                upright.info["transparency"] = key
            return _over_black(upright)
    # Each of Pillow's formats has errors of its own for damage: AVIF's is a RuntimeError.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, RuntimeError) as error:
        raise VideoReadError(f"{name}: cannot be read as an image: {error}") from error
    # Pillow warns or raises beyond its limit of pixels. A small file can unpack to gigabytes.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoReadError(f"{name}: has too many pixels: {error}") from error


def _over_black(image: Image) -> NDArray[np.uint8]:
    """Lay a picture of 8 bits over black, and return it as RGB [H, W, 3]."""
    from PIL import Image

    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    colours = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    canvas = Image.new("RGB", image.size)
    canvas.paste(colours, (0, 0), colours)
    return np.asarray(canvas)


def _grey(
    values: NDArray[Any], key: int | None, black: float, white: float, name: str
) -> NDArray[np.uint8]:
    """Scale grey values [H, W] of more than 8 bits to RGB [H, W, 3].

    ``key`` is the value that is transparent, ``black`` and ``white`` those of these colours.
    Raises VideoReadError for values outside them.
    """
    low, high = values.min(), values.max()
    slack = _ROUNDING if np.issubdtype(values.dtype, np.floating) else 0
    least, most = min(black, white) - slack, max(black, white) + slack
    if not (least <= low and high <= most):  # NaN is in no range
        raise VideoReadError(
            f"{name}: has grey values from {low} to {high}; expected {min(black, white):g} to "
            f"{max(black, white):g}; scale them and save the image again"
        )
    grey = np.empty(values.shape, np.uint8)
    for rows in slices(len(values), _ROWS):
        shares = (values[rows].astype(np.float64) - black) * (255 / (white - black))
        grey[rows] = np.rint(shares.clip(0, 255))
    if key is not None:
        grey[values == key] = 0
    return np.repeat(grey[..., np.newaxis], 3, axis=2)


def _levels(file: Image, name: str) -> tuple[float, float]:
    """Return the values of black and white in a picture of more than 8 bits.

    Raises VideoReadError where the file does not tell.
    """
    if file.mode.startswith("F"):
        white: float = 1.0
    elif not file.mode.startswith("I"):
        return 0, 255
    else:
        white = _WHITE
    tags = getattr(file, "tag_v2", {}) if file.format == "TIFF" else {}
    if file.mode.startswith("I") and tags:
        bits = tags.get(_TIFF_BITS, (16,))[0]
        if bits > 16 or _SIGNED in tags.get(_TIFF_SAMPLE_FORMAT, ()):
            raise VideoReadError(
                f"{name}: has signed or {bits}-bit grey values, whose white is not known; expected "
                "8 or 16 bits without sign, or floating-point numbers from 0 to 1"
            )
        white = 2**bits - 1
    return (white, 0) if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO else (0, white)


def _colour_key(file: Image) -> Any:  # noqa: ANN401 - Pillow's own: a level, levels, or bytes
    """Return the colour that a PNG declares transparent, in the levels that Pillow decodes to.

    The file gives it in its own levels: 2, 4 or 16 bits. None where nothing is to be changed.
    """
    key = file.info.get("transparency")
    tile = getattr(file, "tile", None)
    raw_mode = str(tile[0][3]) if tile else ""
    if isinstance(key, tuple):
        # Pillow keeps the high byte of each colour. Once it has loaded the pixels, the raw mode
        # is gone, and levels above 255 alone tell of 16 bits.
        is_wide = raw_mode.endswith(";16B") or any(level > 255 for level in key)
        return tuple(level >> 8 for level in key) if is_wide else key
    if file.format != "PNG" or not isinstance(key, int) or file.mode == "P":
        return key if isinstance(key, int) and file.mode.startswith("I") else None
    return key * {"L;2": 85, "L;4": 17}.get(raw_mode, 1)
