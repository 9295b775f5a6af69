"""``xclip-deploy evaluate --task moments``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.display import print_json, say, write_json
from xclip_deploy.cli.progress import counting_progress, waiting
from xclip_deploy.cli.table import Column, print_table

if TYPE_CHECKING:
    from xclip_deploy.runtime.evaluation.moments import MomentEvaluation
    from xclip_deploy.runtime.sessions import SessionOptions


@dataclass(frozen=True)
class MomentJob:
    """Arguments of the command for moments."""

    bundle: Path
    dataset: str
    split: str
    annotations: Path
    videos: Path
    gallery: str | None
    segment: str | None
    stride: str | None
    k: int
    max_missing_share: float
    max_unreadable_share: float
    workers: int | None
    max_batch: int
    reader: str
    predictions: Path | None
    output: Path | None


def evaluate(job: MomentJob, session: SessionOptions, *, as_json: bool) -> None:
    """Index the videos of a split, search for its captions, and print the metrics."""
    import xclip_deploy
    from xclip_deploy.moment_evaluation import SearchRanker, index_moments
    from xclip_deploy.runtime.datasets.moments import open_moments
    from xclip_deploy.runtime.evaluation.moments import evaluate_moments, write_predictions
    from xclip_deploy.runtime.video.segmentation import Segmentation

    path = job.predictions
    if path is not None and not path.absolute().parent.is_dir():
        # Check this before hours of indexing.
        raise click.UsageError(f"--predictions {path}: expected a file in a folder that is there")
    with waiting("reading the annotations and looking for the videos") as line:
        split = open_moments(
            job.dataset,
            job.split,
            job.annotations,
            job.videos,
            max_missing_share=job.max_missing_share,
        )
        line.name("loading the model and opening the gallery")
        opened = xclip_deploy.Retriever(
            job.bundle,
            job.gallery,
            create=job.gallery is not None,
            session=session,
            max_batch=job.max_batch,
            reader=job.reader,  # type: ignore[arg-type]
        )
    with opened as retriever:
        segmentation = None
        if (job.segment, job.stride) != (None, None):
            model_span_s = retriever.reading.sampling.max_frames / (
                retriever.reading.sampling.frames_per_second
            )
            segmentation = Segmentation.of(job.segment, job.stride, model_span_s)
        report = index_moments(
            retriever,
            split,
            segmentation,
            max_unreadable_share=job.max_unreadable_share,
            workers=job.workers,
            progress=True,
        )
        with counting_progress("searching for the first captions") as progress:
            ranker = SearchRanker(retriever, split)
            evaluation = evaluate_moments(ranker, split, k=job.k, progress=progress)
    if as_json:
        print_json(evaluation.to_dict())
    else:
        for video in report.failed:
            say(f"unreadable: {video.path}: {video.reason}")
        _print(evaluation)
    if path is not None:
        write_predictions(
            path, evaluation.queries, evaluation.corpus_rankings, evaluation.within_rankings
        )
        say(f"wrote {path}", err=as_json)
    if job.output is not None:
        write_json(job.output, evaluation.to_dict())
        say(f"wrote {job.output}", err=as_json)


def _print(evaluation: MomentEvaluation) -> None:
    if evaluation.missing:
        names = ", ".join(evaluation.missing[:3])
        more = len(evaluation.missing) - 3
        say(f"missing: {names}{f' and {more} more' if more > 0 else ''}")
    at = sorted({k for _, recall, _ in evaluation.rows for k in recall.at})
    rows = []
    for name, recall, row in evaluation.rows:
        found = dict(zip(recall.at, recall.percent[row], strict=True))
        rows.append((name, *(f"{found[k]:.1f}" if k in found else "" for k in at)))
    print_table((Column("", least=20), *(Column(f"R@{k}", right=True) for k in at)), rows)
    say("")
    if evaluation.didemo is not None and evaluation.didemo_chance is not None:
        measured = {"DiDeMo": evaluation.didemo, "chance": evaluation.didemo_chance}
        didemo = [
            (name, f"{each.rank_at_1:.2f}", f"{each.rank_at_5:.2f}", f"{each.mean_iou:.2f}")
            for name, each in measured.items()
        ]
        columns = [Column(name, right=True) for name in ("Rank@1", "Rank@5", "mIoU")]
        print_table((Column(""), *columns), didemo)
        say("")
    say(
        f"{evaluation.split}: {evaluation.num_videos} videos, {len(evaluation.queries)} queries, "
        f"{evaluation.k} moments each",
        f"first moment in its video: mean IoU {evaluation.mean_iou:.1f} %",
        f"median boundary error: {_seconds(evaluation.boundary_error_s)}; where its IoU is at "
        f"least 0.5: {_seconds(evaluation.found_boundary_error_s)}",
    )


def _seconds(error_s: float) -> str:
    return f"{error_s:.1f} s" if math.isfinite(error_s) else "none found"
