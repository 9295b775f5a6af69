"""Goals of the product's speed, each as found in a run against what was asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.cold_start import COLD, SMALL
from benchmarks.encoders import ONE_TEXT, VIDEO
from benchmarks.indexing import BEFORE, INDEXING
from benchmarks.indexing import MEMORY as INDEX_MEMORY
from benchmarks.measured import FEWEST, Quartiles, Run, Series, quartiles, speedup
from benchmarks.roofline import peak_flops
from benchmarks.scoring import PAIRS
from benchmarks.searching import DISK, EXACT, MEMORY, TWO_STAGE
from benchmarks.setting import TORCH_FP32

BF16, INT8_WEIGHTS = "mixed-bf16", "int8-weights"


@dataclass(frozen=True)
class Goal:
    """One number that was asked for, beside what was found."""

    name: str
    asked: float
    unit: str = ""
    """Unit for people: ``ms``, ``GB``; empty for ratios and shares."""
    at_most: bool = False
    """True if less is better."""
    found: Quartiles | None = None
    why_not: str = ""
    """Reason why it was not found."""
    samples: int = FEWEST
    """Samples behind ``found``. A count that does not vary needs no more than one."""

    @property
    def verdict(self) -> str:
        """``reached``, ``missed``, ``within scatter``, ``too few rounds`` or ``not measured``.

        It is within scatter where the asked number lies between the quartiles.
        """
        if self.found is None:
            return "not measured"
        if self.samples < FEWEST:
            return "too few rounds"
        if self.found.low <= self.asked <= self.found.high and self.found.low < self.found.high:
            return "within scatter"
        is_reached = (self.found.median <= self.asked) == self.at_most
        return "reached" if is_reached or self.found.median == self.asked else "missed"


def goals(run: Run) -> list[Goal]:
    """Return every goal of the run."""
    return [*_encoding(run), *_scoring(run), *_indexing(run), *_searching(run), *_closeness(run)]


def _encoding(run: Run) -> Iterator[Goal]:
    batch = max((series.size for series in run.find(VIDEO)), default=None)
    video = f"video encoding, batch {batch:g}" if batch else "video encoding"
    peak = peak_flops(run, "bf16")
    yield _ratio(run, f"{video}, BF16, to PyTorch FP32", 2.6, VIDEO, batch, BF16)
    fast = _one(run, VIDEO, batch, BF16)
    yield _share(f"{video}, BF16, share of the BF16 product's peak", 0.85, fast, peak)
    yield _ratio(run, f"{video}, INT8 weights, to PyTorch FP32", 4, VIDEO, batch, INT8_WEIGHTS)
    yield _ratio(run, "one text, BF16, to PyTorch FP32", 7, ONE_TEXT, 1, BF16)
    yield _ratio(run, "one text, INT8 weights, to PyTorch FP32", 12, ONE_TEXT, 1, INT8_WEIGHTS)


def _scoring(run: Run) -> Iterator[Goal]:
    peak = peak_flops(run, "fp32")
    for texts, ratio, share in ((32, 6.5, 0.85), (1, 7, 0.48)):
        name = f"{texts} × 1,000 pairs"
        yield _ratio(run, f"{name}, to PyTorch FP32", ratio, PAIRS, texts, "onnxruntime fp32")
        fast = _one(run, PAIRS, texts, "onnxruntime fp32")
        yield _share(f"{name}, share of the FP32 product's peak", share, fast, peak)


def _indexing(run: Run) -> Iterator[Goal]:
    before = _one(run, INDEXING, None, BEFORE)
    what = "earlier code (--before)"
    if before is None:
        before, what = _one(run, INDEXING, None, "onnxruntime fp32"), "ONNX Runtime FP32 today"
    for name, asked, contender in (("BF16", 2.0, BF16), ("INT8 weights", 2.5, INT8_WEIGHTS)):
        fast = _one(run, INDEXING, None, contender)
        found = speedup(before, fast) if before and fast else None
        yield Goal(
            f"indexing, {name}, to {what}",
            asked,
            found=found,
            why_not=_missing(run, "indexing", contender),
            samples=_count(fast),
        )
    peaks = [
        max(series.samples) / 1e9 for series in run.find(INDEX_MEMORY, contender="with decoders")
    ]
    yield Goal(
        "peak memory of indexing beside the model, decoders included, worst case",
        1.0,
        "GB",
        at_most=True,
        found=Quartiles(max(peaks), max(peaks), max(peaks)) if peaks else None,
        why_not="part memory was not run",
    )


def _searching(run: Run) -> Iterator[Goal]:
    yield _time(run, "exact search of 100,000 in memory", 350, MEMORY, 100_000, EXACT)
    million = "run with --disk-sizes 1000000, or --films"
    exact, bound_s = _one(run, DISK, 1_000_000, EXACT), disk_bound_s(run, 1_000_000)
    shares = [bound_s / seconds for seconds in exact.samples] if exact and bound_s else None
    yield Goal(
        "exact search of 1,000,000 from disk, share of its bound: the slower of reading the files "
        "and scoring at the rate of 1 × 1,000",
        0.8,
        found=quartiles(shares) if shares else None,
        why_not=f"{million}, beside part scorer",
        samples=_count(exact),
    )
    name = "two-stage search of 1,000,000 after warm_up()"
    yield _time(run, name, 20, DISK, 1_000_000, TWO_STAGE, million)
    recall = run.fact("recall@10 of two stages, 1000000 videos on disk")
    yield Goal("its recall@10", 0.99, found=_exactly(recall), why_not=million)
    yield _time(run, "cold xclip-deploy search, the demo's model", 1000, COLD, None, SMALL)


def _closeness(run: Run) -> Iterator[Goal]:
    part = run.part("encoders")
    for name, asked, arithmetic in (("BF16", 0.9998, BF16), ("INT8 weights", 0.9995, INT8_WEIGHTS)):
        facts = part.facts if part else {}
        cosines = {
            fact: value
            for fact, value in facts.items()
            if fact.startswith("lowest") and fact.endswith(arithmetic)
        }
        worst = min(cosines.values(), default=None, key=float)
        yield Goal(
            f"lowest cosine of any feature to PyTorch FP32, {name}",
            asked,
            found=_exactly(worst),
            why_not=_missing(run, "encoders", arithmetic),
        )


def _ratio(
    run: Run, name: str, asked: float, task: str, size: float | None, contender: str
) -> Goal:
    slow, fast = _one(run, task, size, TORCH_FP32), _one(run, task, size, contender)
    found = speedup(slow, fast) if slow and fast else None
    part = {VIDEO: "encoders", ONE_TEXT: "encoders", PAIRS: "scorer"}[task]
    why_not = _missing(run, part, contender)
    return Goal(name, asked, found=found, why_not=why_not, samples=_count(fast))


def disk_bound_s(run: Run, size: int) -> float | None:
    """Return the least seconds of an exact search of a gallery on disk; None: not measured.

    Reading and scoring can overlap, so that the slower of the two counts.
    """
    scorer = _one(run, PAIRS, 1, "onnxruntime fp32")
    held = run.fact(f"bytes of the files, {size} videos")
    rate = run.fact(f"files read from disk or cache, bytes/s, {size} videos")
    if scorer is None or held is None or rate is None:
        return None
    return max(size / scorer.rate, float(held) / float(rate))


def _share(name: str, asked: float, fast: Series | None, peak: float | None) -> Goal:
    if fast is None or fast.flops is None or peak is None:
        return Goal(name, asked, why_not="it needs roofline and the part of the contender")
    flops = fast.flops
    found = quartiles([flops / seconds / peak for seconds in fast.samples])
    return Goal(name, asked, found=found, samples=_count(fast))


def _time(
    run: Run,
    name: str,
    asked_ms: float,
    task: str,
    size: float | None,
    contender: str,
    why_not: str = "",
) -> Goal:
    series = _one(run, task, size, contender)
    found = quartiles([seconds * 1e3 for seconds in series.samples]) if series else None
    why_not = why_not or "the part was not run at this size"
    count = _count(series)
    return Goal(name, asked_ms, "ms", at_most=True, found=found, why_not=why_not, samples=count)


def _count(series: Series | None) -> int:
    return 0 if series is None else len(series.samples)


def _one(run: Run, task: str, size: float | None, contender: str) -> Series | None:
    """Return the first series whose contender begins or ends with a text."""
    for series in run.find(task, size):
        name = series.contender
        if name.startswith(contender) or name.endswith(contender):
            return series
    return None


def _missing(run: Run, part: str, contender: str) -> str:
    if run.part(part) is None:
        return f"part {part} was not run"
    reason = run.fact(f"openvino {contender}")
    return str(reason or f"the bundle and this machine offer no {contender}")


def _exactly(value: float | str | None) -> Quartiles | None:
    return None if value is None else Quartiles(*(float(value),) * 3)
