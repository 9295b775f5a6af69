"""The command ``xclip-deploy evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import print_json, say, write_json
from xclip_deploy.cli.options import (
    Choice,
    Command,
    PathArgument,
    json_option,
    reader_option,
    session_options,
    weights_option,
    workers_option,
)
from xclip_deploy.cli.progress import counting_progress, waiting
from xclip_deploy.cli.table import Column, print_table

if TYPE_CHECKING:
    from xclip_deploy.runtime.evaluation import Evaluation
    from xclip_deploy.runtime.metrics import RetrievalResult
    from xclip_deploy.runtime.sessions import SessionOptions
    from xclip_deploy.training.checkpoints import CheckpointOptions


@click.command("evaluate", cls=Command)
@click.argument("model", type=PathArgument())
@click.option(
    "--task",
    type=Choice(["videos", "moments"]),
    default="videos",
    show_default=True,
    help="Measure how well videos are found, or moments in them.",
)
@click.option(
    "--dataset",
    required=True,
    help="Read this dataset: msrvtt, msvd, lsmdc, didemo, activitynet, or folder. The last takes "
    "captions from a CSV or JSONL file. Moments have didemo, activitynet, tvr, or folder, which "
    "takes a JSONL file of captions with start_s and end_s.",
)
@click.option(
    "--annotations",
    type=PathArgument(),
    required=True,
    help="Read the annotations from this folder; for --dataset folder, from this file.",
)
@click.option(
    "--videos", type=PathArgument(), required=True, help="Read the videos from this folder."
)
@click.option(
    "--split", default="test", show_default=True, help="Evaluate this split: train, val or test."
)
@click.option(
    "--dual-softmax",
    is_flag=True,
    help="Also report the metrics after a dual softmax over all queries of the split.",
)
@click.option(
    "--dual-softmax-temperature",
    "temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Set the temperature of the dual softmax, in logits.",
)
@click.option(
    "--max-missing-share",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Fail if more than this share of the annotated videos has no file.",
)
@click.option(
    "--max-unreadable-share",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Fail if more than this share of the videos with a file is unreadable.",
)
@session_options
@workers_option
@reader_option
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Encode at most this many texts or videos in one run.",
)
@click.option(
    "--fps",
    "frames_per_second",
    type=click.FloatRange(min=0, min_open=True),
    help="Sample this many frames per second of video; only for checkpoints.  [default: 1]",
)
@click.option(
    "--max-words",
    type=click.IntRange(min=3),
    help="Set the token positions of a text, start and end included; only for checkpoints.",
)
@click.option(
    "--max-frames",
    type=click.IntRange(min=1),
    help="Set the most frames of a video; only for checkpoints.",
)
@click.option(
    "--activation",
    type=Choice(["quick_gelu", "gelu"]),
    help="Set the activation of CLIP's MLPs; only for checkpoints.",
)
@weights_option
@click.option(
    "--gallery",
    metavar="PATH",
    help="Index the videos in this gallery, and search it; those that it has are not read. "
    "[default: a gallery in memory]",
)
@click.option("--segment", help="Cut the videos into segments this long, such as 8s; or whole.")
@click.option("--stride", help="Begin a segment every so often, such as 4s.")
@click.option(
    "-k",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Take this many moments for a query.",
)
@click.option(
    "--predictions",
    type=PathArgument(dir_okay=False),
    help="Write the moments found to this file, as JSON lines; or, if it ends in .json, as TVR's "
    "submissions.",
)
@click.option("-o", "--output", type=PathArgument(), help="Write the result to this JSON file.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    model: Path,
    task: str,
    dataset: str,
    annotations: Path,
    videos: Path,
    split: str,
    dual_softmax: bool,
    temperature: float,
    max_missing_share: float,
    max_unreadable_share: float,
    session: SessionOptions,
    workers: int | None,
    reader: str,
    batch_size: int,
    frames_per_second: float | None,
    max_words: int | None,
    max_frames: int | None,
    activation: str | None,
    weights: str | None,
    gallery: str | None,
    segment: str | None,
    stride: str | None,
    k: int,
    predictions: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure how well MODEL finds videos by their captions, and captions by their videos.

    MODEL is a bundle, or a checkpoint that `xclip-deploy export` reads. A checkpoint runs in
    PyTorch, in FP32, and accepts neither --backend nor --device-id.

    With --task moments, MODEL is a bundle. The command indexes the videos, searches for every
    caption, and measures whether the seconds found are those annotated. --gallery, --segment,
    --stride, -k and --predictions are for this task alone.
    """
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        # Check this before hours of encoding.
        raise click.UsageError(f"--output {output}: expected a file in a folder that is there")
    _refuse_other_task(context, task)
    if task == "moments":
        from xclip_deploy.cli.moment_evaluation import MomentJob, evaluate

        evaluate(
            MomentJob(
                bundle=model,
                dataset=dataset,
                split=split,
                annotations=annotations,
                videos=videos,
                gallery=gallery,
                segment=segment,
                stride=stride,
                k=k,
                max_missing_share=max_missing_share,
                max_unreadable_share=max_unreadable_share,
                workers=workers,
                max_batch=batch_size,
                reader=reader,
                predictions=predictions,
                output=output,
            ),
            session,
            as_json=as_json,
        )
        return
    with waiting("reading the annotations and looking for the videos"):
        import xclip_deploy
        from xclip_deploy.runtime.datasets import open_dataset

        opened = open_dataset(
            dataset, split, annotations, videos, max_missing_share=max_missing_share
        )
    with counting_progress("loading the model") as progress:
        evaluation = xclip_deploy.evaluate(
            model,
            opened,
            dual_softmax=dual_softmax,
            dual_softmax_temperature=temperature,
            max_unreadable_share=max_unreadable_share,
            session=session,
            workers=workers,
            reader=reader,  # type: ignore[arg-type]
            max_batch=batch_size,
            options=_options(max_words, max_frames, activation, weights),
            frames_per_second=frames_per_second,
            progress=progress,
        )
    if as_json:
        print_json(evaluation.to_dict())
    else:
        _print(evaluation)
    if output is not None:
        write_json(output, evaluation.to_dict())
        say(f"wrote {output}", err=as_json)


_OF_VIDEOS = (
    *("dual_softmax", "temperature", "frames_per_second", "max_words", "max_frames"),
    *("activation", "weights"),
)
_OF_MOMENTS = ("gallery", "segment", "stride", "k", "predictions")
"""Parameters that only one task takes."""


def _refuse_other_task(context: click.Context, task: str) -> None:
    """Raise UsageError where an option of the other task is given."""
    foreign = _OF_VIDEOS if task == "moments" else _OF_MOMENTS
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in foreign and source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[-1]} does not go with --task {task}")


def _options(
    max_words: int | None, max_frames: int | None, activation: str | None, weights: str | None
) -> CheckpointOptions | None:
    """Return the options that were given, or None: a bundle takes none and needs no PyTorch."""
    if (max_words, max_frames, activation, weights) == (None, None, None, None):
        return None
    import xclip_deploy
    from xclip_deploy.runtime.model_config import Activation

    return xclip_deploy.CheckpointOptions(
        max_words=max_words,
        max_frames=max_frames,
        activation=None if activation is None else Activation(activation),
        weights=weights,
    )


def _print(evaluation: Evaluation) -> None:
    for video in evaluation.unreadable:
        say(f"unreadable: {video.reason}")  # the reason begins with the path
    for video in evaluation.damaged:
        say(f"damaged: {video.path}: {video.reason}")
    if evaluation.missing:
        names = ", ".join(evaluation.missing[:5])
        more = len(evaluation.missing) - 5
        say(f"missing: {names}{f' and {more} more' if more > 0 else ''}")
    if evaluation.truncated_captions:
        say(
            f"cut: {evaluation.truncated_captions} of {evaluation.num_captions} captions, which "
            f"are longer than the {evaluation.max_words} tokens that the model reads"
        )
    rows = _rows("", evaluation.metrics)
    if evaluation.dual_softmax is not None:
        rows += _rows(" (dual softmax)", evaluation.dual_softmax)
    numbers = [Column(name, right=True) for name in ("R@1", "R@5", "R@10", "MdR", "MnR", "queries")]
    print_table((Column(""), *numbers), rows)
    model = evaluation.model
    say(
        f"{evaluation.split}: {evaluation.num_videos} videos, {evaluation.num_captions} captions; "
        f"left out: {len(evaluation.missing)} without a file, "
        f"{len(evaluation.unreadable)} unreadable; {model.kind} in {model.precision} "
        f"on {model.device}"
    )


def _rows(suffix: str, result: RetrievalResult) -> list[tuple[str, ...]]:
    directions = {
        "text to video": result.text_to_video,
        "video to text": result.video_to_text,
    }
    return [
        (
            name + suffix,
            f"{metrics.recall_at_1:.1f}",
            f"{metrics.recall_at_5:.1f}",
            f"{metrics.recall_at_10:.1f}",
            f"{metrics.median_rank:.1f}",
            f"{metrics.mean_rank:.1f}",
            str(metrics.num_queries),
        )
        for name, metrics in directions.items()
    ]
