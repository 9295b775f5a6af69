"""Follow a build by TensorRT's own progress monitor, and stop it.

TensorRT reports phases within phases, each with a known number of steps. It reports no times. The
fraction computed from the steps never falls and ends at one; it does not tell the time left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from xclip_deploy.export.tensorrt.flavours import TensorRT

T = TypeVar("T")


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0
    remaining: float = 1.0
    """Share of the current step that its finished inner phases have not taken."""


class PhaseTree:
    """Nested phases, summed up as one fraction. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._root: str | None = None
        self._fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase of ``steps`` steps within ``parent``."""
        with self._lock:
            if self._root is None:
                self._root = name
            # TensorRT chooses names and nesting, and uses names again: keep the tree acyclic.
            above = parent
            while above is not None and above != name:
                above = self._phases[above].parent if above in self._phases else None
            self._phases[name] = _Phase(None if above == name else parent, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        """Mark step number ``step`` of a phase, from 0, as done."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = max(phase.done, min(step + 1, phase.steps))
                phase.remaining = 1.0

    def finish(self, name: str) -> None:
        """End a phase, whether or not all of its steps were reported."""
        with self._lock:
            phase = self._phases.pop(name, None)
            parent = self._phases.get(phase.parent or "") if phase else None
            if parent is not None:
                # The number of phases in a step is unknown: each takes half of what is left.
                parent.remaining /= 2
            if name == self._root:
                self._fraction = 1.0

    @property
    def fraction(self) -> float:
        """Fraction done, 0 to 1, never less than before."""
        with self._lock:
            if self._root in self._phases:
                self._fraction = max(self._fraction, self._fraction_of(self._root))
            return self._fraction

    def _fraction_of(self, name: str) -> float:
        phase = self._phases[name]
        if phase.done >= phase.steps:
            return 1.0
        within = 1.0 - phase.remaining
        inner = [
            self._fraction_of(one) for one, part in self._phases.items() if part.parent == name
        ]
        if inner:
            within += phase.remaining / 2 * sum(inner) / len(inner)
        return (phase.done + within) / phase.steps


class _Monitored:
    """Logic of the monitor, apart from TensorRT's class."""

    def __init__(self, report: Callable[[float, str], None] | None) -> None:
        self._report = report
        self._tree = PhaseTree()
        self._is_cancelled = threading.Event()
        self.error: BaseException | None = None
        """Exception that ``report`` raised. It must not pass through TensorRT's C++."""

    def cancel(self) -> None:
        self._is_cancelled.set()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._tree.start(name, parent, steps)
        self._tell(name)

    def step(self, name: str, step: int) -> bool:
        self._tree.step(name, step)
        self._tell(name)
        return not self._is_cancelled.is_set()

    def finish(self, name: str) -> None:
        self._tree.finish(name)

    def _tell(self, name: str) -> None:
        if self._report is None or self._is_cancelled.is_set():
            return
        try:
            self._report(self._tree.fraction, name)
        except BaseException as error:  # noqa: BLE001 - raised again when TensorRT has returned
            self.error = error
            self._is_cancelled.set()


def build_monitored(
    library: TensorRT,
    config: Any,  # noqa: ANN401 - a class of TensorRT's
    report: Callable[[float, str], None] | None,
    build: Callable[[], T],
) -> T:
    """Run ``build``, which builds with ``config``, report its progress and let it be stopped.

    ``report``: called with the fraction done and the phase. An exception that it raises ends the
    build at its next step. So does Ctrl-C (KeyboardInterrupt in the calling thread). Both are
    raised once TensorRT has returned.
    """
    monitored = _Monitored(report)
    # The configuration does not keep the monitor alive; this variable does.
    monitor = _make_monitor(library.module, monitored)
    config.progress_monitor = monitor
    result: list[T] = []
    raised: list[BaseException] = []
    is_done = threading.Event()

    def run() -> None:
        try:
            result.append(build())
        except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
            raised.append(error)
        finally:
            is_done.set()

    # TensorRT gets a thread of its own: no signal is handled while the main thread is in it.
    # The thread is no daemon: TensorRT would call into an interpreter that shuts down, and abort.
    thread = threading.Thread(target=run, name="tensorrt-build")
    thread.start()
    try:
        is_done.wait()
    except BaseException:
        monitored.cancel()
        raise
    finally:
        # TensorRT must keep what it works with. A second Ctrl-C ends this wait;
        # Python still waits for the thread when it exits.
        is_done.wait()
        config.progress_monitor = None
    for error in (monitored.error, *raised):
        if error is not None:
            raise error
    return result[0]


def _make_monitor(trt: Any, monitored: _Monitored) -> Any:  # noqa: ANN401 - TensorRT's
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is not typed
        # Some versions of TensorRT pass arguments by name, others by position.
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            monitored.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            monitored.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return monitored.step(phase_name, step)

    return Monitor()
