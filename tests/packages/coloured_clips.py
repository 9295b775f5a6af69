"""Short videos whose frames each have one random colour."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from written_once import written_once


@written_once
def write_clip(path: Path, seed: int, seconds: int = 3) -> Path:
    """Write a video of 2 frames a second, each of one random colour."""
    random = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(2 * seconds):
            picture = np.empty((64, 64, 3), np.uint8)
            picture[:] = random.integers(0, 256, 3)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
