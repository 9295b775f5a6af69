"""Routes of search."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service.results import batch_to_json, json_response
from xclip_deploy.service.searching import AskedQuery
from xclip_deploy.service.state import Service, service_of
from xclip_deploy.wire import BatchModel, BatchRequest, ResultsModel, SearchRequest

router = APIRouter(tags=["search"])
ServiceOf = Annotated[Service, Depends(service_of)]


@router.post("/search", response_model=ResultsModel)
async def search(request: SearchRequest, service: ServiceOf) -> Response:
    """Find videos or moments by text, by a video of the gallery, or by both."""
    if request.text is None and request.video is None:
        raise InvalidArgumentError("the search has neither text nor video; expected one, or both")
    if request.segment is not None and request.video is None:
        raise InvalidArgumentError("segment is given without video; expected both")
    searching = service.searching
    if request.video is None and searching.is_plain(request):
        query = _query(service, request)
    else:
        query = await service.run(_query, service, request)
    return json_response(await searching.search(query))


@router.post("/search/batch", response_model=BatchModel)
async def search_batch(request: BatchRequest, service: ServiceOf) -> Response:
    """Find videos or moments by several texts with the same options."""
    searching = service.searching
    records = service.served.records()
    options = await service.run(searching.options_of, request, records, has_text=True)
    warnings = await service.run(searching.warnings_of, request)
    queries = [AskedQuery(options, text, warnings=warnings) for text in request.texts]
    return json_response(batch_to_json(await searching.search_all(queries)))


def _query(service: Service, request: SearchRequest) -> AskedQuery:
    searching = service.searching
    records = service.served.records()
    options = searching.options_of(request, records, has_text=request.text is not None)
    warnings = searching.warnings_of(request)
    if request.video is None:
        return AskedQuery(options, request.text, warnings=warnings)
    video, said = searching.indexed_video(request.video, request.segment)
    weight = request.video_weight if request.text is not None else 0.0
    return AskedQuery(options, request.text, video, weight, (*warnings, *said))
