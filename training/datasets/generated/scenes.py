"""Scenes of generated videos, and their captions.

No part of a caption tells the scene. Colours, shapes and motions come in all combinations. "A,
then B" and "B, then A" are different videos of the same things. A flash lasts one second of six.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from typing import Literal

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
MOTIONS = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "grow": "grows",
    "shrink": "shrinks",
}
FLASH = "flash"

Kind = Literal["single", "sequence", "flash"]


@dataclass(frozen=True)
class Event:
    """Thing and its action."""

    colour: str
    shape: str
    action: str
    """Key of ``MOTIONS``, or ``FLASH``."""

    @property
    def caption(self) -> str:
        """Words of the event: ``a red circle moves left``."""
        verb = "flashes" if self.action == FLASH else MOTIONS[self.action]
        return f"a {self.colour} {self.shape} {verb}"


@dataclass(frozen=True)
class Scene:
    """One event, two after each other, or a motion during which something flashes."""

    kind: Kind
    first: Event
    second: Event | None = None

    @property
    def caption(self) -> str:
        """Sentence that describes this scene and no other."""
        if self.second is None:
            return self.first.caption
        link = ", then " if self.kind == "sequence" else " while "
        return self.first.caption + link + self.second.caption

    @property
    def last(self) -> Event:
        """Event at the scene's end, beside which a flash counts as nothing."""
        if self.kind == "sequence" and self.second is not None:
            return self.second
        return self.first


THINGS = tuple(product(COLOURS, SHAPES))
EVENTS = tuple(Event(*thing, motion) for thing, motion in product(THINGS, MOTIONS))


def all_scenes(kind: Kind) -> list[Scene]:
    """Return every scene of a kind: 72 single, 5112 sequences, 792 with a flash."""
    if kind == "single":
        return [Scene(kind, event) for event in EVENTS]
    if kind == "sequence":
        return [Scene(kind, first, second) for first, second in permutations(EVENTS, 2)]
    return [
        Scene(kind, event, Event(*thing, FLASH))
        for event, thing in product(EVENTS, THINGS)
        # Words could not tell apart two things that look alike.
        if (event.colour, event.shape) != thing
    ]
