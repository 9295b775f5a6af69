"""The order of a bundle's sessions on this machine's GPU, as ``xclip-deploy bench`` measured it.

Engines that fit are not always faster than ONNX Runtime. ``bench`` measures both and leaves a
record beside the bundle. ``auto`` follows the record where there is one, and ranks otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from xclip_deploy.errors import XclipDeployError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.engine_set import ENGINES_DIRECTORY, engine_file, engine_sets
from xclip_deploy.runtime.manifest import Precision
from xclip_deploy.runtime.sessions.machine_records import (
    has_records,
    machine_key,
    read_record,
    write_record,
)

_KIND = "choice"


@dataclass(frozen=True)
class MeasuredSession:
    """A session that ``bench`` measured on the GPU."""

    backend: str
    precision: str
    engines: str | None
    """Name of the engine set's folder in the bundle; None for ONNX Runtime."""
    seconds: Mapping[str, float]
    """Median time of a run, by graph and size: ``video_encoder 8``."""

    @property
    def name(self) -> str:
        """Name for people."""
        return self.engines or self.backend

    def slowness(self, best: Mapping[str, float]) -> float:
        """Return the geometric mean of its times over those of ``best``, 1 or more."""
        ratios = [self.seconds[run] / best[run] for run in best]
        return math.exp(sum(map(math.log, ratios)) / len(ratios))


@dataclass(frozen=True)
class MeasuredChoice:
    """Sessions from the fastest to the slowest, over all runs of the encoders."""

    sessions: tuple[MeasuredSession, ...]
    slowness: tuple[float, ...]
    day: str
    """Day of the measurement in UTC, ``2026-11-26``."""

    def position(self, backend: str) -> int:
        """Return the place of a backend's fastest session; that behind the last for others."""
        backends = [session.backend for session in self.sessions]
        return backends.index(backend) if backend in backends else len(backends)

    def engines_of(self, backend: str, bundle: Bundle) -> Path | None:
        """Return the folder of a backend's fastest engine set; None where it has none."""
        for session in self.sessions:
            if session.backend == backend and session.engines is not None:
                return bundle.path / ENGINES_DIRECTORY / session.engines
        return None

    def words_on(self, backend: str) -> str:
        """Say for a placement's reason how a backend did: ``bench found it 1.3 times …``."""
        place = self.position(backend)
        if place >= len(self.sessions):
            return f"bench did not measure {backend} ({self.day})"
        others = [n for n, each in enumerate(self.sessions) if each.backend != backend]
        if not others:
            return f"bench measured it alone ({self.day})"
        other = others[0]
        factor = self.slowness[other] / self.slowness[place]
        rival = self.sessions[other].name
        if factor < 1:
            return f"bench found {rival} {1 / factor:.2f} times as fast here ({self.day})"
        return f"bench found it {factor:.2f} times as fast as {rival} here ({self.day})"


def order(sessions: Sequence[MeasuredSession]) -> MeasuredChoice | None:
    """Order sessions by their times at the sizes that all of them ran; None for fewer than two.

    A backend's FP32 sessions count only where it has none in FP16, which ``auto`` prefers.
    """
    preferred = {s.backend for s in sessions if s.precision == Precision.FP16.value}
    wanted = [
        session
        for session in sessions
        if session.precision == Precision.FP16.value or session.backend not in preferred
    ]
    if len(wanted) < 2:
        return None
    runs = set.intersection(*(set(session.seconds) for session in wanted))
    if not runs:
        return None
    best = {run: min(session.seconds[run] for session in wanted) for run in sorted(runs)}
    ranked = sorted(wanted, key=lambda session: session.slowness(best))
    slowness = tuple(session.slowness(best) for session in ranked)
    day = datetime.now(timezone.utc).date().isoformat()
    return MeasuredChoice(tuple(ranked), slowness, day)


def keep_choice(bundle: Bundle, choice: MeasuredChoice, device_id: int = 0) -> Path:
    """Write a choice beside the bundle and return its file.

    Raises OSError where that cannot be written, and EngineError for a damaged engine set.
    """
    sessions = [vars(session) | {"seconds": dict(session.seconds)} for session in choice.sessions]
    finding = {"sessions": sessions, "slowness": list(choice.slowness), "day": choice.day}
    return write_record(bundle.path, _KIND, _key(bundle, device_id), finding)


def read_choice(bundle: Bundle, device_id: int = 0) -> MeasuredChoice | None:
    """Return the choice that holds for this machine and these files; None where there is none."""
    if not has_records(bundle.path):
        return None
    try:
        found = read_record(bundle.path, _KIND, _key(bundle, device_id))
    except XclipDeployError:
        return None  # a damaged engine set: opening it says what is wrong
    return None if found is None else _parsed(found)


def _parsed(found: dict[str, Any]) -> MeasuredChoice | None:
    try:
        sessions = tuple(
            MeasuredSession(
                str(each["backend"]),
                str(each["precision"]),
                None if each["engines"] is None else str(each["engines"]),
                {str(run): float(seconds) for run, seconds in each["seconds"].items()},
            )
            for each in found["sessions"]
        )
        slowness = tuple(float(each) for each in found["slowness"])
        if len(slowness) != len(sessions) or not all(each >= 1 for each in slowness):
            return None
        return MeasuredChoice(sessions, slowness, str(found["day"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _key(bundle: Bundle, device_id: int) -> dict[str, str]:
    """Return the key of a choice: the machine, its GPU, and every graph and engine."""
    files = {
        name: record.sha256
        for name, record in bundle.manifest.files.items()
        if name.endswith(".onnx")
    }
    for folder, engine_set in engine_sets(bundle).items():
        for graph, engine in engine_set.engines.items():
            files[f"{folder.name}/{engine_file(graph)}"] = engine.file.sha256
    return machine_key(files, device_id)
