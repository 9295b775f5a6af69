"""Excerpts of longer videos: what a window over an event shows that does not begin with it.

A model that saw only clips which begin with their event scores a third lower where a window
begins half a second beside it. Training videos therefore vary: some are a whole event, of any
length, and most are a window near an event, with frames of its neighbours or of noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from xclip_deploy.training.datasets.generated.rendering import (
    DURATION_S,
    FRAME_RATE,
    LEAST_EVENT_S,
    MOST_EVENT_S,
    render,
    render_noise,
)
from xclip_deploy.training.datasets.generated.scenes import Scene

_WHOLE_EVENTS = 1 / 3
"""Share of the excerpts that are a whole event and nothing else."""
_MOST_SHIFT_S = 1.0
"""Largest distance from the middle of the excerpt to the middle of its event, seconds."""
_NOISE = 0.1
"""Share of the neighbours that are noise."""

_Frames = Iterator[npt.NDArray[np.uint8]]


def render_excerpt(
    scene: Scene, before: Scene, after: Scene, random: np.random.Generator
) -> _Frames:
    """Draw a whole event of 4 to 8 s, or 6 s around its middle, uint8 RGB [96, 96, 3].

    ``before``, ``after``: scenes that the excerpt shows on either side, if it is longer than the
    event or shifted. ``random`` chooses all else.
    """
    event_s = random.uniform(LEAST_EVENT_S, MOST_EVENT_S)
    length = round(event_s * FRAME_RATE)
    if random.random() < _WHOLE_EVENTS:
        yield from render(scene, random, duration_s=length / FRAME_RATE)
        return
    shown = DURATION_S * FRAME_RATE
    shift = random.uniform(-_MOST_SHIFT_S, _MOST_SHIFT_S) * FRAME_RATE
    start = round((length - shown) / 2 + shift)  # of the excerpt, in frames of the event
    yield from _neighbour(before, random, range(start, 0))
    own = range(max(start, 0), min(start + shown, length))
    yield from render(scene, random, duration_s=length / FRAME_RATE, frames=own)
    yield from _neighbour(after, random, range(max(0, start + shown - length)))


def _neighbour(scene: Scene, random: np.random.Generator, frames: range) -> _Frames:
    """Draw the start of a scene, or its end where ``frames`` counts from there, or noise."""
    length = round(random.uniform(LEAST_EVENT_S, MOST_EVENT_S) * FRAME_RATE)
    if random.random() < _NOISE:
        return render_noise(random, len(frames) / FRAME_RATE)
    if frames.start < 0:
        frames = range(length + frames.start, length)
    return render(scene, random, duration_s=length / FRAME_RATE, frames=frames)
