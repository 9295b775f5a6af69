"""Routes of explanations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from xclip_deploy.service.explaining import draw, explain
from xclip_deploy.service.results import json_response
from xclip_deploy.service.state import Service, service_of
from xclip_deploy.wire import EvidenceModel, ExplainRequest

router = APIRouter(tags=["evidence"])
ServiceOf = Annotated[Service, Depends(service_of)]


@router.post("/explain", response_model=EvidenceModel)
async def explain_score(body: ExplainRequest, service: ServiceOf) -> Response:
    """Explain why a video has its score, or why it ranks above another."""
    with service.metrics.time("explain"):
        explained = await service.run(explain, service, body)
        content = await service.run(lambda: explained.model().model_dump_json().encode())
    return json_response(content)


@router.post(
    "/explain.png",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "The picture."}},
)
async def draw_explanation(body: ExplainRequest, service: ServiceOf) -> Response:
    """Draw an explanation: frames over a heat map of their similarity to the words."""
    with service.metrics.time("draw"):
        explained = await service.run(explain, service, body)
        content = await draw(service, explained)
    return Response(content, media_type="image/png")
