"""Choice between exact and two-stage search, by the measured cost of scoring."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from xclip_deploy.runtime.results import SearchMethod
from xclip_deploy.runtime.search.options import SearchOptions

EXACT_BUDGET_S = 0.025
"""Longest time for scoring every video for one text; above it, two stages are chosen."""
_FIRST_GUESS_S = EXACT_BUDGET_S / 1000
_WEIGHT = 0.2


@dataclass(frozen=True)
class Plan:
    """A search method and the reason for it."""

    method: SearchMethod
    reason: str


@dataclass(frozen=True)
class Cost:
    """An estimate of the time that an exact search takes."""

    seconds: float
    is_measured: bool
    """Whether past searches gave it; else it is a guess."""


class Planner:
    """An estimate of the cost of one score, learned from past searches."""

    def __init__(self, budget_s: float = EXACT_BUDGET_S) -> None:
        """Begin with a guess. ``budget_s``: longest time to score all videos for one text."""
        self._budget_s = budget_s
        self._lock = threading.Lock()
        self._pair_s = _FIRST_GUESS_S
        self._measured = False

    def plan(
        self,
        num_videos: int,
        options: SearchOptions,
        unit: str = "videos",
        cost: Cost | None = None,
    ) -> Plan:
        """Choose the method for ``num_videos``; ``unit`` is the word for them.

        ``cost``: that of the slowest shard, where several share the work; None for one's own.
        """
        if options.exact is not None:
            return Plan("exact" if options.exact else "two-stage", "asked for")
        if num_videos <= options.num_candidates:
            return Plan("exact", f"{num_videos} {unit} are no more than the candidates would be")
        cost = cost or self.cost(num_videos)
        how = "measured" if cost.is_measured else "assumed"
        if cost.seconds <= self._budget_s:
            return Plan("exact", f"scoring all takes {cost.seconds * 1e3:.1f} ms a text ({how})")
        return Plan(
            "two-stage",
            f"scoring all {num_videos} {unit} would take {cost.seconds * 1e3:.0f} ms a text "
            f"({how})",
        )

    def cost(self, num_videos: int) -> Cost:
        """Estimate the time that ``num_videos`` scores for one text take."""
        return Cost(self._pair_s * num_videos, self._measured)

    def learn(self, num_pairs: int, seconds: float) -> None:
        """Update the estimate: ``num_pairs`` scores took ``seconds``."""
        if num_pairs < 100:  # below 100 pairs, call overhead dominates
            return
        with self._lock:
            found = seconds / num_pairs
            self._pair_s += (found - self._pair_s) * (_WEIGHT if self._measured else 1.0)
            self._measured = True
