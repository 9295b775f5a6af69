"""Routes for those who operate the service: health and metrics."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response

from xclip_deploy.service.metrics import CONTENT_TYPE
from xclip_deploy.service.state import Service, service_of
from xclip_deploy.wire.base import FailedShardModel, WireModel

router = APIRouter(tags=["operation"])


class HealthModel(WireModel):
    """Health of the service."""

    status: Literal["live", "ready"]
    failed_shards: list[FailedShardModel] | None = None
    """Shards that searches leave out, as they do not answer; None for a gallery on one machine."""


@router.get("/health/live", response_model_exclude_none=True)
@router.head("/health/live", include_in_schema=False)
async def live() -> HealthModel:
    """Answer as long as the process works."""
    return HealthModel(status="live")


@router.get("/health/ready", response_model_exclude_none=True)
@router.head("/health/ready", include_in_schema=False)
async def ready(service: Annotated[Service, Depends(service_of)]) -> HealthModel:
    """Answer 200 while the service takes requests, else 503 with the reason.

    All three graphs have answered a real request, the gallery can be read, all its shards answer
    unless searches may go on without some, and the service is not shutting down.
    """
    service.health.check()
    if service.served.num_shards is None:
        return HealthModel(status="ready")
    lost = [FailedShardModel(**vars(shard)) for shard in service.health.lost_shards]
    return HealthModel(status="ready", failed_shards=lost)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(service: Annotated[Service, Depends(service_of)]) -> Response:
    """Return requests, latency by stage, batch sizes, queues and failures for Prometheus."""
    text = await service.run(service.metrics.text)
    return Response(text, media_type=CONTENT_TYPE)
