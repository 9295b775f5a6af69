"""Description of the machine and the software that a run of benchmarks measures."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from xclip_deploy.runtime.benchmark.machine import installed_versions, this_machine

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "openvino", "av", "lancedb", "pyarrow", "nncf")
_FLAGS = re.compile(r"^(avx|amx|fma|f16c|sse4|asimd|sve|bf16|i8mm)")


@dataclass(frozen=True)
class Surroundings:
    """Machine, versions and load of a run."""

    created_utc: str
    machine: dict[str, Any]
    """Processor, cores, memory and system, as ``xclip-deploy bench`` describes them."""
    flags: list[str]
    """Vector instructions of the processor."""
    caches: dict[str, str]
    """Size of each cache of the first core, by its name."""
    versions: dict[str, str]
    commit: str
    """Commit of the code, with ``+`` after it where files differ; empty outside a clone."""
    load_before: list[float]
    """Load averages over 1, 5 and 15 minutes before the run."""

    @classmethod
    def now(cls) -> Surroundings:
        """Describe this machine now, before a benchmark loads it."""
        versions = installed_versions()
        for package in _PACKAGES:
            with suppress(metadata.PackageNotFoundError):
                versions[package] = metadata.version(package)
        return cls(
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=this_machine().model_dump(mode="json"),
            flags=_flags(),
            caches=_caches(),
            versions=versions,
            commit=_commit(),
            load_before=[round(load, 2) for load in os.getloadavg()],
        )

    @property
    def place(self) -> tuple[str, int, list[str]]:
        """Processor, cores and flags; absolute times compare where they are equal."""
        return self.machine["cpu"], self.machine["cores"], self.flags


def usage_of_cores(run: Callable[[], object]) -> float | None:
    """Run a function; return the share of all cores that was busy meanwhile, 0 to 1.

    Other processes count too. None on systems without ``/proc/stat``.
    """
    before = _core_times()
    run()
    after = _core_times()
    if before is None or after is None or after[1] <= before[1]:
        return None
    return 1 - (after[0] - before[0]) / (after[1] - before[1])


class OtherLoad:
    """Watch over the processor time that other processes take from a measurement."""

    def __init__(self) -> None:
        self._cores, self._own_s = _core_times(), _own_seconds()

    def share(self) -> float | None:
        """Return the share of all cores that other processes used since the start, 0 to 1.

        Children of this process count as its own once they ended. None without ``/proc/stat``.
        """
        before, after = self._cores, _core_times()
        if before is None or after is None or after[1] <= before[1]:
            return None
        total = after[1] - before[1]
        own = (_own_seconds() - self._own_s) * os.sysconf("SC_CLK_TCK")
        return min(1.0, max(0.0, (total - (after[0] - before[0]) - own) / total))


def _own_seconds() -> float:
    return sum(os.times()[:4])


def _core_times() -> tuple[int, int] | None:
    """Return idle and total time of all cores since the start, in ticks."""
    with suppress(OSError, ValueError):
        line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
        ticks = [int(number) for number in line.split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)
    return None


def _flags() -> list[str]:
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
        if found:
            return sorted({flag for flag in found[1].split() if _FLAGS.match(flag)})
    return []


def _caches() -> dict[str, str]:
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        with suppress(OSError):
            level, kind, size = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "size")
            )
            caches[f"L{level} {kind.lower()}"] = size
    return caches


def _commit() -> str:
    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(  # noqa: S603 - words of this module
            command, check=True, capture_output=True, text=True
        ).stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    return ""
