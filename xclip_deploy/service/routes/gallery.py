"""Routes of the gallery: what it holds, its videos, and their removal."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.listing import list_videos, remove_videos, video_model
from xclip_deploy.service.state import Service, service_of
from xclip_deploy.wire import GalleryModel, RemovedModel, RemoveRequest, VideoModel, VideoPage
from xclip_deploy.wire.gallery import MAX_PAGE

router = APIRouter(tags=["gallery"])
ServiceOf = Annotated[Service, Depends(service_of)]
MAX_OFFSET = 1 << 31


@router.get("/gallery")
async def describe(service: ServiceOf) -> GalleryModel:
    """Describe the gallery and the model."""
    return await service.run(service.summary.model)


@router.post("/gallery/refresh", status_code=204)
async def refresh(service: ServiceOf) -> None:
    """Load the changes that other processes made to the gallery."""
    await service.run(service.follow_gallery)


@router.get("/videos")
async def list_page(
    service: ServiceOf,
    where: Annotated[str | None, Query(min_length=1, max_length=4000)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
) -> VideoPage:
    """List videos in the order in which they were added, or those that match a filter."""
    return await service.run(list_videos, service, where, limit, offset)


@router.get("/videos/{handle}")
async def get_video(handle: str, service: ServiceOf) -> VideoModel:
    """Return one video with its segments."""
    return await service.run(video_model, service, handle)


@router.delete("/videos/{handle}")
async def remove_video(handle: str, service: ServiceOf) -> RemovedModel:
    """Remove one video from the gallery, and its file if it was uploaded."""
    return await _remove(service, RemoveRequest(videos=[handle]))


@router.post("/videos/remove")
async def remove(body: RemoveRequest, service: ServiceOf) -> RemovedModel:
    """Remove videos by name or those that match a filter, all or none."""
    return await _remove(service, body)


async def _remove(service: Service, asked: RemoveRequest) -> RemovedModel:
    if service.settings.read_only:
        raise Refusal(403, "ReadOnly", "the service is read-only; expected no removals")
    service.served.check_writable()
    if (asked.videos is None) == (asked.where is None):
        raise InvalidArgumentError(
            "the request names videos and a filter, or neither; expected one of the two"
        )
    return await service.run(remove_videos, service, asked)
