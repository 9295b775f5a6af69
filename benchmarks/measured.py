"""Record of a run of benchmarks: what was measured, on which machine, and the file that keeps it.

A series holds every sample, not a summary, so that two runs can be compared by their scatter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.machine import Surroundings
from xclip_deploy.runtime.files import replace_text

FORMAT = "xclip-deploy benchmarks"
VERSION = 1
Unit = Literal["s", "bytes"]
Key = tuple[str, float, str]


class Quartiles(NamedTuple):
    """Middle half of a series."""

    low: float
    """First quartile."""
    median: float
    high: float
    """Third quartile."""


@dataclass(frozen=True)
class Series:
    """Samples of one contender at one task: times or memory, so that less is better."""

    task: str
    """Task: ``video encoder``."""
    size: float
    """Size of the task: videos in a run, videos in a gallery, threads."""
    contender: str
    """Program that does the task: ``onnxruntime fp32``."""
    samples: tuple[float, ...]
    """One sample a round. Contenders of one task and size took turns, so that equal places of
    their samples belong to one round."""
    unit: Unit = "s"
    work: float = 1.0
    """Items that one sample processes."""
    item: str = ""
    """Name of the items: ``videos``, ``pairs``."""
    flops: float | None = None
    """Floating-point operations of one sample that no way of computing can leave out."""
    traffic_bytes: float | None = None
    """Least memory traffic of one sample: each weight and each input once."""
    is_yardstick: bool = False
    """True for another program, which the others are held against."""

    @property
    def key(self) -> Key:
        """Task, size and contender, which name a series in a run."""
        return self.task, self.size, self.contender

    @property
    def quartiles(self) -> Quartiles:
        """Quartiles of the samples."""
        return quartiles(self.samples)

    @property
    def rate(self) -> float:
        """Items a second at the median."""
        return self.work / self.quartiles.median


@dataclass(frozen=True)
class Part:
    """Everything that one part of the run measured."""

    name: str
    series: tuple[Series, ...]
    facts: dict[str, float | str] = field(default_factory=dict)
    """Single findings: cosines, recalls, stages in seconds, reasons for what was left out."""
    seconds: float = 0.0
    """Duration of the part, preparations included."""
    load_before: float = 0.0
    """The machine's load average over one minute before the part."""
    others: float | None = None
    """Share of all cores that other processes used meanwhile, 0 to 1; None: not known."""


@dataclass(frozen=True)
class Run:
    """One run of the benchmarks."""

    surroundings: Surroundings
    settings: dict[str, Any]
    """Seed, bundle, model, clips, and whether sizes are toys."""
    parts: tuple[Part, ...] = ()

    def part(self, name: str) -> Part | None:
        """Return a part, or None where it was not measured."""
        return next((part for part in self.parts if part.name == name), None)

    @property
    def series(self) -> list[Series]:
        """Every series of every part."""
        return [series for part in self.parts for series in part.series]

    def find(self, task: str, size: float | None = None, contender: str = "") -> list[Series]:
        """Return the series of a task; those of one size; those whose contender has this text."""
        return [
            series
            for series in self.series
            if series.task == task and size in (None, series.size) and contender in series.contender
        ]

    def fact(self, name: str) -> float | str | None:
        """Return a finding of any part."""
        return next((part.facts[name] for part in self.parts if name in part.facts), None)

    def write(self, path: Path) -> None:
        """Write the run as JSON, in one step."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        replace_text(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read a run. Raises ValueError, in one line, for a file of another kind, or OSError."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content["format"], content["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no file of results; expected performance.json") from error
        if found != (FORMAT, VERSION):
            raise ValueError(f"{path} has format {found}; expected {(FORMAT, VERSION)}")
        parts = tuple(
            Part(**{**part, "series": tuple(_series(each) for each in part["series"])})
            for part in content["parts"]
        )
        return cls(Surroundings(**content["surroundings"]), content["settings"], parts)


def _series(content: dict[str, Any]) -> Series:
    return Series(**{**content, "samples": tuple(content["samples"])})


FEWEST = 4
"""Least samples of a series from which a verdict is drawn."""


def quartiles(samples: Sequence[float]) -> Quartiles:
    """Return first quartile, median and third quartile of at least one number."""
    low, median, high = np.quantile(samples, (0.25, 0.5, 0.75))
    return Quartiles(float(low), float(median), float(high))


def speedup(slow: Series, fast: Series) -> Quartiles:
    """Return how many times as fast ``fast`` is: quartiles of the ratios of equal rounds.

    A load that slows a whole round cancels out of its ratio.
    """
    pairs = zip(slow.samples, fast.samples, strict=True)
    scale = fast.work / slow.work
    return quartiles([scale * before / after for before, after in pairs])
