"""The parity certificate: the runs that were compared, the machine and the verdicts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError

from xclip_deploy.errors import BundleError, VerificationError
from xclip_deploy.runtime.benchmark.results import Machine
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.files import require_regular_file
from xclip_deploy.runtime.manifest import Graph, Precision, Sha256, Tolerance, VideoPart
from xclip_deploy.runtime.model_config import FrozenModel, Share
from xclip_deploy.runtime.presentation import brief

CERTIFICATE_DIRECTORY = "verification"
"""Folder of the certificate within a bundle."""
CERTIFICATE_NAME = "certificate.json"
REPORT_NAME = "report.html"


class RunIdentity(FrozenModel):
    """One way of computing the model."""

    backend: str
    """``pytorch``, ``scan`` for the kernels that search galleries on a GPU, or a session's backend:
    ``onnxruntime``, ``tensorrt-provider``, ``tensorrt`` or ``rtx``."""
    precision: Precision
    """Precision of the graphs or engines."""
    arithmetic: str | None = None
    """Arithmetic of the run, where it is not the graphs' precision."""
    device: str
    """Device: ``cpu``, ``cuda:0``."""
    artefacts: dict[str, Sha256]
    """SHA-256 of each file that ran: graphs by path within the bundle, engines by folder and file,
    PyTorch's checkpoint by name."""
    size_bytes: int
    """Size of all artefacts together."""

    @property
    def name(self) -> str:
        """Name for people: ``fp16 onnxruntime cpu``, ``fp16 onnxruntime cuda:0 fused``."""
        words = [self.arithmetic or self.precision.value, self.backend, self.device]
        if any(name.endswith(".fused.onnx") for name in self.artefacts):
            words.append("fused")
        return " ".join(words)


class TensorRecord(FrozenModel):
    """Distance of one output of one graph from the reference, over all inputs."""

    graph: Graph
    tensor: str
    min_cosine: float | None
    """Least cosine over the vectors of the last axis; None for scores, and where no vector is
    finite."""
    mean_cosine: float | None
    least_cosine: float | None
    """Least ``min_cosine`` that passes; None for scores."""
    max_abs_error: float | None
    """Largest absolute error; None where no element is finite."""
    allowed_error: float
    """Most ``max_abs_error`` that passes."""
    rms_error: float | None
    """Root mean square of the errors."""
    allowed_rms: float | None
    """Most ``rms_error`` that passes; None for features, whose elements are bounded one by one."""
    num_not_finite: int
    """Number of NaN or infinite elements. The tensor passes only at 0."""
    passed: bool


class RankingRecord(FrozenModel):
    """Ranking of the videos for each text, compared with the reference."""

    top1_agreement: Share
    """Share of the texts with the same video first."""
    top5_agreement: Share | None
    """Share of the reference's first five that are among the first five here, in any order, as the
    mean over the texts. None with five videos or fewer, where it would always be 1."""
    top10_agreement: Share | None
    """The same for the first ten."""
    flips: int
    """Number of pairs of videos that change their order and are further apart than ``tie_gap`` in
    the reference. Both videos are among the first ten of the reference or of this run."""
    near_tie_flips: int
    """The same for pairs no further apart than ``tie_gap`` in the reference. They do not count
    against the run."""
    texts_flipped: int
    """Number of texts with a flip that is no near tie."""
    texts_changed: int
    """Number of texts with a flip of either kind."""
    allowed_flipped: int
    """Most ``texts_flipped`` that pass."""
    largest_flipped_gap: float
    """Largest distance of a flipped pair in the reference, logits; 0 without flips."""
    tie_gap: float
    """Twice the tolerance of a score, logits: each of a pair's scores may be off by it."""
    required_top1: Share | None
    """Least ``top1_agreement`` that passes; None without ground truth."""
    passed: bool


class RecallRecord(FrozenModel):
    """Recall at K in one direction, compared with the reference."""

    direction: Literal["text_to_video", "video_to_text"]
    k: Literal[1, 5, 10]
    reference: float
    """Recall of the reference, percent."""
    found: float
    """Recall of the run, percent."""
    allowed_points: float
    """Largest difference that passes, percentage points."""
    num_queries: int
    passed: bool


class Duration(FrozenModel):
    """Time of a run and of the reference for the same batches of one graph.

    They took turns, batch by batch, while videos were being decoded. The ratio is approximate:
    ``xclip-deploy bench`` measures without other work.
    """

    graph: Graph
    median_s: float
    """Median time of a batch, without the first, in which sessions are opened."""
    reference_s: float
    """The same for the reference."""
    num_batches: int

    @property
    def speedup(self) -> float:
        """Speed relative to the reference: 2 is twice as fast."""
        return self.reference_s / self.median_s


class RunComparison(FrozenModel):
    """One run compared with the reference."""

    run: RunIdentity
    tolerance: Tolerance
    tensors: tuple[TensorRecord, ...]
    ranking: RankingRecord | None
    """Ranking; None where the run broke off or a score is NaN or infinite."""
    recalls: tuple[RecallRecord, ...]
    """Recalls; empty without ground truth and without a ranking."""
    durations: tuple[Duration, ...]
    """Durations of the graphs that ran more than one batch."""
    failures: tuple[str, ...]
    """Failures, one line each; empty where everything is within tolerance."""

    @property
    def passed(self) -> bool:
        """Whether everything is within tolerance."""
        return not self.failures


class InputsRecord(FrozenModel):
    """Videos and texts that the runs encoded."""

    source: str
    """Dataset and split, or folder; ``built-in``."""
    synthetic_videos: bool
    """Whether the videos are the built-in, drawn ones."""
    built_in_texts: bool
    has_ground_truth: bool
    """Whether each text belongs to a video, so that recalls can be computed."""
    num_videos: int
    num_texts: int
    unreadable: tuple[str, ...] = ()
    """Videos that were left out, one line each: path and reason."""
    missing: tuple[str, ...] = ()
    """Ids of annotated videos without a file."""


class SkippedRun(FrozenModel):
    """A run that this machine cannot do, although the bundle has its graphs or engines."""

    what: str
    reason: str


class Certificate(FrozenModel):
    """Contents of ``verification/certificate.json``."""

    format: Literal["xclip-certificate"] = "xclip-certificate"
    schema_version: Literal[2] = 2
    passed: bool
    fingerprint: Sha256
    """Fingerprint of the bundle's model."""
    graphs: dict[Precision, dict[Graph, Sha256]]
    """SHA-256 of all the bundle's graphs, compared or not. Another export voids the certificate."""
    video_parts: dict[Precision, dict[VideoPart, Sha256]] = Field(default_factory=dict)
    """SHA-256 of the halves of ``video_encoder``; empty for a bundle without them."""
    reference: RunIdentity
    inputs: InputsRecord
    score_scale: float
    """exp(logit_scale), the factor from the mean of the grains to the score."""
    comparisons: tuple[RunComparison, ...]
    skipped: tuple[SkippedRun, ...]
    machine: Machine
    versions: dict[str, str]
    created_utc: str

    @property
    def failures(self) -> tuple[str, ...]:
        """Failures of all runs, one line each, with the run's name first."""
        return tuple(
            f"{comparison.run.name}: {failure}"
            for comparison in self.comparisons
            for failure in comparison.failures
        )

    def __repr__(self) -> str:
        return brief(
            self,
            passed=self.passed,
            reference=self.reference.name,
            comparisons=[comparison.run.name for comparison in self.comparisons],
            failures=len(self.failures),
        )

    def require_passed(self) -> None:
        """Raise VerificationError with the first failure unless everything passed."""
        if self.passed:
            return
        failures = self.failures
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise VerificationError(
            f"out of tolerance against {self.reference.name}: {failures[0]}{more}; "
            "do not deploy what failed: run xclip-deploy export or build-trt again",
            self,
        )

    def fits(self, bundle: Bundle) -> bool:
        """Return whether the certificate is of this bundle rather than of an earlier export."""
        return (
            self.fingerprint == bundle.manifest.fingerprint
            and self.graphs == hashes(bundle)
            and self.video_parts == part_hashes(bundle)
        )

    def to_json(self) -> str:
        """Serialise the certificate."""
        return self.model_dump_json(indent=1) + "\n"


def hashes(bundle: Bundle) -> dict[Precision, dict[Graph, str]]:
    """Return the SHA-256 of every graph, as the manifest records it."""
    return {
        precision: {graph: bundle.graph_sha256(graph, precision) for graph in graphs}
        for precision, graphs in bundle.manifest.graphs.items()
    }


def part_hashes(bundle: Bundle) -> dict[Precision, dict[VideoPart, str]]:
    """Return the SHA-256 of the halves of ``video_encoder``, as the manifest records it."""
    return {
        precision: {part: bundle.graph_sha256(part, precision) for part in parts}
        for precision, parts in bundle.manifest.video_parts.items()
    }


def read_certificate(bundle: Bundle) -> Certificate | None:
    """Read the certificate in a bundle; None without one. See also :meth:`Certificate.fits`.

    Raises BundleError for a file that is no certificate of this release.
    """
    file = bundle.path / CERTIFICATE_DIRECTORY / CERTIFICATE_NAME
    try:
        require_regular_file(file, "a certificate", BundleError)
        return Certificate.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(
            f"{file}: not a certificate of this release ({reason}); "
            f"run: xclip-deploy verify {bundle.path}"
        ) from error
