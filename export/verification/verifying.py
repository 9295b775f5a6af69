"""Verify a bundle and write its certificate: ``verify_bundle``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from os import PathLike
from pathlib import Path
from tempfile import TemporaryFile

from xclip_deploy.errors import (
    BackendUnavailableError,
    BundleError,
    EngineError,
    InvalidArgumentError,
    MissingExtraError,
    SessionError,
    VerificationError,
)
from xclip_deploy.export.verification.certificate import (
    CERTIFICATE_DIRECTORY,
    CERTIFICATE_NAME,
    REPORT_NAME,
    Certificate,
    InputsRecord,
    RunComparison,
    SkippedRun,
    hashes,
    part_hashes,
)
from xclip_deploy.export.verification.inputs import Inputs, open_inputs
from xclip_deploy.export.verification.judging import judge
from xclip_deploy.export.verification.measuring import MeasuredRuns, measure
from xclip_deploy.export.verification.plots import require_matplotlib
from xclip_deploy.export.verification.rankings import RankComparison
from xclip_deploy.export.verification.report import render_report
from xclip_deploy.export.verification.runs import (
    Run,
    describe,
    find_sessions,
    open_reference,
    open_run,
)
from xclip_deploy.export.verification.scan_run import open_scan_run
from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.arguments import (
    MAX_THREADS,
    as_callback,
    as_choice,
    as_instance,
    as_path,
    as_share,
    as_text,
    as_texts,
    as_truth,
    as_whole_number,
)
from xclip_deploy.runtime.benchmark.machine import installed_versions, this_machine
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.datasets import Split
from xclip_deploy.runtime.deployed_model import MAX_BATCH
from xclip_deploy.runtime.engine_set import read_engine_set
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.manifest import Tolerance
from xclip_deploy.runtime.presentation import listed
from xclip_deploy.runtime.progress import ProgressFunction, ignore_progress
from xclip_deploy.runtime.resident.kernel_set import has_kernels
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.sessions.native.backend import options_of
from xclip_deploy.runtime.video import VideoReader


def verify_bundle(
    bundle: str | PathLike[str] | Bundle = "xclip-bundle",
    *,
    checkpoint: str | PathLike[str] | None = None,
    weights: str | None = None,
    split: Split | None = None,
    videos: str | PathLike[str] | None = None,
    texts: Sequence[str] | None = None,
    output: str | PathLike[str] | None = None,
    report: bool | None = None,
    max_unreadable_share: float = 0.1,
    max_batch: int = 16,
    threads: int | None = None,
    workers: int | None = None,
    reader: VideoReader = "pyav",
    progress: ProgressFunction | None = None,
) -> Certificate:
    """Compare every graph and engine of a bundle that can run here with the model.

    The reference is the checkpoint in PyTorch where it is given, else the FP32 graphs. All runs
    encode the same videos and texts. Each scorer reads the outputs of its own encoders. The
    manifest gives the tolerances. The certificate is written whether or not everything passes;
    ``Certificate.require_passed`` raises where something failed.

    Args:
        bundle: Path of a bundle, or an opened one.
        checkpoint: Checkpoint that the bundle was exported from, or any file of the same weights.
        weights: State dict to take where the checkpoint holds several, as in
            ``CheckpointOptions``.
        split: Videos and captions, from ``open_dataset``. Recalls are then compared too.
        videos: A folder of videos, or one video, in place of a split. None: small built-in
            videos, which are drawn; the certificate says so.
        texts: Texts in place of a split's captions. None: a small built-in set.
        output: Folder for ``certificate.json`` and ``report.html``; None: ``verification`` in
            the bundle.
        report: Whether to write the HTML report, which needs matplotlib; None: write it where
            matplotlib is installed.
        max_unreadable_share: Share of the videos, 0 to 1, that may be unreadable.
        max_batch: Most texts or videos in one run of an encoder.
        threads: CPU threads for inference; None: one per core.
        workers: Videos decoded at the same time; None: one per core.
        reader: Library that decodes.
        progress: Called after every video, and every few captions.

    Raises:
        VerificationError: there is nothing to compare, or no reference; the checkpoint is of
            another model; the reference yields NaN.
        BundleError: the bundle cannot be used, or the result cannot be written.
        CheckpointError: the checkpoint cannot be read.
        DatasetError: too many videos are unreadable.
        SessionError: a session of the reference cannot be opened.
        VideoError: no video can be found.
        InvalidArgumentError: an argument is out of range.
        MissingExtraError: ONNX Runtime is not installed; nor is matplotlib, for a report, or
            PyTorch, for a checkpoint.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    as_share("max_unreadable_share", max_unreadable_share)
    as_whole_number("max_batch", max_batch, 1, MAX_BATCH)
    if threads is not None:
        as_whole_number("threads", threads, 1, MAX_THREADS)
    for name, path in (("checkpoint", checkpoint), ("videos", videos), ("output", output)):
        if path is not None:
            as_path(name, path)
    if weights is not None:
        as_text("weights", weights)
    if weights is not None and checkpoint is None:
        raise InvalidArgumentError(
            f"weights is {weights!r:.200} without a checkpoint; expected the checkpoint that holds "
            "them, or no weights"
        )
    if split is not None:
        as_instance("split", split, Split, "a Split, as open_dataset gives, or None")
    if texts is not None:
        texts = as_texts("texts", texts)
    if report is not None:
        as_truth("report", report)
    as_choice("reader", reader, VideoReader)
    as_callback("progress", progress)
    report = _can_draw() if report is None else report
    if report:
        require_matplotlib()
    if workers is not None:
        as_whole_number("workers", workers, 1)
    inputs = open_inputs(
        opened, split=split, videos=videos, texts=texts, reader=reader, workers=workers
    )
    sessions, skipped = find_sessions(
        opened, is_fp32_the_reference=checkpoint is None, threads=threads
    )
    if not sessions:
        raise _nothing_to_compare(opened, skipped)
    target = opened.path / CERTIFICATE_DIRECTORY if output is None else Path(output)
    with _writable(target, opened):
        target.mkdir(parents=True, exist_ok=True)
        # Find out now that the folder is read-only, not after hours of encoding.
        with TemporaryFile(dir=target):
            pass
    with ExitStack() as stack:
        reference = stack.enter_context(
            open_reference(opened, checkpoint, max_batch, threads, weights)
        )
        opened_runs = [_try_open(stack, opened, options, max_batch) for options in sessions]
        if has_kernels(opened):
            opened_runs.append(_try_scan(stack, opened, max_batch, threads))
        runs = [run for run in opened_runs if isinstance(run, Run)]
        skipped += [run for run in opened_runs if isinstance(run, SkippedRun)]
        if not runs:
            raise _nothing_to_compare(opened, skipped)
        measurement = measure(
            reference,
            runs,
            inputs,
            max_batch=max_batch,
            max_unreadable_share=max_unreadable_share,
            progress=progress or ignore_progress,
        )
    certificate, ranks = _certificate(opened, inputs, measurement, skipped)
    page = render_report(certificate, measurement, ranks) if report else None
    with _writable(target, opened):
        # Remove the old report first: none may lie beside the certificate of another run.
        (target / REPORT_NAME).unlink(missing_ok=True)
        replace_text(target / CERTIFICATE_NAME, certificate.to_json())
        if page is not None:
            replace_text(target / REPORT_NAME, page)
    return certificate


def verify_engines(
    bundle: str | PathLike[str] | Bundle,
    folder: str | PathLike[str],
    *,
    max_batch: int = 16,
    progress: ProgressFunction | None = None,
) -> RunComparison:
    """Compare the engines in a folder with the bundle's FP32 graphs, on this machine's GPU.

    This is the self-test of new engines, which need not be in their place yet. It uses the built-in
    inputs and writes nothing. It returns the comparison, in which everything passed.

    Raises VerificationError where anything is out of tolerance or a run breaks off. Raises
    EngineError, SessionError or MissingExtraError where the engines or the FP32 graphs cannot run.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
    folder = Path(folder)
    options = replace(options_of(read_engine_set(folder, opened.path)), engines=folder)
    inputs = open_inputs(opened, split=None, videos=None, texts=None, reader="pyav", workers=None)
    with (
        open_reference(opened, None, max_batch, None) as reference,
        open_run(opened, options, max_batch) as run,
    ):
        measurement = measure(
            reference,
            [run],
            inputs,
            max_batch=max_batch,
            max_unreadable_share=0.0,
            progress=progress or ignore_progress,
        )
    comparison, _ = judge(measurement, measurement.measured[0], _tolerance(opened, run))
    if not comparison.passed:
        more = len(comparison.failures) - 1
        raise VerificationError(
            f"engines {folder} are out of tolerance against {reference.identity.name}: "
            f"{comparison.failures[0]}{f' (and {more} more)' if more else ''}; "
            f"run: xclip-deploy build-trt {opened.path} --force"
        )
    return comparison


def _tolerance(bundle: Bundle, run: Run) -> Tolerance:
    if run.tolerance is not None:
        return run.tolerance
    precision = run.identity.precision
    tolerance = bundle.manifest.tolerances.get(precision)
    if tolerance is None:
        raise VerificationError(
            f"bundle {bundle.path} has no tolerances for {precision.value}; "
            f"run: xclip-deploy export CHECKPOINT -o {bundle.path}"
        )
    return tolerance


def _try_open(
    stack: ExitStack, bundle: Bundle, options: SessionOptions, max_batch: int
) -> Run | SkippedRun:
    try:
        run = stack.enter_context(open_run(bundle, options, max_batch))
        # Any other error of a graph or engine comes again in the run, which then fails.
        with suppress(SessionError, EngineError):
            try:
                run.load()
            except BackendUnavailableError as error:
                return SkippedRun(what=describe(options), reason=str(error))
        return run
    except (SessionError, EngineError, MissingExtraError) as error:
        return SkippedRun(what=describe(options), reason=str(error))


def _try_scan(
    stack: ExitStack, bundle: Bundle, max_batch: int, threads: int | None
) -> Run | SkippedRun:
    missing = nvidia_driver.why_no_gpu()
    if missing is not None:
        return SkippedRun(what="scan kernels", reason=missing)
    try:
        return stack.enter_context(open_scan_run(bundle, max_batch, threads))
    except (SessionError, MissingExtraError) as error:
        return SkippedRun(what="scan kernels", reason=str(error))


def _nothing_to_compare(bundle: Bundle, skipped: Sequence[SkippedRun]) -> VerificationError:
    reasons = listed([f"{skip.what}: {skip.reason}" for skip in skipped])
    return VerificationError(
        f"bundle {bundle.path}: nothing to compare with its FP32 graphs can run here ({reasons}); "
        "give the model as --checkpoint to verify the FP32 graphs themselves"
    )


def _can_draw() -> bool:
    try:
        require_matplotlib()
    except MissingExtraError:
        return False
    return True


def _certificate(
    bundle: Bundle, inputs: Inputs, measurement: MeasuredRuns, skipped: Sequence[SkippedRun]
) -> tuple[Certificate, list[RankComparison | None]]:
    judged = [
        judge(measurement, measured, _tolerance(bundle, measured.run))
        for measured in measurement.measured
    ]
    comparisons = tuple(comparison for comparison, _ in judged)
    certificate = Certificate(
        passed=all(comparison.passed for comparison in comparisons),
        fingerprint=bundle.manifest.fingerprint,
        graphs=hashes(bundle),
        video_parts=part_hashes(bundle),
        reference=measurement.reference.identity,
        inputs=InputsRecord(
            source=inputs.source,
            synthetic_videos=inputs.synthetic_videos,
            built_in_texts=inputs.built_in_texts,
            has_ground_truth=measurement.video_of_text is not None,
            num_videos=len(measurement.video_ids),
            num_texts=len(measurement.texts),
            unreadable=measurement.unreadable,
            missing=tuple(inputs.missing),
        ),
        score_scale=measurement.score_scale,
        comparisons=comparisons,
        skipped=tuple(skipped),
        machine=this_machine(),
        versions=_versions(measurement),
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return certificate, [ranks for _, ranks in judged]


@contextmanager
def _writable(target: Path, bundle: Bundle) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{target} cannot be written ({error.strerror}); for a bundle on a read-only or full "
            f"disk run: xclip-deploy verify {bundle.path} -o FOLDER"
        ) from error


def _versions(measurement: MeasuredRuns) -> dict[str, str]:
    versions = installed_versions()
    if measurement.reference.identity.backend == "pytorch":
        versions["torch"] = metadata.version("torch")
    return versions
