"""Time several ways of doing the same work, in turns, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.measured import Series

LONG_RUN_S = 0.1
"""Runs longer than this are not preceded by an untimed one: loading caches costs them little."""


def interleave(
    contenders: Mapping[str, Callable[[], object]], rounds: int, *, warm: bool = True
) -> dict[str, tuple[float, ...]]:
    """Return the seconds of every contender in every round.

    Every round begins with another contender, so that none always follows the same one.

    ``warm``: whether contenders run untimed at first, and before each short timed run, since
    caches hold the data of another by then. Programs that start anew each time need none.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    last_s = {name: timed(contenders[name]) if warm else LONG_RUN_S for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            if warm and last_s[name] < LONG_RUN_S:
                contenders[name]()
            last_s[name] = timed(contenders[name])
            seconds[name].append(last_s[name])
    return {name: tuple(samples) for name, samples in seconds.items()}


def measure(
    task: str,
    size: float,
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm: bool = True,
    yardsticks: frozenset[str] = frozenset(),
    traffic_bytes: Mapping[str, float] | None = None,
    **about: Any,  # noqa: ANN401 - fields of Series
) -> list[Series]:
    """Time contenders by :func:`interleave`; return a series of each.

    ``yardsticks``: contenders that are other programs. ``traffic_bytes``: least memory traffic by
    contender. ``about``: further fields of :class:`Series`, the same for all.
    """
    traffic = traffic_bytes or {}
    return [
        Series(
            task,
            size,
            name,
            samples,
            is_yardstick=name in yardsticks,
            traffic_bytes=traffic.get(name),
            **about,
        )
        for name, samples in interleave(contenders, rounds, warm=warm).items()
    ]


def timed(run: Callable[[], object]) -> float:
    """Run a function once; return the seconds it took."""
    began_s = time.perf_counter()
    run()
    return time.perf_counter() - began_s
