"""Similarity of each grain of a hit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.grains import Grain

KNOWN_GRAINS = tuple(grain.value for grain in Grain)
"""Name of every grain, in the model's order."""


class GrainScores(Mapping[str, float]):
    """Immutable mapping of grain name to similarity, in the model's order.

    score = exp(logit_scale) · mean of the grains, for a text query. Every known grain is an
    attribute too: ``grains.video_sentence`` is None where the model lacks it. CLIP4Clip and CLIP
    have ``video_sentence`` alone.
    """

    __slots__ = ("_scores",)
    _scores: dict[str, float]

    def __init__(self, scores: Mapping[str, float]) -> None:
        """Take similarities by grain name. Raises InvalidArgumentError for an unknown name."""
        unknown = [str(name) for name in scores if name not in KNOWN_GRAINS]
        if unknown:
            raise InvalidArgumentError(
                f"{', '.join(unknown)}: no such grain; expected some of {', '.join(KNOWN_GRAINS)}"
            )
        object.__setattr__(self, "_scores", dict(scores))

    def __getitem__(self, name: str) -> float:
        return self._scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    def __getattr__(self, name: str) -> float | None:
        if name not in KNOWN_GRAINS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self._scores.get(name)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable; cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable; cannot delete {name!r}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *KNOWN_GRAINS]

    def __hash__(self) -> int:
        return hash(frozenset(self._scores.items()))

    def __reduce__(self) -> tuple[type[GrainScores], tuple[dict[str, float]]]:
        return GrainScores, (self._scores,)

    def __repr__(self) -> str:
        scores = ", ".join(f"{name}={score:.4g}" for name, score in self._scores.items())
        return f"GrainScores({scores})"

    def to_dict(self) -> dict[str, float | None]:
        """Convert to a dictionary for JSON: every known grain, None where the model lacks it."""
        return {name: self._scores.get(name) for name in KNOWN_GRAINS}
