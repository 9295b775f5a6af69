"""Measure the speed and memory of everything, from encoders to the command line, in one run.

    python -m benchmarks.performance --clips videos/

It writes ``performance.json`` with every sample and ``performance.md`` after each part, and
``performance.png`` at the end. ``--only`` chooses parts. Those measured before stay in the file
where model and machine are the same. ``python -m benchmarks.compare`` compares two such files.

The model has random weights and the dimensions of ViT-B/32 with 12 frames. On two quiet cores, a
run takes a quarter of an hour. Searching a million videos on disk takes longer and is asked for by
``--disk-sizes 100000 1000000``. ``--toy`` measures everything at small sizes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cold_start import measure_cold_start
from benchmarks.encoders import measure_encoders, measure_growth
from benchmarks.indexing import measure_indexing, measure_memory
from benchmarks.machine import OtherLoad, Surroundings
from benchmarks.measured import Part, Run
from benchmarks.performance_plots import draw
from benchmarks.performance_report import report
from benchmarks.reading import measure_reading
from benchmarks.roofline import measure_roofline
from benchmarks.scoring import measure_scorer
from benchmarks.searching import measure_search
from benchmarks.setting import Setting, make_bundle, make_checkpoint, model_config
from xclip_deploy.runtime.files import replace_text

PARTS: dict[str, Callable[[Setting], Part]] = {
    "roofline": measure_roofline,
    "encoders": measure_encoders,
    "growth": measure_growth,
    "scorer": measure_scorer,
    "reading": measure_reading,
    "indexing": measure_indexing,
    "memory": measure_memory,
    "search": measure_search,
    "cold start": measure_cold_start,
}
SIZES, DISK_SIZES = (1_000, 10_000, 100_000), (100_000,)
TOY_SIZES, TOY_DISK_SIZES = (50, 100), (60,)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen parts; write what is there after each."""
    options = parser().parse_args(arguments)
    setting = setting_of(options)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "performance.json"
    run = started(path, setting, options.only)
    try:
        for name in PARTS:
            if name not in options.only:
                continue
            print(f"measuring {name}", file=sys.stderr, flush=True)
            load, others, began_s = os.getloadavg()[0], OtherLoad(), time.perf_counter()
            part = replace(
                PARTS[name](setting),
                seconds=time.perf_counter() - began_s,
                load_before=round(load, 2),
                others=others.share(),
            )
            found = {each.name: each for each in (*run.parts, part)}
            run = replace(run, parts=tuple(found[each] for each in PARTS if each in found))
            run.write(path)
            replace_text(options.output / "performance.md", report(run))
    finally:  # after an interruption too
        draw(run, options.output / "performance.png")
    print(report(run))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    made.add_argument("--work", type=Path, default=Path("performance-work"))
    made.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    made.add_argument("--clips", type=Path, help="folder of videos; else they are generated")
    made.add_argument("--checkpoint", type=Path, help="model; else one of random weights")
    made.add_argument("--bundle", type=Path, help="its bundle; else it is exported")
    made.add_argument(
        "--export",
        nargs="*",
        default=[],
        metavar="OPTION",
        help="options of its export, without --",
    )
    made.add_argument("--before", type=Path, help="clone of other code, to measure beside this")
    made.add_argument("--sizes", type=int, nargs="*", help="galleries in memory, videos")
    made.add_argument("--disk-sizes", type=int, nargs="*", help="galleries on disk, videos")
    made.add_argument("--films", type=Path, help="folder of benchmarks.grouping, to search, too")
    made.add_argument("--rounds", type=int, help="rounds of every comparison, for a quick look")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--toy", action="store_true", help="measure at small sizes")
    return made


def setting_of(options: argparse.Namespace) -> Setting:
    """Make what the options leave out: model and bundle."""
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint = options.checkpoint
    if checkpoint is None:
        config = model_config(options.toy)
        checkpoint = make_checkpoint(options.work / "model.pt", config, options.seed)
    words = [f"--{word}" for word in options.export]
    bundle = options.bundle or make_bundle(options.work / "bundle", checkpoint, words)
    sizes, disk = (TOY_SIZES, TOY_DISK_SIZES) if options.toy else (SIZES, DISK_SIZES)
    return Setting(
        work=options.work,
        checkpoint=checkpoint,
        bundle_path=bundle,
        is_toy=options.toy,
        seed=options.seed,
        clips=options.clips,
        before=options.before,
        sizes=sizes if options.sizes is None else tuple(options.sizes),
        films=options.films,
        rounds=options.rounds,
        disk_sizes=disk if options.disk_sizes is None else tuple(options.disk_sizes),
    )


def started(path: Path, setting: Setting, only: Sequence[str]) -> Run:
    """Return a new run, with the other parts of the file where they still hold."""
    run = Run(Surroundings.now(), settings_of(setting))
    if path.is_file() and len(only) < len(PARTS):
        earlier = Run.read(path)
        is_same = earlier.surroundings.place == run.surroundings.place
        if is_same and earlier.settings == run.settings:
            return replace(run, parts=earlier.parts)
        print(f"{path} is of another machine or model and is replaced", file=sys.stderr)
    return run


def settings_of(setting: Setting) -> dict[str, Any]:
    """Describe what is measured, for the file."""
    config, manifest = setting.config, setting.bundle.manifest
    vision = config.vision
    model = (
        f"{vision.layers} layers of {vision.width}, {vision.image_size} / {vision.patch_size} "
        f"pixels, {config.max_frames} frames, {config.max_words} words, D = {config.embed_dim}"
    )
    videos = "generated" if setting.clips is None else f"{len(setting.videos())} real"
    return {
        "model": model,
        "precisions": [precision.value for precision in setting.bundle.precisions],
        "fingerprint": manifest.fingerprint,
        "videos": videos,
        "seed": setting.seed,
        "is_toy": setting.is_toy,
        "before": None if setting.before is None else setting.before.name,
    }


if __name__ == "__main__":
    main()
