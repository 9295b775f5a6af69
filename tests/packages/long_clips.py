"""Long videos of low resolution, whose seconds are told apart by their brightness."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from written_once import written_once

SIDE = 32


def shade(second: int) -> int:
    """The brightness of a second, told apart from its neighbours' after compression."""
    return 20 + 7 * (second % 30)


@written_once
def make_long(path: Path, seconds: int, *, rate: int = 2, seconds_per_key: int = 10) -> Path:
    """Encode a video of so many seconds."""
    options = {"preset": "ultrafast", "g": str(seconds_per_key * rate)}
    pictures = [
        av.VideoFrame.from_ndarray(np.full((SIDE, SIDE, 3), shade(n), np.uint8), format="rgb24")
        for n in range(30)
    ]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for n in range(seconds * rate):
            frame = pictures[n // rate % 30]
            frame.pts, frame.time_base = n, 1 / stream.codec_context.framerate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
