"""Records of what failed while the rest went on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FailedVideo:
    """A video that could not be added."""

    path: str
    reason: str


@dataclass(frozen=True)
class FailedShard:
    """A shard of a gallery that did not answer a search."""

    number: int
    """Number of the shard, from 0."""
    node: str
    """Names of the machines of its actors."""
    reason: str
