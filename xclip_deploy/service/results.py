"""Results of searches as JSON, written without a detour by models.

The models of :mod:`xclip_deploy.wire.search` describe what is written here, and tests compare
both. A validation of the service's own results would take longer than the search of a batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from xclip_deploy.runtime.results import Moment, SearchResult, SearchResults
from xclip_deploy.service.errors import redacted
from xclip_deploy.service.naming import VideoNames

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
Json = dict[str, Any]


def to_json(content: object) -> bytes:
    """Encode plain values. Raises ValueError for NaN and infinity, which JSON lacks."""
    return _encode(content).encode("utf-8", "backslashreplace")


def json_response(content: bytes) -> Response:
    """Return a response of JSON that is encoded already."""
    return Response(content, media_type="application/json")


def results_to_json(
    results: SearchResults,
    *,
    show_paths: bool,
    warnings: Sequence[str] = (),
    other_ids: Mapping[str, str] | None = None,
) -> bytes:
    """Encode the results of one query as :class:`ResultsModel`.

    ``warnings``: those of reading the query. ``other_ids``: ids of near-identical videos to those
    that clients see.
    """
    known = other_ids or {}
    # A reason may name the bundle that lacks what a GPU needs.
    note, reason = results.note, results.reason
    if not show_paths:
        note, reason = redacted(note), redacted(reason)
    said = list(warnings)
    if results.is_truncated:
        said.append(cut_warning(results.truncated_tokens))
    return to_json(
        {
            "hits": [_hit(hit, known, show_paths=show_paths) for hit in results.hits],
            "method": results.method,
            "num_scored": results.num_scored,
            "num_videos": results.num_videos,
            "reason": reason,
            "truncated_tokens": results.truncated_tokens,
            "num_segments": results.num_segments,
            "note": note,
            "warnings": said,
            "answered_shards": results.answered_shards,
            "failed_shards": [vars(shard) for shard in results.failed_shards],
        }
    )


def batch_to_json(results: Sequence[bytes]) -> bytes:
    """Join encoded results to a :class:`BatchModel`."""
    return b'{"results":[' + b",".join(results) + b"]}"


def cut_warning(count: int) -> str:
    """Return the warning about a text whose last ``count`` tokens the model does not read."""
    tokens = "last token was" if count == 1 else f"last {count} tokens were"
    return f"the text is longer than the model reads: its {tokens} not read"


def _hit(hit: SearchResult, other_ids: Mapping[str, str], *, show_paths: bool) -> Json:
    media: Any = hit.media  # of a gallery's hit always HitMedia
    content_sha256 = None if media is None else media.content_sha256
    names = VideoNames.of(hit.id, content_sha256, hit.paths, show_paths=show_paths)
    return {
        "segment": hit.segment,
        "start_s": hit.start_s,
        "end_s": hit.end_s,
        "score": hit.score,
        "grains": None if hit.grains is None else hit.grains.to_dict(),
        "best_frame_time_s": hit.best_frame_time_s,
        "rank": hit.rank,
        "id": names.id,
        "handle": names.handle,
        "name": names.name,
        "path": hit.path if show_paths else None,
        "paths": hit.paths if show_paths else (),
        "near_identical": [other_ids.get(each, each) for each in hit.near_identical],
        "duration_s": hit.duration_s,
        "metadata": hit.metadata,
        "moments": [_moment(moment) for moment in hit.moments],
        "range": None if hit.range is None else vars(hit.range),
        "confidence": hit.confidence,
        "has_media": bool(hit.paths),
    }


def _moment(moment: Moment) -> Json:
    grains = None if moment.grains is None else moment.grains.to_dict()
    return {**vars(moment), "grains": grains}
