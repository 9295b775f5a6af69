"""Explanations for responses, and their pictures, whose frames worker processes read."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from xclip_deploy.errors import GalleryError, VideoError
from xclip_deploy.runtime.evidence import (
    Contrast,
    Explanation,
    Hit,
    draw_explanation,
    explain_hits,
)
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.results import SearchResult
from xclip_deploy.runtime.video import VideoFrames, resize_and_crop
from xclip_deploy.service.errors import Refusal, redacted
from xclip_deploy.service.naming import VideoNames, find_id, names_of
from xclip_deploy.service.records import VideoRecords
from xclip_deploy.wire.evidence import ContrastModel, EvidenceModel, ExplanationModel
from xclip_deploy.wire.search import ExplainRequest, HitName

if TYPE_CHECKING:
    from xclip_deploy.service.state import Service

_SIDE = 224
"""Side of a frame in a picture, pixels."""
_drawing = threading.Lock()
"""Matplotlib's caches of fonts are not safe from several threads."""


@dataclass(frozen=True, eq=False)
class Explained:
    """One or two explanations, whose videos have the names that clients see."""

    explanations: tuple[Explanation, ...]
    names: tuple[VideoNames, ...]

    @property
    def contrast(self) -> Contrast | None:
        """The contrast of two explanations; None for one."""
        return Contrast(*self.explanations) if len(self.explanations) == 2 else None

    def model(self) -> EvidenceModel:
        """Encode what was explained."""
        models = [
            ExplanationModel.of(each, names.id, names.handle, names.name)
            for each, names in zip(self.explanations, self.names, strict=True)
        ]
        contrast = self.contrast
        if contrast is None:
            return EvidenceModel(explanation=models[0])
        return EvidenceModel(explanation=None, contrast=ContrastModel.of(contrast, *models))


def explain(service: Service, asked: ExplainRequest) -> Explained:
    """Explain the score of a video, or the order of two, as :meth:`Retriever.explain` does.

    Raises GalleryError, InvalidArgumentError, SessionError.
    """
    records = service.served.records()
    show_paths = service.settings.show_paths
    wanted = [asked.hit] if asked.other is None else [asked.hit, asked.other]
    ids = [find_id(records, each.video, show_paths=show_paths) for each in wanted]
    hits = [_hit(each, name) for each, name in zip(ids, wanted, strict=True)]
    rows = records.find(ids)
    model, weights = service.served.model, service.served.weights()
    found = [
        explanation
        for snapshot, some in _by_snapshot(records, [rows[each] for each in ids], hits)
        for explanation in explain_hits(asked.query, some, snapshot, model, weights)
    ]
    videos = records.videos(np.array([rows[each] for each in ids], np.int64))
    names = tuple(names_of(video, show_paths=show_paths) for video in videos)
    shown = [each.name for each in names]
    if len(set(ids)) == len(ids) and len(set(shown)) < len(shown):
        # Two files have one name; the sentence about them must tell them apart.
        shown = [f"{each.name} ({each.handle[:8]})" for each in names]
    named = zip(found, shown, strict=True)
    return Explained(tuple(replace(each, video_id=name) for each, name in named), names)


def _by_snapshot(
    records: VideoRecords, rows: Sequence[int], hits: Sequence[Hit]
) -> list[tuple[Snapshot, Sequence[Hit]]]:
    """Return hits with the snapshot that holds them: all at once where it is the same."""
    owners = [records.snapshot_of(row) for row in rows]
    if all(owner is owners[0] for owner in owners):
        return [(owners[0], hits)]
    return [(owner, [hit]) for owner, hit in zip(owners, hits, strict=True)]


def _hit(video_id: str, asked: HitName) -> SearchResult | str:
    if asked.segment is None:
        return video_id
    # Of a hit, the explanation reads the id and the segment.
    return SearchResult(1, video_id, None, 0.0, None, 0.0, segment=asked.segment)


async def draw(service: Service, explained: Explained) -> bytes:
    """Draw explanations as a PNG. A video whose file is gone has grey boxes and a note.

    Raises MissingExtraError without matplotlib.
    """
    frames: list[VideoFrames | None] = []
    notes: list[str | None] = []
    for each, names in zip(explained.explanations, explained.names, strict=True):
        picture, note = await _frames_of(service, each, names)
        frames.append(picture)
        notes.append(note)
    return await service.run(_draw, service, explained, frames, notes)


def _draw(
    service: Service,
    explained: Explained,
    frames: Sequence[VideoFrames | None],
    notes: Sequence[str | None],
) -> bytes:
    path = service.query_files.temporary(".png")
    try:
        with _drawing:
            draw_explanation(explained.contrast or explained.explanations[0], path, frames, notes)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


async def _frames_of(
    service: Service, explanation: Explanation, names: VideoNames
) -> tuple[VideoFrames | None, str | None]:
    """Return the frames of an explanation, or a note that says why they are missing."""
    if explanation.path is None:
        return None, "no frames: the features were added without a file"
    times_s = [frame.time_s for frame in explanation.frames if frame.time_s is not None]
    try:
        source = await service.media.open(await service.media.find(names.handle))
        pictures = []
        for time_s in times_s:
            content = await service.media.picture(source, time_s, 2 * _SIDE, "png")
            pictures.append(await service.run(_prepared, content))
    except (GalleryError, Refusal, VideoError) as error:
        return None, f"no frames: {redacted(str(error))}"
    end_s = times_s[-1] if explanation.end_s is None else explanation.end_s
    frames = VideoFrames(
        frames=np.stack(pictures),
        times_s=np.array(times_s, np.float64),
        frame_numbers=np.arange(len(times_s)),
        duration_s=end_s,
        frame_rate=len(times_s) / max(end_s - explanation.start_s, 1e-3),
    )
    return frames, None


def _prepared(content: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        return resize_and_crop(np.asarray(picture.convert("RGB")), _SIDE)
