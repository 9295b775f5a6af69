"""The command ``xclip-deploy verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xclip_deploy.cli.display import print_json, say
from xclip_deploy.cli.options import (
    Command,
    PathArgument,
    json_option,
    reader_option,
    threads_option,
    weights_option,
    wide_option,
    workers_option,
)
from xclip_deploy.cli.progress import counting_progress, waiting
from xclip_deploy.cli.table import Column, print_table

if TYPE_CHECKING:
    from xclip_deploy.export.verification import Certificate
    from xclip_deploy.export.verification.certificate import RunComparison


@click.command("verify", cls=Command)
@click.argument("bundle", type=PathArgument(), default=Path("xclip-bundle"))
@click.option(
    "--checkpoint",
    type=PathArgument(),
    help="Compare with this checkpoint in PyTorch, from which the bundle was exported.  "
    "[default: compare with the FP32 graphs]",
)
@weights_option
@click.option(
    "--videos",
    type=PathArgument(),
    help="Compare on the videos of this folder.  [default: a few drawn ones]",
)
@click.option(
    "--captions",
    type=PathArgument(),
    help="Read captions from this CSV or JSONL file with columns `file` and `caption`, and compare "
    "recalls too; or read texts from a text file, one a line.",
)
@click.option(
    "--dataset",
    help="Read captions from this dataset instead: msrvtt, msvd, lsmdc, didemo, activitynet or "
    "folder.",
)
@click.option(
    "--annotations",
    type=PathArgument(),
    help="Read the annotations of the dataset from this folder; for --dataset folder, from this "
    "file.",
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    help="Use this split of the dataset: train, val or test.",
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
@click.option(
    "-o",
    "--output",
    type=PathArgument(),
    help="Write certificate.json and report.html to this folder.  "
    "[default: verification/ in the bundle]",
)
@click.option(
    "--report/--no-report",
    default=None,
    help="Write report.html, which needs matplotlib.  [default: where it is installed]",
)
@threads_option
@workers_option
@reader_option
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Encode at most this many texts or videos in one run.",
)
@wide_option
@json_option
def command(
    bundle: Path,
    checkpoint: Path | None,
    weights: str | None,
    videos: Path | None,
    captions: Path | None,
    dataset: str | None,
    annotations: Path | None,
    split: str,
    max_missing_share: float,
    max_unreadable_share: float,
    output: Path | None,
    report: bool | None,
    threads: int | None,
    workers: int | None,
    reader: str,
    batch_size: int,
    wide: bool,
    as_json: bool,
) -> None:
    """Compare every graph and engine of BUNDLE (default: xclip-bundle) with its model.

    Everything that can run on this machine runs on the same videos and texts, and must keep to
    the tolerances of the bundle. The certificate is written either way; the exit status is 13
    if anything is out of tolerance.
    """
    with waiting("reading the captions and looking for the videos"):
        import xclip_deploy
        from xclip_deploy.export.verification.certificate import CERTIFICATE_DIRECTORY

        shown = _inputs(videos, captions, dataset, annotations, split, max_missing_share)
    with counting_progress("loading the graphs") as progress:
        certificate = xclip_deploy.verify_bundle(
            bundle,
            checkpoint=checkpoint,
            weights=weights,
            **shown,
            output=output,
            report=report,
            max_unreadable_share=max_unreadable_share,
            max_batch=batch_size,
            threads=threads,
            workers=workers,
            reader=reader,  # type: ignore[arg-type]  # click.Choice has checked it
            progress=progress,
        )
    if as_json:
        print_json(certificate.model_dump(mode="json"))
    else:
        _print(certificate, wide=wide)
        _print_written(output or bundle / CERTIFICATE_DIRECTORY, report)
    certificate.require_passed()


def _inputs(
    videos: Path | None,
    captions: Path | None,
    dataset: str | None,
    annotations: Path | None,
    split: str,
    max_missing_share: float,
) -> dict[str, Any]:
    """Return the arguments of ``verify_bundle`` that name videos and texts."""
    if dataset is not None or annotations is not None:
        if dataset is None or annotations is None or videos is None or captions is not None:
            raise click.UsageError(
                "--dataset, --annotations and --videos go together, without --captions"
            )
    elif captions is not None and captions.suffix.lower() in (".csv", ".jsonl"):
        if videos is None:
            raise click.UsageError(f"--captions {captions} names files; expected --videos too")
        dataset, annotations = "folder", captions
    if dataset is not None:
        from xclip_deploy.runtime.datasets import open_dataset

        assert annotations is not None
        assert videos is not None
        return {
            "split": open_dataset(
                dataset, split, annotations, videos, max_missing_share=max_missing_share
            )
        }
    if captions is None:
        return {"videos": videos}
    from xclip_deploy.export.verification.inputs import read_texts

    return {"videos": videos, "texts": read_texts(captions)}


def _print(certificate: Certificate, *, wide: bool) -> None:
    for comparison in certificate.comparisons:
        say(f"{comparison.run.name} against {certificate.reference.name}")
        _print_tensors(comparison, wide=wide)
        say()
    _print_rankings(certificate, wide=wide)
    say()
    _print_costs(certificate)
    inputs = certificate.inputs
    videos = "drawn videos" if inputs.synthetic_videos else "videos"
    texts = "built-in texts" if inputs.built_in_texts else "texts"
    say(
        f"{inputs.source}: {inputs.num_videos} {videos}, {inputs.num_texts} {texts}; left out: "
        f"{len(inputs.missing)} without a file, {len(inputs.unreadable)} unreadable"
    )
    for skipped in certificate.skipped:
        say(f"not run: {skipped.what}: {skipped.reason}")
    for failure in certificate.failures:
        say(f"FAILED: {failure}")


def _print_written(folder: Path, report: bool | None) -> None:
    from xclip_deploy.export.verification.certificate import CERTIFICATE_NAME, REPORT_NAME

    if (folder / REPORT_NAME).is_file():
        say(f"wrote {folder / REPORT_NAME} and {CERTIFICATE_NAME}")
        return
    say(f"wrote {folder / CERTIFICATE_NAME}")
    if report is None:
        say("no report: matplotlib is missing; run: pip install 'xclip-deploy[plot]'")


def _print_tensors(comparison: RunComparison, *, wide: bool) -> None:
    rows = [
        (
            record.graph.value,
            record.tensor,
            _number(record.min_cosine, ".7f"),
            _number(record.mean_cosine, ".7f"),
            _number(record.max_abs_error, ".1e"),
            f"{record.allowed_error:.1e}",
            _number(record.rms_error, ".1e"),
            _number(record.allowed_rms, ".1e"),
            "ok" if record.passed else "FAILED",
        )
        for record in comparison.tensors
    ]
    columns = (
        Column("graph", wide=True),
        Column("output", least=12),
        Column("min cosine", right=True),
        Column("mean cosine", right=True, wide=True),
        Column("max error", right=True),
        Column("allowed", right=True),
        Column("RMS", right=True),
        Column("allowed", right=True),
        Column(""),
    )
    print_table(columns, rows, wide=wide)


def _print_rankings(certificate: Certificate, *, wide: bool) -> None:
    rows = []
    for comparison in certificate.comparisons:
        ranking = comparison.ranking
        if ranking is None:
            rows.append((comparison.run.name, *[""] * 6, "FAILED"))
            continue
        recalls = [abs(record.found - record.reference) for record in comparison.recalls]
        passed = ranking.passed and all(record.passed for record in comparison.recalls)
        rows.append(
            (
                comparison.run.name,
                _number(ranking.top1_agreement, ".1%"),
                _number(ranking.top5_agreement, ".1%"),
                _number(ranking.top10_agreement, ".1%"),
                str(ranking.flips),
                str(ranking.near_tie_flips),
                f"{max(recalls):.2f}" if recalls else "",
                "ok" if passed else "FAILED",
            )
        )
    columns = (
        Column("run", least=16),
        Column("top-1", right=True),
        Column("top-5", right=True, wide=True),
        Column("top-10", right=True),
        Column("flips", right=True),
        Column("near ties", right=True),
        Column("max ΔR@K", right=True),
        Column(""),
    )
    print_table(columns, rows, wide=wide)


def _print_costs(certificate: Certificate) -> None:
    reference = certificate.reference
    rows: list[tuple[str, ...]] = [(reference.name, _size(reference.size_bytes), "", "", "")]
    for comparison in certificate.comparisons:
        speedups = {
            duration.graph.value: f"{1000 * duration.median_s:.1f} ms ({duration.speedup:.1f}x)"
            for duration in comparison.durations
        }
        graphs = [speedups.get(name, "") for name in ("video_encoder", "text_encoder", "scorer")]
        rows.append((comparison.run.name, _size(comparison.run.size_bytes), *graphs))
    columns = (
        Column("run", least=16),
        *(
            Column(name, right=True)
            for name in ("size", "video batch", "text batch", "scorer batch")
        ),
    )
    print_table(columns, rows)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)
