"""Draw a scene: frames of shapes on a plain background."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from xclip_deploy.training.datasets.generated.scenes import FLASH, Event, Scene

DURATION_S = 6
LEAST_EVENT_S, MOST_EVENT_S = 4.0, 8.0
"""Range of the lengths of events in long videos and excerpts, seconds."""
FRAME_RATE = 8
IMAGE_SIZE = 96
"""Side of the frames, pixels."""

_FLASH_S = 1.0
"""Duration of a flash: at one frame a second, one of six shows it."""
_NOISE_BLOCKS = 8
"""Blocks of noise along each side."""
_TRAVEL = 0.62
"""Distance of a motion, in sides of the image."""

_RGB = {
    "red": (222, 52, 42),
    "green": (42, 178, 72),
    "blue": (52, 84, 224),
    "yellow": (236, 206, 52),
}
_DIRECTIONS = {"left": (0.0, -1.0), "right": (0.0, 1.0), "up": (-1.0, 0.0), "down": (1.0, 0.0)}
_Grid = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def render(
    scene: Scene,
    random: np.random.Generator,
    size: int = IMAGE_SIZE,
    duration_s: float = DURATION_S,
    frames: range | None = None,
) -> Iterator[npt.NDArray[np.uint8]]:
    """Draw the ``duration_s * FRAME_RATE`` frames of a scene, uint8 RGB [size, size, 3].

    ``frames`` chooses some of them; None draws all.
    ``random`` varies paths, sizes, brightness and texture, and the time and place of a flash.
    Hence no two drawings of a scene are alike.
    """
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size
    texture = random.normal(scale=5.0, size=(size, size, 1)) + random.uniform(85, 150)
    background = np.broadcast_to(texture, (size, size, 3)).astype(np.float32)
    actors = _actors(scene, random, duration_s)
    for number in range(round(duration_s * FRAME_RATE)) if frames is None else frames:
        frame = background.copy()
        for actor in actors:
            actor.draw(frame, (rows, columns), number / FRAME_RATE)
        yield np.clip(frame, 0, 255).astype(np.uint8)


class _Actor:
    """Thing in a scene: when it is seen, and how it moves."""

    def __init__(
        self, event: Event, start_s: float, end_s: float, random: np.random.Generator
    ) -> None:
        self.event, self.start_s, self.end_s = event, start_s, end_s
        self.colour = np.array(_RGB[event.colour]) * random.uniform(0.88, 1.08)
        self.radius = random.uniform(0.12, 0.16)
        direction = np.array(_DIRECTIONS.get(event.action, (0.0, 0.0)))
        sideways = random.uniform(-0.2, 0.2, 2) * (direction == 0)
        self.start = 0.5 - direction * _TRAVEL / 2 + sideways
        self.travel = direction * _TRAVEL

    def draw(self, frame: npt.NDArray[np.float32], grid: _Grid, time_s: float) -> None:
        if not self.start_s <= time_s < self.end_s:
            return
        progress = (time_s - self.start_s) / (self.end_s - self.start_s)
        centre = self.start + progress * self.travel
        radius = self.radius * _scale(self.event.action, progress)
        frame[_covered(self.event.shape, grid, centre, radius)] = self.colour


def render_noise(
    random: np.random.Generator, duration_s: float, size: int = IMAGE_SIZE
) -> Iterator[npt.NDArray[np.uint8]]:
    """Draw ``duration_s * FRAME_RATE`` frames of grey blocks that flicker.

    The blocks are as large as things in scenes and have none of their colours. Frames are uint8
    RGB [size, size, 3].
    """
    for _ in range(round(duration_s * FRAME_RATE)):
        blocks = random.uniform(85, 150, (_NOISE_BLOCKS, _NOISE_BLOCKS))
        wide = np.kron(blocks, np.ones((-(-size // _NOISE_BLOCKS),) * 2))[:size, :size]
        yield np.repeat(wide[:, :, None], 3, axis=2).astype(np.uint8)


def _actors(scene: Scene, random: np.random.Generator, duration_s: float) -> list[_Actor]:
    if scene.kind == "single" or scene.second is None:
        return [_Actor(scene.first, 0, duration_s, random)]
    if scene.kind == "sequence":
        half_s = duration_s / 2
        return [
            _Actor(scene.first, 0, half_s, random),
            _Actor(scene.second, half_s, duration_s, random),
        ]
    assert scene.second.action == FLASH
    start_s = random.uniform(0, duration_s - _FLASH_S)
    moving = _Actor(scene.first, 0, duration_s, random)
    flashing = _Actor(scene.second, start_s, start_s + _FLASH_S, random)
    flashing.start = _place_beside(moving, random)
    # The flash is in front where their ways cross.
    return [moving, flashing]


def _place_beside(moving: _Actor, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Choose a place away from the middle of the other's way."""
    along = int(moving.travel[1] != 0)  # the axis that it moves on, rows or columns
    place = random.uniform(0.2, 0.8, 2)
    across = 1 - along
    place[across] = 0.8 if moving.start[across] < 0.5 else 0.2
    return place


def _scale(action: str, progress: float) -> float:
    if action == "grow":
        return 0.6 + 1.3 * progress
    if action == "shrink":
        return 1.9 - 1.3 * progress
    return 1.0


def _covered(
    shape: str, grid: _Grid, centre: npt.NDArray[np.float64], radius: float
) -> npt.NDArray[np.bool_]:
    down, across = grid[0] - centre[0], grid[1] - centre[1]
    inside: npt.NDArray[np.bool_]
    if shape == "circle":
        inside = down**2 + across**2 < radius**2
    elif shape == "square":
        inside = np.maximum(abs(down), abs(across)) < radius * 0.9
    else:
        inside = (abs(across) < (down + radius) * 0.6) & (down < radius)
    return inside
