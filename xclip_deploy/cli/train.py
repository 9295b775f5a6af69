"""``xclip-deploy train``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import print_json, say
from xclip_deploy.cli.options import PathArgument, json_option
from xclip_deploy.cli.progress import waiting
from xclip_deploy.runtime.presentation import counted

if TYPE_CHECKING:
    from xclip_deploy.runtime.progress import Progress, ProgressFunction
    from xclip_deploy.training.trainer import StepReport


@click.command("train")
@click.option(
    "--preset",
    help="Start from the settings of a published run: msrvtt, msvd, lsmdc, didemo or activitynet; "
    "or of demo, which trains a small model from random weights on videos made for it.",
)
@click.option(
    "--recipe",
    help="Change settings of the preset: published, for what the authors' code does where the "
    "defaults do better.",
)
@click.option(
    "--config",
    "file",
    type=PathArgument(),
    help="Read settings from this TOML or JSON file; they override the preset.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.NAME=VALUE",
    help="Override one setting, such as optimization.lr=1e-5. Repeat it for several.",
)
@click.option(
    "--checkpoint", type=PathArgument(), help="Start from these weights; sets start.checkpoint."
)
@click.option(
    "--annotations",
    type=PathArgument(),
    help="Read the annotations of the dataset here; sets data.annotations.",
)
@click.option(
    "--videos", type=PathArgument(), help="Read the videos from this folder; sets data.videos."
)
@click.option(
    "-o",
    "--output",
    type=PathArgument(),
    default=Path("xclip-run"),
    show_default=True,
    help="Write configuration, log, last.pt and curves.png to this folder; with a validation, also "
    "best.pt and metrics.json.",
)
@click.option("--resume", is_flag=True, help="Continue the run in the output folder.")
@click.option("--show-config", is_flag=True, help="Print the settings as JSON and exit.")
@json_option
def command(
    preset: str | None,
    recipe: str | None,
    file: Path | None,
    overrides: tuple[str, ...],
    checkpoint: Path | None,
    annotations: Path | None,
    videos: Path | None,
    output: Path,
    resume: bool,
    show_config: bool,
    as_json: bool,
) -> None:
    r"""Train X-CLIP, CLIP4Clip or CLIP on videos with captions.

    \b
    To train on several GPUs:
      torchrun --nproc-per-node N "$(which xclip-deploy)" train ...
    """
    import xclip_deploy

    shortcuts = {
        "start.checkpoint": checkpoint,
        "data.annotations": annotations,
        "data.videos": videos,
    }
    given = [f"{name}={json.dumps(str(value))}" for name, value in shortcuts.items() if value]
    config = xclip_deploy.resolve_config(preset, file, [*overrides, *given], recipe=recipe)
    if show_config:
        print_json(config.model_dump(mode="json"))
        return
    with waiting("loading PyTorch"):
        train = xclip_deploy.train  # where PyTorch is missing, this names the extra to install
        from xclip_deploy.training.step import keep_freed_memory

        keep_freed_memory()
    with _progress() as (on_step, on_preparation):
        result = train(
            config, output, resume=resume, on_step=on_step, on_preparation=on_preparation
        )
    if as_json:
        summary = {"steps": result.steps, "best_recall": result.best_recall}
        print_json({"path": str(result.path), **summary, "metrics": result.metrics})
        return
    best = "" if result.best_recall is None else f", best validation R@1 {result.best_recall:.1f} %"
    if not result.metrics:
        best = ", without validation, so that there is no best.pt and no metrics.json"
    made = [
        name
        for name in ("last.pt", "best.pt", "metrics.json", "curves.png")
        if (result.path / name).is_file()
    ]
    say(f"{counted(result.steps, 'step')} done{best}")
    say(f"wrote {', '.join(made)} to {result.path}")


@contextmanager
def _progress() -> Iterator[tuple[Callable[[StepReport], None], ProgressFunction]]:
    """Show steps and preparations: bars on a terminal, elsewhere a line at times."""
    if not sys.stderr.isatty():
        yield _write_step, _write_preparation
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (BarColumn(), MofNCompleteColumn(), Remaining(), TextColumn("{task.description}"))
    with Bars(*columns, console=Console(stderr=True)) as bar:
        tasks = {"": bar.add_task("reading the annotations", total=None)}

        def prepare(progress: Progress) -> None:
            stage = progress.stage
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=progress.total)
            bar.update(tasks[stage], completed=progress.done)

        def show(report: StepReport) -> None:
            bar.update(
                tasks[""],
                completed=report.step,
                total=report.total_steps,
                description=f"epoch {report.epoch}/{report.epochs}  loss {report.loss:.4f}  "
                f"lr {report.lr:.1e} (CLIP {report.clip_lr:.1e})  {report.seconds:.2f} s a step",
            )

        yield show, prepare


def _write_step(report: StepReport) -> None:
    if report.step % 50 == 0 or report.step in (1, report.total_steps):
        say(
            f"step {report.step}/{report.total_steps} epoch {report.epoch}/{report.epochs} "
            f"loss {report.loss:.4f} lr {report.lr:.1e} (CLIP {report.clip_lr:.1e}) "
            f"{report.seconds:.2f} s",
            err=True,
        )


def _write_preparation(progress: Progress) -> None:
    if progress.done == progress.total:
        say(f"{progress.stage}: {progress.done}", err=True)
