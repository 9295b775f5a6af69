"""Ways to compile the scan's kernels, side by side on one GPU, and what each kernel takes.

    python -m benchmarks.scan_tunings --videos 1000000 --texts 1 32

All tunings compute the same. The first line is the one that ``build-scan`` takes. Without a GPU,
the table tells only what each needs: registers are bounded, shared memory is counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import Surroundings
from benchmarks.scan import HITS, PUBLISHED, Gallery, compiled_scan, random_texts
from xclip_deploy.errors import XclipDeployError
from xclip_deploy.export.scan_kernels.compiling import Tuning, best_tunings, compile_kernel
from xclip_deploy.runtime.cuda.driver_api import Driver, KernelFunction, open_driver
from xclip_deploy.runtime.cuda.memory import DeviceMemory
from xclip_deploy.runtime.cuda.runtime_api import Cuda, Stream, open_cuda
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.nvidia_driver import why_no_gpu
from xclip_deploy.runtime.resident.kernel_set import Kernel

ASSUMED = (9, 0)
"""Compute capability to compile for where there is no GPU."""
CANDIDATES = (
    Tuning(128, 64, 3, num_warps=8, registers=128),
    Tuning(128, 64, 2, num_warps=8, registers=128),
    Tuning(128, 64, 3, num_warps=8),
    Tuning(128, 64, 3, num_warps=4, registers=168),
    Tuning(64, 64, 3, num_warps=4, registers=128),
    Tuning(64, 128, 2, num_warps=4, registers=128),
    Tuning(64, 64, 3, num_warps=4),
    Tuning(256, 64, 3, num_warps=16, registers=128),
)
"""Tunings of the kernel of the frames to compare with the one that is taken."""


class TimedDriver(Driver):
    """A driver that waits for each kernel, and adds up what it took."""

    def __init__(self, driver: Driver, cuda: Cuda) -> None:
        super().__init__(driver._api)
        self._cuda = cuda
        self.seconds: dict[str, float] = defaultdict(float)

    def launch(
        self,
        function: KernelFunction,
        grid: tuple[int, int],
        arguments: Sequence[int | float],
        stream: Stream,
    ) -> None:
        """See :meth:`Driver.launch`."""
        self._cuda.synchronize(stream)
        start_s = time.perf_counter()
        super().launch(function, grid, arguments, stream)
        self._cuda.synchronize(stream)
        self.seconds[function.name] += time.perf_counter() - start_s


def measured(
    memory: DeviceMemory,
    tuning: Tuning,
    gallery: Gallery,
    texts: Sequence[int],
    rounds: int,
) -> dict[str, Any]:
    """Return the median milliseconds of searches and of each kernel, for each number of texts."""
    entry: dict[str, Any] = {}
    driver = open_driver()
    timed = TimedDriver(driver, memory.cuda)
    for name, chosen in (("ms", driver), ("kernels_ms", timed)):
        with compiled_scan(memory, chosen, [tuning]) as scan:
            for count in texts:
                queries = random_texts(PUBLISHED, count, np.random.default_rng(count))
                samples = []
                for turn in range(rounds + 2):  # the first two load caches
                    if turn == 2:
                        timed.seconds.clear()
                    start_s = time.perf_counter()
                    scan.best(queries, gallery.arrays, HITS, None)
                    samples.append(time.perf_counter() - start_s)
                found: object = statistics.median(samples[2:]) * 1e3
                if chosen is timed:
                    found = {k: s / rounds * 1e3 for k, s in sorted(timed.seconds.items())}
                entry.setdefault(name, {})[str(count)] = found
    return entry


def needs(target: tuple[int, int], tuning: Tuning) -> dict[str, Any]:
    """Return a tuning's numbers and the shared memory that it takes, or why it cannot be had."""
    entry: dict[str, Any] = dict(vars(tuning))
    try:
        code = compile_kernel(Kernel.FRAMES, PUBLISHED, target, tunings=[tuning])
    except XclipDeployError as error:
        return {**entry, "error": str(error)}
    return {**entry, "shared_bytes": code.shared_bytes}


def table(entries: Sequence[dict[str, Any]], texts: Sequence[int]) -> str:
    """Return the entries as Markdown."""
    head = ["rows", "depth", "stages", "warps", "registers", "shared, kB"]
    head += [f"{count} texts, ms" for count in texts]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for entry in entries:
        cells = [entry["rows"], entry["depth"], entry["stages"], entry["num_warps"]]
        cells += [entry["registers"] or "any", f"{entry.get('shared_bytes', 0) / 1e3:.0f}"]
        if "error" in entry:
            cells[-1] = entry["error"].replace("|", "/")
        cells += [f"{entry['ms'][str(n)]:.2f}" if "ms" in entry else "–" for n in texts]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    found.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    found.add_argument("--videos", type=int, default=1_000_000)
    found.add_argument("--texts", type=int, nargs="+", default=[1, 32])
    found.add_argument("--rounds", type=int, default=10)
    found.add_argument("--toy", action="store_true", help="try it with one tuning and few videos")
    return found


def main() -> None:
    """Measure, and write the table after each tuning."""
    options = parser().parse_args()
    missing = why_no_gpu()
    target = ASSUMED
    memory = gallery = None
    if missing is None:
        memory = DeviceMemory(open_cuda(extra="resident"))
        target = memory.cuda.gpu().compute_capability
        gallery = Gallery(memory, PUBLISHED, 1000 if options.toy else options.videos, 20_000)
    taken = best_tunings(Kernel.FRAMES, PUBLISHED, target)[0]
    wanted = [taken] if options.toy else [taken, *(each for each in CANDIDATES if each != taken)]
    options.output.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    facts = {"surroundings": vars(Surroundings.now()), "no_gpu": missing, "entries": entries}
    for tuning in wanted:
        entry = needs(target, tuning)
        if memory is not None and gallery is not None and "error" not in entry:
            entry |= measured(memory, tuning, gallery, options.texts, options.rounds)
        entries.append(entry)
        text = json.dumps(facts, indent=1) + "\n"
        replace_text(options.output / "scan-tunings.json", text)
        print(json.dumps(entry), flush=True)
    if gallery is not None:
        gallery.close()
    print(table(entries, options.texts))


if __name__ == "__main__":
    main()
