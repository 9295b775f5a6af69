"""Store which session of the GPU is fastest, so that ``auto`` takes it on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xclip_deploy.errors import XclipDeployError
from xclip_deploy.runtime.benchmark.results import BenchmarkedSession, Measurement
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.sessions.measured_choice import (
    MeasuredSession,
    keep_choice,
    order,
)
from xclip_deploy.runtime.sessions.registry import load_backend

_ENCODERS = (Graph.VIDEO_ENCODER, Graph.TEXT_ENCODER)
"""Graphs whose times count. Searches score a gallery on the GPU by other means than a session."""


def store_choice(
    bundle: Bundle,
    sessions: Sequence[BenchmarkedSession],
    measurements: Sequence[Measurement],
) -> str | None:
    """Order the sessions that ``auto`` could choose on GPU 0, and store the order.

    Returns a line for people; None where fewer than two sessions ran the encoders.
    """
    measured = []
    for session in sessions:
        if not _is_automatic(session):
            continue
        seconds = {
            f"{each.graph.value} {each.size}": each.percentile_s(50)
            for each in measurements
            if each.session == session.name and each.graph in _ENCODERS and each.error is None
        }
        folder = session.options.get("engines")
        engines = None if folder is None else Path(folder).name
        if seconds:
            measured.append(MeasuredSession(session.backend, session.precision, engines, seconds))
    choice = order(measured)
    if choice is None:
        return None
    first = choice.sessions[0]
    line = f"fastest on this GPU: {first.name}; {choice.words_on(first.backend)}"
    try:
        keep_choice(bundle, choice)
    except OSError as error:
        return f"{line}; not stored: {bundle.path} cannot be written ({error.strerror})"
    except XclipDeployError as error:
        return f"{line}; not stored: {error}"
    return f"{line}; stored beside the bundle, and auto follows it"


def _is_automatic(session: BenchmarkedSession) -> bool:
    """Return whether ``auto`` could choose a session as it was measured."""
    backend = load_backend(session.backend)
    names = {each.name for each in backend.arithmetics.get("cuda", ()) if each.is_automatic}
    # Backends without a rank on the GPU are taken only where they are named.
    has_rank = "cuda" in getattr(backend, "auto_rank", {})
    return session.device == "cuda:0" and has_rank and session.precision in names
