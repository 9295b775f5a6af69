"""The parity certificate: what was compared with what, on which machine, and how it came out."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationError

from xclip_deploy.errors import BundleError, VerificationError
from xclip_deploy.runtime.benchmark.results import Machine
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import Graph, Precision, Sha256, Tolerance
from xclip_deploy.runtime.model_config import FrozenModel, Share
from xclip_deploy.runtime.presentation import brief

CERTIFICATE_DIRECTORY = "verification"
"""Within a bundle."""
CERTIFICATE_NAME = "certificate.json"
REPORT_NAME = "report.html"


class RunIdentity(FrozenModel):
    """One way of computing the model."""

    backend: str
    """``pytorch``, or that of a session: ``onnxruntime``, ``tensorrt-provider``, ``tensorrt`` or
    ``rtx``."""
    precision: Precision
    """Of the graphs or engines."""
    arithmetic: str | None = None
    """What it computes in, where that is not the graphs' precision."""
    device: str
    """``cpu``, ``cuda:0``."""
    artefacts: dict[str, Sha256]
    """What ran: graphs by their path within the bundle, engines by folder and file, of PyTorch the
    checkpoint by its name."""
    size_bytes: int
    """Of the artefacts together."""

    @property
    def name(self) -> str:
        """For people: ``fp16 onnxruntime cpu``."""
        return f"{self.arithmetic or self.precision.value} {self.backend} {self.device}"


class TensorRecord(FrozenModel):
    """How far one output of one graph is from the reference, over all inputs."""

    graph: Graph
    tensor: str
    min_cosine: float | None
    """Least cosine over the vectors of the last axis; None for scores, and where none was
    finite."""
    mean_cosine: float | None
    least_cosine: float | None
    """Least ``min_cosine`` that passes; None for scores."""
    max_abs_error: float | None
    """None where no element was finite."""
    allowed_error: float
    """Most ``max_abs_error`` that passes."""
    rms_error: float | None
    """Root mean square."""
    allowed_rms: float | None
    """Most ``rms_error`` that passes; None for features, whose elements are bound one by one."""
    num_not_finite: int
    """Elements that are NaN or infinite; none passes."""
    passed: bool


class RankingRecord(FrozenModel):
    """How the videos of each text are ranked, against the reference."""

    top1_agreement: Share
    """Of the texts, those with the same video first."""
    top5_agreement: Share | None
    """Mean over the texts of the share of the reference's first five that are among the first
    five here, in any order; None with five videos or fewer, of which it would say nothing."""
    top10_agreement: Share | None
    """The same of the first ten."""
    flips: int
    """Pairs of videos, both among the first ten of the reference or of this run, in another
    order than the reference's, which are further apart there than ``tie_gap``."""
    near_tie_flips: int
    """The same for pairs that are closer than ``tie_gap`` in the reference: not held against
    the run."""
    texts_flipped: int
    """Texts with a flip that is no near tie."""
    texts_changed: int
    """Texts with a flip of either kind."""
    allowed_flipped: int
    """Most ``texts_flipped`` that pass."""
    largest_flipped_gap: float
    """Logits: the furthest apart, in the reference, that a flipped pair is; 0 without flips."""
    tie_gap: float
    """Logits: twice the tolerance of a score, as each score of a pair may be off by it."""
    required_top1: Share | None
    """Least ``top1_agreement`` that passes; None where the texts belong to no videos."""
    passed: bool


class RecallRecord(FrozenModel):
    """Recall at K in one direction, against the reference."""

    direction: Literal["text_to_video", "video_to_text"]
    k: Literal[1, 5, 10]
    reference: float
    """Percent."""
    found: float
    """Percent."""
    allowed_points: float
    """Most difference that passes, percentage points."""
    num_queries: int
    passed: bool


class Duration(FrozenModel):
    """How long a run and the reference took for the same batches of one graph.

    They took turns, batch by batch, while videos were decoded beside them: a ratio to go by.
    ``xclip-deploy bench`` measures in quiet.
    """

    graph: Graph
    median_s: float
    """Of a batch, without the first, in which sessions are opened."""
    reference_s: float
    """The same of the reference."""
    num_batches: int

    @property
    def speedup(self) -> float:
        """How many times as fast as the reference."""
        return self.reference_s / self.median_s


class RunComparison(FrozenModel):
    """One run against the reference."""

    run: RunIdentity
    tolerance: Tolerance
    tensors: tuple[TensorRecord, ...]
    ranking: RankingRecord | None
    """None where the run broke off or a score is NaN or infinite."""
    recalls: tuple[RecallRecord, ...]
    """Empty where the texts belong to no videos, or there is no ranking."""
    durations: tuple[Duration, ...]
    """Of the graphs that ran more than one batch."""
    failures: tuple[str, ...]
    """What is out of tolerance, one line each; empty where everything passed."""

    @property
    def passed(self) -> bool:
        """Whether nothing is out of tolerance."""
        return not self.failures


class InputsRecord(FrozenModel):
    """What the runs were shown."""

    source: str
    """Dataset and split, or folder; ``built-in``."""
    synthetic_videos: bool
    """Whether the videos are the built-in drawn ones."""
    built_in_texts: bool
    has_ground_truth: bool
    """Whether each text belongs to a video, so that recalls can be computed."""
    num_videos: int
    num_texts: int
    unreadable: tuple[str, ...] = ()
    """Why videos were left out, one line each, path first."""
    missing: tuple[str, ...] = ()
    """Ids of annotated videos without a file."""


class SkippedRun(FrozenModel):
    """What the bundle holds and this machine cannot run."""

    what: str
    reason: str


class Certificate(FrozenModel):
    """Contents of ``verification/certificate.json``."""

    format: Literal["xclip-certificate"] = "xclip-certificate"
    schema_version: Literal[2] = 2
    passed: bool
    fingerprint: Sha256
    """Of the bundle."""
    graphs: dict[Precision, dict[Graph, Sha256]]
    """All graphs of the bundle, compared or not: another export voids the certificate."""
    reference: RunIdentity
    inputs: InputsRecord
    score_scale: float
    """Factor from the mean of the grains to the score: exp(logit_scale)."""
    comparisons: tuple[RunComparison, ...]
    skipped: tuple[SkippedRun, ...]
    machine: Machine
    versions: dict[str, str]
    created_utc: str

    @property
    def failures(self) -> tuple[str, ...]:
        """What is out of tolerance, one line each, with the run's name first."""
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
        """Raise VerificationError, which names the first failure, unless everything passed."""
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
        """Whether it is of this very bundle and not of an earlier export."""
        return self.fingerprint == bundle.manifest.fingerprint and self.graphs == hashes(bundle)

    def to_json(self) -> str:
        """Serialise."""
        return self.model_dump_json(indent=1) + "\n"


def hashes(bundle: Bundle) -> dict[Precision, dict[Graph, str]]:
    """SHA-256 of every graph, as the manifest records them."""
    return {
        precision: {graph: bundle.graph_sha256(graph, precision) for graph in graphs}
        for precision, graphs in bundle.manifest.graphs.items()
    }


def read_certificate(bundle: Bundle) -> Certificate | None:
    """The certificate that lies in a bundle, or None; see :meth:`Certificate.fits`.

    Raises BundleError for a file that is no certificate of this release.
    """
    file = bundle.path / CERTIFICATE_DIRECTORY / CERTIFICATE_NAME
    try:
        return Certificate.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(
            f"{file}: not a certificate of this release ({reason}); "
            f"run: xclip-deploy verify {bundle.path}"
        ) from error
