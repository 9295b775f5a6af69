"""Routes of embeddings and scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.service.query_files import MAX_FILES
from xclip_deploy.service.results import cut_warning
from xclip_deploy.service.routes.similar import form_of
from xclip_deploy.service.scoring import check_texts, check_videos, score_named
from xclip_deploy.service.state import Service, service_of
from xclip_deploy.wire import (
    ArrayModel,
    ScoreRequest,
    ScoresModel,
    TextFeaturesModel,
    TextsRequest,
    VideoFeaturesModel,
)

router = APIRouter(tags=["encoding"])
ServiceOf = Annotated[Service, Depends(service_of)]
WARNINGS = "X-Warnings"
"""Header with warnings about what was encoded: a list of texts in JSON."""
_MAX_HEADER = 7000
"""Longest header with warnings, characters; clients and proxies take 8 KiB at least."""


@router.post("/encode/texts")
async def encode_texts(
    body: TextsRequest, response: Response, service: ServiceOf
) -> TextFeaturesModel:
    """Embed texts. Texts that are longer than the model reads are named in ``X-Warnings``."""
    model = service.served.model

    def encode() -> tuple[TextFeaturesModel, list[str]]:
        with service.metrics.time("encode_text"):
            features = model.encode_texts(body.texts)
        cuts = enumerate(model.count_cut(body.texts))
        said = [f"text {n}: {cut_warning(count)}" for n, count in cuts if count]
        return TextFeaturesModel.of(features), said

    features, warnings = await service.run(encode)
    _warn(response, warnings)
    return features


@router.post("/encode/videos", openapi_extra=form_of(None, has_text=False, is_list=True))
async def encode_videos(
    request: Request, response: Response, service: ServiceOf
) -> VideoFeaturesModel:
    """Embed uploaded videos, each as a whole. ``X-Warnings`` names their faults."""
    warnings: list[str] = []
    parts: list[VideoFeatures] = []
    async with service.query_files.receiving(request, frozenset(), MAX_FILES) as received:
        for n, path in enumerate(received.files):
            with service.metrics.time("decode_query"):
                frames, said = await service.query_files.decode(path, is_image=False)
            with service.metrics.time("encode_video"):
                parts.append(await service.run(service.served.retriever.encode_videos, [frames]))
            warnings += [f"file {n}: {each}" for each in said]
    _warn(response, warnings)
    return VideoFeaturesModel.of(VideoFeatures.concatenate(parts))


@router.post("/score")
async def score(body: ScoreRequest, service: ServiceOf) -> ScoresModel:
    """Score every text against every video. A long video scores as its best segment."""
    return await service.run(_score, service, body)


def _score(service: Service, body: ScoreRequest) -> ScoresModel:
    model = service.served.model
    if isinstance(body.texts, TextFeaturesModel):
        texts: TextFeatures = body.texts.features()
        check_texts(texts, model)
    else:
        texts = model.encode_texts(body.texts)
    if isinstance(body.videos, VideoFeaturesModel):
        videos = body.videos.features()
        check_videos(videos, model)
        with service.metrics.time("score"):
            scores = model.score(texts, videos)
    else:
        records = service.served.records()
        with service.metrics.time("score"):
            scores = score_named(
                model, records, texts, body.videos, show_paths=service.settings.show_paths
            )
    return ScoresModel(
        logits=ArrayModel.of(scores.logits),
        grains={name: ArrayModel.of(values) for name, values in scores.grains.items()},
    )


def _warn(response: Response, warnings: Sequence[str]) -> None:
    """Set the header, with as many warnings as it holds, and the number of the others."""
    kept: list[str] = []
    room = _MAX_HEADER
    for n, warning in enumerate(warnings):
        room -= len(json.dumps(warning)) + 2
        if room < 0:
            kept.append(f"and {len(warnings) - n} more")
            break
        kept.append(warning)
    if kept:
        response.headers[WARNINGS] = json.dumps(kept)
