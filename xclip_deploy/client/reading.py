"""Models of the service as the results that a Retriever returns."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from xclip_deploy.client.answers import Head, printable_line
from xclip_deploy.client.exchange import Flow, whole_body
from xclip_deploy.client.settings import Rules
from xclip_deploy.errors import InvalidArgumentError, ServiceError
from xclip_deploy.runtime.failures import FailedShard, FailedVideo
from xclip_deploy.runtime.features import Scores
from xclip_deploy.runtime.grain_scores import GrainScores
from xclip_deploy.runtime.indexing import IndexReport
from xclip_deploy.runtime.media import Media
from xclip_deploy.runtime.results import (
    Moment,
    SearchResult,
    SearchResults,
    TimeRange,
)
from xclip_deploy.wire import (
    HitModel,
    MomentModel,
    ReportModel,
    ResultsModel,
    ScoresModel,
    WireModel,
)

Model = TypeVar("Model", bound=WireModel)
MediaOf = Callable[[str], Media]
"""Function that makes the media of a video from its handle."""
_MAX_PIXELS = 64 << 20
_log = logging.getLogger(__name__)


def model_of(kind: type[Model], rules: Rules) -> Callable[[Head, float], Flow[Model]]:
    """Return a reader of JSON. It raises ServiceError for anything but such a model.

    Warnings of the service are logged.
    """

    def read(head: Head, until: float) -> Flow[Model]:
        settings = rules.settings
        content = yield from whole_body(head, rules, until, settings.max_response_bytes)
        for warning in warnings_of(head):
            _log.warning("%s", printable_line(warning))
        try:
            if head.kind != "application/json":
                raise ValueError
            return kind.model_validate_json(content)
        except ValueError as error:  # also pydantic's ValidationError
            found = _first_fault(error)
            raise ServiceError(
                f"the service at {settings.shown_address} sent no {kind.__name__} as this client "
                f"knows it{found}; expected a service of the client's version",
                status=head.status,
            ) from error

    return read


def bytes_of(rules: Rules, *kinds: str) -> Callable[[Head, float], Flow[tuple[Head, bytes]]]:
    """Return a reader of bytes of some media types. It raises ServiceError for other types."""

    def read(head: Head, until: float) -> Flow[tuple[Head, bytes]]:
        check_kind(head, kinds)
        most = rules.settings.max_response_bytes
        return head, (yield from whole_body(head, rules, until, most))

    return read


def check_kind(head: Head, kinds: tuple[str, ...]) -> None:
    """Raise ServiceError for an answer of another media type."""
    if head.kind not in kinds:
        raise ServiceError(
            f"the service sent {head.kind!r:.100}; expected {' or '.join(kinds)}",
            status=head.status,
        )


def ignored(rules: Rules) -> Callable[[Head, float], Flow[None]]:
    """Return a reader that drops the answer."""

    def read(head: Head, until: float) -> Flow[None]:
        yield from whole_body(head, rules, until, rules.settings.max_response_bytes)

    return read


def results_of(model: ResultsModel, media_of: MediaOf) -> SearchResults:
    """Return search results. Their warnings are logged."""
    for warning in model.warnings:
        _log.warning("%s", printable_line(warning))
    return SearchResults(
        hits=tuple(_hit(hit, media_of) for hit in model.hits),
        method=model.method,
        num_scored=model.num_scored,
        num_videos=model.num_videos,
        reason=model.reason,
        truncated_tokens=model.truncated_tokens,
        num_segments=model.num_segments,
        note=model.note,
        answered_shards=tuple(model.answered_shards),
        failed_shards=tuple(
            FailedShard(each.number, each.node, each.reason) for each in model.failed_shards
        ),
    )


def _hit(hit: HitModel, media_of: MediaOf) -> SearchResult:
    found = hit.range
    return SearchResult(
        rank=hit.rank,
        id=hit.id,
        path=hit.path,
        score=hit.score,
        grains=grains_of(hit.grains),
        best_frame_time_s=hit.best_frame_time_s,
        duration_s=hit.duration_s,
        metadata=dict(hit.metadata),
        paths=tuple(hit.paths),
        near_identical=tuple(hit.near_identical),
        start_s=hit.start_s,
        end_s=hit.end_s,
        segment=hit.segment,
        moments=tuple(_moment(moment) for moment in hit.moments),
        range=None if found is None else TimeRange(found.start_s, found.end_s, found.resolution_s),
        confidence=hit.confidence,
        media=media_of(hit.handle),
    )


def _moment(moment: MomentModel) -> Moment:
    return Moment(
        segment=moment.segment,
        start_s=moment.start_s,
        end_s=moment.end_s,
        score=moment.score,
        grains=grains_of(moment.grains),
        best_frame_time_s=moment.best_frame_time_s,
    )


def grains_of(grains: dict[str, float | None] | None) -> GrainScores | None:
    """Return grain scores; those that the model lacks are None on the wire."""
    if grains is None:
        return None
    there = {name: value for name, value in grains.items() if value is not None}
    try:
        return GrainScores(there)
    except InvalidArgumentError as error:
        raise ServiceError(f"the service names a grain that this client lacks: {error}") from error


def scores_of(model: ScoresModel) -> Scores:
    """Return scores."""
    grains = {name: array.array() for name, array in model.grains.items()}
    return Scores(model.logits.array(), grains)


def report_of(model: ReportModel) -> IndexReport:
    """Return the report of an indexing run; files are named, not located."""
    return IndexReport(
        indexed=tuple(model.indexed),
        changed=tuple(model.changed),
        unchanged=tuple(model.unchanged),
        duplicates=dict(model.duplicates),
        pruned=tuple(model.pruned),
        failed=tuple(FailedVideo(video.name, video.reason) for video in model.failed),
        warnings=tuple(FailedVideo(video.name, video.reason) for video in model.warnings),
        passed_over=tuple(model.passed_over),
        seconds=model.seconds,
    )


def picture_of(content: bytes) -> npt.NDArray[np.uint8]:
    """Decode a picture to uint8 RGB [height, width, 3]. Raises ServiceError."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("WEBP", "JPEG", "PNG")) as file:
            if file.width * file.height > _MAX_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels")
            return np.asarray(file.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ServiceError(f"the service sent no picture: {error}") from error


def warnings_of(head: Head) -> tuple[str, ...]:
    """Return the warnings of a cut, which a header holds as a JSON list of texts."""
    text = head.headers.get("x-warnings", "")
    if not text:
        return ()
    try:
        found: Any = json.loads(text)
    except ValueError:
        return (text,)
    return tuple(map(str, found)) if isinstance(found, list) else (str(found),)


def _first_fault(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return ""
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, fault["loc"]))
    return f" ({where or 'it'}: {fault['msg']})"[:200]
