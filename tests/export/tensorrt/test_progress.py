"""BuildProgress made of TensorRT's phases, and what happens to exceptions."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.export.tensorrt import TensorRT
from xclip_deploy.export.tensorrt.progress import PhaseTree, build_monitored


def test_phases_within_phases() -> None:
    tree = PhaseTree()
    assert tree.fraction == 0
    tree.start("all", None, 4)
    tree.step("all", 0)
    assert tree.fraction == 0.25
    tree.start("part", "all", 2)
    tree.step("part", 0)
    assert tree.fraction == 0.25 + 0.25 / 2 / 2
    tree.finish("part")
    assert tree.fraction == 0.25 + 0.25 / 2
    tree.step("all", 1)
    assert tree.fraction == 0.5
    tree.finish("all")
    assert tree.fraction == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "step", "finish"]),
            st.sampled_from("abcd"),
            st.sampled_from([None, *"abcd"]),
            st.integers(0, 6),
        ),
        max_size=30,
    )
)
def test_the_fraction_never_falls_whatever_is_reported(
    events: list[tuple[str, str, str | None, int]],
) -> None:
    """Versions report differently; a bar must neither fall nor leave 0 to 1."""
    tree = PhaseTree()
    tree.start("root", None, 3)
    before = 0.0
    for event, name, parent, number in events:
        if event == "start":
            tree.start(name, parent if parent != name else "root", number)
        elif event == "step":
            tree.step(name, number)
        else:
            tree.finish(name)
        assert before <= tree.fraction <= 1
        before = tree.fraction


class Config:
    """Has what a builder configuration is given here."""

    progress_monitor: Any = None


def test_a_report_that_raises_stops_the_build(rtx: TensorRT) -> None:
    """It must not be raised within TensorRT, whose C++ would not survive it."""
    config = Config()
    answers = []

    def build() -> None:
        monitor = config.progress_monitor
        monitor.phase_start("all", None, 2)
        answers.append(monitor.step_complete("all", 0))
        monitor.phase_finish("all")

    def report(fraction: float, phase: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build_monitored(rtx, config, report, build)
    assert answers == [False]
    assert config.progress_monitor is None


def test_a_build_that_raises(rtx: TensorRT) -> None:
    def build() -> None:
        raise LookupError("of its own")

    with pytest.raises(LookupError, match="of its own"):
        build_monitored(rtx, Config(), None, build)


def test_a_build_returns(rtx: TensorRT) -> None:
    threads = []

    def build() -> str:
        threads.append(threading.current_thread())
        return "engine"

    assert build_monitored(rtx, Config(), None, build) == "engine"
    # Not in ours, which must be free for Ctrl-C; and over by now.
    assert threads[0] is not threading.current_thread()
    assert not threads[0].is_alive()
