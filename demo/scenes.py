"""Short videos of moving shapes, and captions that say what they show."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

COLOURS = {
    "red": (220, 50, 40),
    "green": (40, 180, 70),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 50),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (0, -1), "right": (0, 1)}
FRAME_RATE = 8
DURATION_S = 5


@dataclass(frozen=True)
class Scene:
    """One shape that moves across a plain background."""

    colour: str
    shape: str
    direction: str

    @property
    def caption(self) -> str:
        """What the video shows."""
        return f"a {self.colour} {self.shape} moves {self.direction}"

    def render(
        self, times: npt.NDArray[np.float64], size: int, random: np.random.Generator
    ) -> npt.NDArray[np.uint8]:
        """Draw frames [n, size, size, 3] at ``times`` from 0 (start) to 1 (end).

        ``random`` varies path, size, brightness and noise, so that no two renderings are alike.
        """
        rows, columns = np.mgrid[0:size, 0:size] / size
        step = np.array(DIRECTIONS[self.direction])
        start = 0.5 - 0.32 * step + random.uniform(-0.12, 0.12, 2) * (step == 0)
        radius = random.uniform(0.13, 0.18)
        background = random.uniform(90, 150)
        brightness = random.uniform(0.85, 1.1)
        frames = np.full((len(times), size, size, 3), background)
        for frame, time in zip(frames, times, strict=True):
            centre = start + 0.64 * time * step
            inside = self._covers(rows - centre[0], columns - centre[1], radius)
            frame[inside] = np.array(COLOURS[self.colour]) * brightness
        frames += random.normal(scale=4.0, size=frames.shape)
        drawn: npt.NDArray[np.uint8] = np.clip(frames, 0, 255).astype(np.uint8)
        return drawn

    def _covers(
        self, down: npt.NDArray[np.float64], across: npt.NDArray[np.float64], radius: float
    ) -> npt.NDArray[np.bool_]:
        if self.shape == "circle":
            return down**2 + across**2 < radius**2
        if self.shape == "square":
            return np.maximum(abs(down), abs(across)) < radius * 0.9
        return (abs(across) < (down + radius) * 0.6) & (down < radius)


ALL_SCENES = tuple(Scene(*choice) for choice in product(COLOURS, SHAPES, DIRECTIONS))


def write_video(path: Path, frames: npt.NDArray[np.uint8]) -> None:
    """Write frames [n, H, W, 3] as an H.264 mp4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FRAME_RATE)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
