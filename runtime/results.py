"""What searching and adding videos return."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GrainScores:
    """The similarities whose mean, times the model's logit scale, is a text query's score.

    None for a grain that the model does not have (CLIP4Clip and CLIP have ``video_sentence``
    alone).
    """

    video_sentence: float | None = None
    video_word: float | None = None
    frame_sentence: float | None = None
    frame_word: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """One video that was found."""

    rank: int
    """1 for the best."""
    id: str
    path: str | None
    score: float
    """Text query: the model's logit. Video query: cosine of the two video embeddings."""
    grains: GrainScores | None
    """None for a video query, which has no words."""
    best_frame_time_s: float
    """Time of the frame most similar to the query, seconds from the video's start. It is one
    of the sampled frames: with one frame per second, exact to about a second."""

    def to_dict(self) -> dict[str, Any]:
        """As plain dictionaries and numbers, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class FailedVideo:
    """A video that could not be added."""

    path: str
    reason: str


@dataclass(frozen=True)
class AddReport:
    """What became of the videos given to ``Retriever.add``."""

    added: tuple[str, ...]
    """Ids, in the order of addition."""
    skipped: tuple[str, ...]
    """Ids that the gallery had already."""
    failed: tuple[FailedVideo, ...]
    warnings: tuple[FailedVideo, ...]
    """Videos that were added, but not whole: truncated or damaged ones."""

    def to_dict(self) -> dict[str, Any]:
        """As plain dictionaries and lists, for JSON."""
        return asdict(self)
