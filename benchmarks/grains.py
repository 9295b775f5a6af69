"""The paper's ablation of grains, on generated videos and with equal budgets.

    python -m benchmarks.grains --output benchmarks/results

The benchmark trains each variant with each seed, from random weights. All take the demo preset's
model, data and recipe, the same batches in the same order, and the same number of steps. It
reports R@1 on the 200 held-out videos after the last step. No checkpoint is chosen by its score
there. An interrupted run continues where it was. ``--toy`` runs all of it on a few videos.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.grains import CLIP_GRAINS, PUBLISHED_GRAINS
from xclip_deploy.runtime.theme import write_pngs
from xclip_deploy.training.config import TrainConfig, resolve_config
from xclip_deploy.training.datasets.generated import SplitSizes, make_videos

if TYPE_CHECKING:
    from matplotlib.figure import Figure


GRAINS = tuple(grain.value for grain in PUBLISHED_GRAINS)
RESULTS = "grains.json"
METRICS = ("recall_at_1", "recall_at_5", "mean_rank")
_MEAN_POOLING = {
    "temporal_head": "meanP",
    "temporal_layers": 0,
    "temporal_heads": 0,
    "temporal_positions": 0,
}
_COSINE = {"grains": [grain.value for grain in CLIP_GRAINS], "sentence_projection": False}


@dataclass(frozen=True)
class Budget:
    """Data and steps that each variant gets with each seed."""

    train: int = 2400
    """Videos to train on; the preset had this number when the table was made."""
    held_out: int = 200
    epochs: int = 12
    batch_size: int = 96
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def sizes(self) -> SplitSizes:
        """Videos of each split."""
        return SplitSizes(train=self.train, val=self.held_out, test=self.held_out)


TOY = Budget(train=8, held_out=4, epochs=1, batch_size=4, seeds=(0,))
"""Budget of a test: it shows that the benchmark runs, and nothing of the grains."""


@dataclass(frozen=True)
class Variant:
    """A model of the comparison, with the settings in which it differs from X-CLIP."""

    name: str
    architecture: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("CLIP4Clip-meanP", {**_MEAN_POOLING, **_COSINE}),
    Variant("CLIP4Clip-seqTransf", _COSINE),
    Variant("X-CLIP"),
    Variant("X-CLIP, mask_padding", {"mask_padding": True}),
    *(
        Variant(
            f"X-CLIP without {grain.replace('_', '–')}",
            {"grains": [other for other in GRAINS if other != grain]},
        )
        for grain in GRAINS
    ),
)


def main() -> None:
    """Train what is missing, then write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("grains-work"), help="runs and videos")
    parser.add_argument("--epochs", type=int, default=Budget.epochs)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--toy", action="store_true", help="try the benchmark on a few videos")
    options = parser.parse_args()
    budget = TOY if options.toy else Budget(epochs=options.epochs)
    options.work.mkdir(parents=True, exist_ok=True)
    # All runs share these videos. A run refuses videos of other sizes than its configuration's.
    make_videos(options.work / "videos", budget.sizes, num_workers=options.processes)
    # Jobs run seed by seed, so that after an early stop all variants have the same seeds.
    jobs = [(variant, seed) for seed in budget.seeds for variant in VARIANTS]
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        runs = []
        job = partial(run_one, work=options.work, budget=budget)
        for result in pool.map(job, *zip(*jobs, strict=True)):
            runs.append(result)
            print(
                f"{len(runs)}/{len(jobs)} {result['variant']}, seed {result['seed']}: "
                f"R@1 {result['text_to_video']['recall_at_1']:.1f} %",
                flush=True,
            )
    options.output.mkdir(parents=True, exist_ok=True)
    content = {
        "epochs": budget.epochs,
        "held_out": budget.held_out,
        "steps": runs[0]["steps"],
        "runs": runs,
    }
    replace_text(options.output / RESULTS, json.dumps(content, indent=1) + "\n")
    replace_text(options.output / "grains.md", table(content))
    draw_grains(content, options.output / "grains.png")
    print(table(content))


def run_one(variant: Variant, seed: int, *, work: Path, budget: Budget) -> dict[str, Any]:
    """Train one variant with one seed, or read the result of an earlier run."""
    import torch

    from xclip_deploy import train

    folder = work / f"{variant.name.replace(' ', '-').replace(',', '')}-seed{seed}"
    done = folder / "result.json"
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    torch.set_num_threads(1)
    config = configuration(variant, seed, work, budget)
    result = train(config, folder, resume=(folder / "config.json").is_file())
    content = {
        "variant": variant.name,
        "seed": seed,
        "steps": result.steps,
        **{key: result.metrics[key] for key in ("text_to_video", "video_to_text")},
    }
    replace_text(done, json.dumps(content) + "\n")
    return content


def configuration(variant: Variant, seed: int, work: Path, budget: Budget) -> TrainConfig:
    """Return the configuration of one run."""
    settings = {
        "data.videos": str(work / "videos"),
        "data.frame_cache": str(work / "frame-cache"),
        "data.workers": 0,
        # Every epoch is measured for the curves; the table takes the last one.
        "data.validation_split": "test",
        "data.generated.train": budget.train,
        "data.generated.val": budget.held_out,
        "data.generated.test": budget.held_out,
        "optimization.epochs": budget.epochs,
        "optimization.batch_size": budget.batch_size,
        # The preset had these values when the table was made.
        "start.architecture.vision.image_size": 64,
        "optimization.lr": 1e-3,
        "optimization.seed": seed,
    }
    settings |= {f"start.architecture.{key}": value for key, value in variant.architecture.items()}
    return resolve_config(
        "demo", overrides=[f"{name}={json.dumps(value)}" for name, value in settings.items()]
    )


def table(content: dict[str, Any]) -> str:
    """Return a Markdown table of mean ± sample standard deviation over the seeds."""
    seeds = sorted({run["seed"] for run in content["runs"]})
    lines = [
        f"R@K in percent on {content['held_out']} held-out videos, {content['steps']} steps each; "
        f"mean ± standard deviation over {len(seeds)} seeds. "
        "Written by `python -m benchmarks.grains`.",
        "",
        "| model | text→video R@1 | R@5 | mean rank | video→text R@1 |",
        "|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        cells = [spread(content, variant, "text_to_video", metric) for metric in METRICS]
        cells.append(spread(content, variant, "video_to_text", "recall_at_1"))
        lines.append(f"| {variant.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def values(content: dict[str, Any], variant: Variant, direction: str, metric: str) -> list[float]:
    """Return the values of a variant's metric, one for each seed."""
    runs = [run for run in content["runs"] if run["variant"] == variant.name]
    return [run[direction][metric] for run in runs]


def spread(content: dict[str, Any], variant: Variant, direction: str, metric: str) -> str:
    """Return mean ± standard deviation as text."""
    found = values(content, variant, direction, metric)
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return f"{statistics.mean(found):.1f} ± {deviation:.1f}"


def draw_grains(content: dict[str, Any], path: Path) -> None:
    """Draw means as bars and single runs as dots as PNG, light and dark."""
    write_pngs(lambda: _figure(content), path)


def _figure(content: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for row, variant in enumerate(reversed(VARIANTS)):
        found = values(content, variant, "text_to_video", "recall_at_1")
        colour = "tab:blue" if variant.name.startswith("X-CLIP") else "tab:grey"
        axes.barh(row, statistics.mean(found), color=colour, alpha=0.45)
        axes.plot(found, [row] * len(found), "o", color=colour, markersize=4)
    axes.set_yticks(range(len(VARIANTS)), [variant.name for variant in reversed(VARIANTS)])
    axes.set_xlabel(
        f"text→video R@1 on {content['held_out']} held-out videos, percent; dots are seeds"
    )
    axes.set_title(f"Equal budgets: {content['steps']} steps from random weights")
    axes.grid(axis="x", alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
