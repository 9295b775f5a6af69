"""Routes of search."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from xclip_deploy.service.state import Service, service_of
from xclip_deploy.wire import ResultsModel, SearchRequest

router = APIRouter(tags=["search"])


@router.post("/search")
async def search(
    request: SearchRequest, service: Annotated[Service, Depends(service_of)]
) -> ResultsModel:
    """Find videos or moments by text, by a video of the gallery, or by both."""
    raise NotImplementedError
