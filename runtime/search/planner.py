"""Choice between exact and two-stage search, by the measured cost of scoring."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from xclip_deploy.runtime.results import SearchMethod
from xclip_deploy.runtime.search.options import SearchOptions

EXACT_BUDGET_S = 0.025
"""Longest time for scoring every video for one text; above it, two stages are chosen."""
_FIRST_GUESS_S = EXACT_BUDGET_S / 1000
_WEIGHT = 0.2


_SCAN_GUESS_S = 0.0005
_SCAN_GUESS_BYTES_PER_S = 3e11
"""Guess of a scan's time: its launch, then the memory of a GPU for inference."""


@dataclass(frozen=True)
class Plan:
    """A search method and the reason for it."""

    method: SearchMethod
    reason: str

    def because(self, why: str) -> Plan:
        """Return the plan with one more reason, if there is one."""
        return replace(self, reason=f"{self.reason}; {why}") if why else self


@dataclass(frozen=True)
class ScanSize:
    """The copy of a gallery on a GPU that a search may scan."""

    device_name: str
    num_slots: int
    slot_bytes: int


@dataclass(frozen=True)
class Cost:
    """An estimate of the time that an exact search takes."""

    seconds: float
    is_measured: bool
    """Whether past searches gave it; else it is a guess."""
    device_name: str = ""
    """GPU whose copy of the gallery is scanned; empty where the CPU scores."""


class Planner:
    """Estimates of what each method costs, learned from past searches."""

    def __init__(self, budget_s: float = EXACT_BUDGET_S) -> None:
        """Begin with guesses. ``budget_s``: longest time to score all videos for one text."""
        self._budget_s = budget_s
        self._lock = threading.Lock()
        self._pair_s = _FIRST_GUESS_S
        self._measured = False
        self._two_stage_s: float | None = None
        self._num_scans = 0
        self._scan: tuple[float, int] | None = None  # seconds of a pass, and its slots

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
        cost = cost or self.cost(num_videos)
        how = "measured" if cost.is_measured else "assumed"
        if cost.device_name and options.exact is not False:
            # Two stages that are slower than a scan gain nothing.
            limit_s = max(self._budget_s, self._two_stage_s or 0.0)
            is_cheap = num_videos <= options.num_candidates or cost.seconds <= limit_s
            if options.exact or is_cheap:
                asked = "asked for; " if options.exact else ""
                return Plan(
                    "exact",
                    f"{asked}resident on {cost.device_name}: scoring all takes "
                    f"{cost.seconds * 1e3:.1f} ms a text ({how})",
                )
        if options.exact is not None:
            return Plan("exact" if options.exact else "two-stage", "asked for")
        if num_videos <= options.num_candidates:
            return Plan("exact", f"{num_videos} {unit} are no more than the candidates would be")
        if cost.seconds <= self._budget_s:
            return Plan("exact", f"scoring all takes {cost.seconds * 1e3:.1f} ms a text ({how})")
        return Plan(
            "two-stage",
            f"scoring all {num_videos} {unit} would take {cost.seconds * 1e3:.0f} ms a text "
            f"({how})",
        )

    def cost(self, num_videos: int) -> Cost:
        """Estimate the time that ``num_videos`` scores for one text take on the CPU."""
        return Cost(self._pair_s * num_videos, self._measured)

    def scan_cost(self, scan: ScanSize) -> Cost:
        """Estimate the time of one pass over the slots of a GPU's copy."""
        with self._lock:
            if self._scan is not None:
                return Cost(self._scan_s(scan.num_slots), True, scan.device_name)
        nbytes = scan.num_slots * scan.slot_bytes
        seconds = _SCAN_GUESS_S + nbytes / _SCAN_GUESS_BYTES_PER_S
        return Cost(seconds, False, scan.device_name)

    def learn(self, num_pairs: int, seconds: float) -> None:
        """Update the estimate for the CPU: ``num_pairs`` scores took ``seconds``."""
        if num_pairs < 100:  # below 100 pairs, call overhead dominates
            return
        with self._lock:
            found = seconds / num_pairs
            self._pair_s += (found - self._pair_s) * (_WEIGHT if self._measured else 1.0)
            self._measured = True

    def learn_scan(self, scan: ScanSize, num_passes: int, seconds: float) -> None:
        """Update the estimate for the GPU: ``num_passes`` over all slots took ``seconds``."""
        with self._lock:
            self._num_scans += 1
            if self._num_scans == 1:
                return  # it loaded the kernels
            found = seconds / num_passes
            if self._scan is not None:
                known = self._scan_s(scan.num_slots)
                found = known + (found - known) * _WEIGHT
            self._scan = found, scan.num_slots

    def learn_two_stage(self, num_texts: int, seconds: float) -> None:
        """Update the estimate for two stages: ``num_texts`` texts took ``seconds``."""
        with self._lock:
            found, known = seconds / num_texts, self._two_stage_s
            self._two_stage_s = found if known is None else known + (found - known) * _WEIGHT

    def _scan_s(self, num_slots: int) -> float:
        assert self._scan is not None
        seconds, known = self._scan
        # Fewer slots may take as long: the launch does not shrink.
        return seconds * max(1.0, num_slots / max(1, known))
