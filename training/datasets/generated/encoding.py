"""Write generated videos as mp4 files, and note what a folder of them was made from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import DatasetError
from xclip_deploy.runtime.files import require_regular_file
from xclip_deploy.training.datasets.generated.rendering import FRAME_RATE, IMAGE_SIZE

_RECIPE = "generated.json"


@contextmanager
def video_writer(path: Path) -> Iterator[Callable[[npt.NDArray[np.uint8]], None]]:
    """Yield a function that appends a frame, uint8 RGB [96, 96, 3], to an H.264 mp4 file.

    The same frames give the same bytes.
    """
    # One thread and no look-ahead: x264's macroblock-tree rate control sometimes made other
    # bytes of the same frames.
    options = {"preset": "veryfast", "crf": "20", "threads": "1"}
    options["x264-params"] = "mbtree=0:rc-lookahead=0"
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=options)
        stream.width = stream.height = IMAGE_SIZE
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FRAME_RATE)

        def write(picture: npt.NDArray[np.uint8]) -> None:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

        yield write
        container.mux(stream.encode())


def write_recipe(directory: Path, recipe: Mapping[str, object]) -> None:
    """Note what a folder is made from. Raises OSError."""
    (directory / _RECIPE).write_text(json.dumps(recipe) + "\n")


def check_recipe(directory: Path, recipe: Mapping[str, object]) -> None:
    """Check that a folder holds the dataset of a recipe. Raises DatasetError."""
    try:
        require_regular_file(directory / _RECIPE, "a dataset's recipe", DatasetError)
        found = json.loads((directory / _RECIPE).read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{directory} is not empty and holds no generated dataset; choose another folder"
        ) from error
    if found != recipe:
        raise DatasetError(
            f"{directory} holds a generated dataset of {found}, expected {recipe}; "
            f"choose another folder, or run: rm -r {directory}"
        )
