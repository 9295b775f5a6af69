"""Measure sessions side by side. Each has a process of its own; they take turns in rounds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any

from xclip_deploy.errors import InvalidArgumentError, SessionError, XclipDeployError
from xclip_deploy.runtime.arguments import (
    as_callback,
    as_instance,
    as_member,
    as_number,
    as_sequence,
    as_whole_number,
)
from xclip_deploy.runtime.benchmark.child import Child
from xclip_deploy.runtime.benchmark.choosing import store_choice
from xclip_deploy.runtime.benchmark.machine import installed_versions, this_machine
from xclip_deploy.runtime.benchmark.results import (
    Benchmark,
    BenchmarkedSession,
    Loading,
    Measurement,
    SkippedSession,
)
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.presentation import listed
from xclip_deploy.runtime.progress import Progress, ProgressFunction
from xclip_deploy.runtime.sessions import Refusal, SessionOptions, offers
from xclip_deploy.runtime.sessions.registry import registrations

logger = logging.getLogger(__name__)

_LONG_RUN_S = 0.1
_MOST = 1 << 31


@dataclass(frozen=True)
class BenchmarkPlan:
    """Sizes and times of a benchmark. Raises InvalidArgumentError for values out of range."""

    sizes: Mapping[Graph, Sequence[int]] = field(
        default_factory=lambda: {
            Graph.VIDEO_ENCODER: (1, 8),
            Graph.TEXT_ENCODER: (1, 32),
            Graph.SCORER: (100, 1000),
        }
    )
    """Sizes at which each graph is measured: videos or texts in one run; for the scorer, videos
    scored for one text."""
    seconds: float = 3.0
    """Least time to run each session at each size, over all rounds."""
    rounds: int = 5
    """Turns of each session at a size. With several turns, other load on the machine slows all
    sessions alike."""
    warmup: int = 2
    """Untimed runs at each size. One more precedes each turn, since caches hold another session's
    weights by then. Runs longer than 0.1 s skip it."""

    def __post_init__(self) -> None:
        as_instance("sizes", self.sizes, Mapping, "a mapping of graphs to sizes")
        if not self.sizes or not all(self.sizes.values()):
            raise InvalidArgumentError("sizes: expected at least one graph with one size")
        for graph, sizes in self.sizes.items():
            graph = as_member("graph", graph, Graph)
            for size in as_sequence("sizes", sizes, "sizes"):
                as_whole_number(f"size of {graph.value}", size, 1, _MOST)
        if as_number("seconds", self.seconds, 0) == 0:
            raise InvalidArgumentError("seconds is 0; expected more than 0")
        as_whole_number("rounds", self.rounds, 1, _MOST)
        as_whole_number("warmup", self.warmup, 0, _MOST)


def benchmark_sessions(
    bundle: str | PathLike[str] | Bundle = "xclip-bundle",
    sessions: Sequence[SessionOptions] | None = None,
    *,
    plan: BenchmarkPlan | None = None,
    progress: ProgressFunction | None = None,
) -> Benchmark:
    """Measure latency, throughput and memory of a bundle's graphs.

    Each graph runs in a process of its own for each session. The sessions take turns, one at a
    time, with random inputs of full length.

    ``sessions``: options of the sessions; None: every session that this machine offers. Those that
    cannot be opened are then left out and reported. ``progress``: called at the start of every
    step, which ``note`` names, and at the end. Raises BundleError or InvalidArgumentError, and
    SessionError (or another error of opening) for a session that was asked for.

    Where all sessions were measured and several run on the GPU, the order of their speed is stored
    beside the bundle. ``auto`` follows it on this machine.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    plan = BenchmarkPlan() if plan is None else plan
    as_instance("plan", plan, BenchmarkPlan, "a BenchmarkPlan or None")
    as_callback("progress", progress)
    machine = this_machine()  # before the benchmark loads it
    is_asked = sessions is not None
    offered: Sequence[SessionOptions | Refusal]
    if sessions is None:
        offered = offers(bundle)
    else:
        offered = as_sequence("sessions", sessions, "SessionOptions")
        for each in offered:
            as_instance("a session", each, SessionOptions, "SessionOptions")
    wanted = [offer for offer in offered if isinstance(offer, SessionOptions)]
    refused = tuple(
        SkippedSession(options=_plain(offer.options), reason=offer.reason)
        for offer in offered
        if isinstance(offer, Refusal)
    )
    if not wanted:
        raise InvalidArgumentError("sessions: expected at least one")
    run = _Run(bundle, plan, wanted, is_asked, progress)
    for graph in Graph:
        if graph in plan.sizes:
            run.measure(graph, sorted(set(plan.sizes[graph])))
    run.finish()
    if not run.sessions:
        reasons = listed([skipped.reason for skipped in run.skipped.values()])
        raise SessionError(f"no session could be opened: {reasons}")
    measured = (tuple(run.sessions.values()), tuple(run.measurements))
    # A choice among sessions that were asked for would leave out the others.
    choice = None if is_asked else store_choice(bundle, *measured)
    return Benchmark(
        bundle=str(bundle.path),
        fingerprint=bundle.manifest.fingerprint,
        model=_model(bundle),
        machine=machine,
        versions=installed_versions(),
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        rounds=plan.rounds,
        seconds=plan.seconds,
        warmup=plan.warmup,
        sessions=tuple(run.sessions.values()),
        skipped=(*run.skipped.values(), *refused),
        loadings=tuple(run.loadings),
        measurements=tuple(run.measurements),
        choice=choice,
    )


class _Run:
    """A benchmark under way. A session's number is its place in the list of all."""

    def __init__(
        self,
        bundle: Bundle,
        plan: BenchmarkPlan,
        wanted: Sequence[SessionOptions],
        is_asked: bool,
        progress: ProgressFunction | None,
    ) -> None:
        self._bundle, self._plan, self._wanted, self._is_asked = bundle, plan, wanted, is_asked
        self._progress, self._done = progress, 0
        self._steps = sum(len(wanted) + len(set(sizes)) for sizes in plan.sizes.values())
        self.sessions: dict[int, BenchmarkedSession] = {}
        self.skipped: dict[int, SkippedSession] = {}
        self.loadings: list[Loading] = []
        self.measurements: list[Measurement] = []

    def measure(self, graph: Graph, sizes: Sequence[int]) -> None:
        """Measure one graph in all sessions, at all sizes."""
        with ExitStack() as stack:
            children: dict[int, Child] = {}
            for number, options in enumerate(self._wanted):
                changed = _plain(options)
                self._step(f"opening {graph.value}, {_words(changed) or 'default options'}")
                if number in self.skipped:
                    continue
                request = {
                    "bundle": str(self._bundle.path.absolute()),
                    "graph": graph.value,
                    "options": changed,
                    "sizes": sizes,
                    "backends": registrations(),
                }
                try:
                    children[number] = stack.enter_context(Child(request))
                except XclipDeployError as error:
                    if self._is_asked:
                        raise
                    self.skipped[number] = SkippedSession(options=changed, reason=str(error))
                    continue
                self._opened(number, graph, changed, children[number].opened)
            for size in sizes:
                self._step(f"measuring {graph.value} at {size}")
                self._measure_size(graph, size, children)

    def _measure_size(self, graph: Graph, size: int, children: dict[int, Child]) -> None:
        """Let all children take turns. One that fails is left out from this size on."""
        plan = self._plan
        latencies_s: dict[int, list[float]] = {number: [] for number in children}
        last: dict[int, dict[str, Any]] = {}
        failed: dict[int, str] = {}
        for turn in range(plan.rounds + 1):
            numbers = [number for number in children if number not in failed]
            # Each round begins with another session, so that none always follows the same one.
            shift = turn % max(1, len(numbers))
            for number in numbers[shift:] + numbers[:shift]:
                is_long = number in last and last[number]["last_run_s"] > _LONG_RUN_S
                try:
                    answer = children[number].run(
                        size,
                        seconds=0.0 if turn == 0 else plan.seconds / plan.rounds,
                        warmup=plan.warmup if turn == 0 else int(not is_long),
                    )
                except XclipDeployError as error:
                    failed[number] = str(error)
                    continue
                self._said(number, answer)
                latencies_s[number] += answer["latencies_s"]
                last[number] = answer
        for number in list(children):
            is_failed = number in failed
            found = last.get(number, {})
            self.measurements.append(
                Measurement(
                    session=self.sessions[number].name,
                    graph=graph,
                    size=size,
                    latencies_s=() if is_failed else tuple(latencies_s[number]),
                    peak_memory_bytes=None if is_failed else found["peak_memory_bytes"],
                    device_memory_bytes=None if is_failed else found["device_memory_bytes"],
                    error=failed.get(number),
                )
            )
            if is_failed:
                children.pop(number).close()

    def _opened(
        self, number: int, graph: Graph, changed: dict[str, Any], opened: Mapping[str, Any]
    ) -> None:
        if number not in self.sessions:
            name = f"{opened['backend']} {opened['device']} {opened['precision']}"
            rest = {
                # The name of an engine set suffices: its folder lies in the bundle.
                key: Path(value).name if key == "engines" else value
                for key, value in changed.items()
                if key not in ("backend", "device", "device_id", "precision")
            }
            name = f"{name} {_words(rest)}".strip()
            taken = {session.name for session in self.sessions.values()}
            if name in taken:
                name += f" ({number + 1})"
            self.sessions[number] = BenchmarkedSession(
                name=name,
                backend=opened["backend"],
                device=opened["device"],
                precision=opened["precision"],
                options=changed,
            )
        self._said(number, opened)
        self.loadings.append(
            Loading(
                session=self.sessions[number].name,
                graph=graph,
                seconds=opened["seconds"],
                memory_bytes=opened["memory_bytes"],
                device_memory_bytes=opened["device_memory_bytes"],
            )
        )

    def _said(self, number: int, answer: Mapping[str, Any]) -> None:
        """Keep the reason of a placement, and pass on the warnings of its process.

        Each graph runs in a process of its own. The last one knows of all self-tests; what a run
        found belongs to its graph alone.
        """
        session = self.sessions[number]
        for warning in answer["warnings"]:
            logger.warning("%s: %s", session.name, warning)
        known = session.reason or ""
        kept = [each for each in known.split("; ")[1:] if each not in answer["reason"]]
        reason = "; ".join([answer["reason"], *kept])
        self.sessions[number] = session.model_copy(update={"reason": reason})

    def _step(self, label: str) -> None:
        if self._progress:
            self._progress(Progress("measuring", self._done, self._steps, note=label))
        self._done += 1

    def finish(self) -> None:
        """Report the end."""
        assert self._done == self._steps
        if self._progress:
            self._progress(Progress("measuring", self._steps, self._steps, note="done"))


def _plain(options: SessionOptions) -> dict[str, Any]:
    """Return the changed options in a form that JSON takes."""
    changed = options.changed()
    return {name: str(v) if isinstance(v, Path) else v for name, v in changed.items()}


def _words(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())


def _model(bundle: Bundle) -> str:
    model = bundle.manifest.model
    return (
        f"{model.family.value}, vision {model.vision.layers} layers of {model.vision.width}, "
        f"{model.vision.image_size} px in patches of {model.vision.patch_size}, "
        f"{model.max_frames} frames, {model.max_words} words"
    )
