"""Routes of searches by an uploaded image or video."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service.query_files import ReceivedQuery, text_of
from xclip_deploy.service.results import json_response
from xclip_deploy.service.searching import AskedQuery
from xclip_deploy.service.state import Service, service_of
from xclip_deploy.wire import ResultsModel, SearchFields, SimilarityFields
from xclip_deploy.wire.base import MAX_TEXT

router = APIRouter(tags=["search"])
ServiceOf = Annotated[Service, Depends(service_of)]
Model = TypeVar("Model", bound=BaseModel)


class VideoSearchFields(SearchFields):
    """Options of a search by an uploaded video, with or without a text."""

    video_weight: Annotated[float, Field(ge=0, le=1)] = 0.5


def form_of(options: type[BaseModel] | None, *, has_text: bool, is_list: bool = False) -> Any:  # noqa: ANN401
    """Describe a form with a file for the API's description."""
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    parts: dict[str, Any] = {
        "file": {"type": "array", "minItems": 1, "items": file} if is_list else file
    }
    encoding = {}
    if options is not None:
        parts["options"] = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": options.model_json_schema(),
            "description": "Options of the search, as JSON.",
        }
        encoding["options"] = {"contentType": "application/json"}
    if has_text:
        parts["text"] = {"type": "string", "maxLength": MAX_TEXT}
    schema = {"type": "object", "required": ["file"], "properties": parts}
    content = {"multipart/form-data": {"schema": schema, "encoding": encoding}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/search/image",
    response_model=ResultsModel,
    openapi_extra=form_of(SimilarityFields, has_text=False),
)
async def search_by_image(request: Request, service: ServiceOf) -> Response:
    """Find the videos most similar to an uploaded image."""
    with_options = frozenset({"options"})
    async with service.query_files.receiving(request, with_options) as received:
        fields = options_in(received, SimilarityFields)
        query = await _query(service, received, fields, is_image=True)
    return json_response(await service.searching.search(query))


@router.post(
    "/search/video",
    response_model=ResultsModel,
    openapi_extra=form_of(VideoSearchFields, has_text=True),
)
async def search_by_video(request: Request, service: ServiceOf) -> Response:
    """Find the videos most similar to an uploaded video, and to a text where one is given."""
    names = frozenset({"options", "text"})
    async with service.query_files.receiving(request, names) as received:
        fields = options_in(received, VideoSearchFields)
        query = await _query(service, received, fields, is_image=False)
    return json_response(await service.searching.search(query))


async def _query(
    service: Service, received: ReceivedQuery, fields: SimilarityFields, *, is_image: bool
) -> AskedQuery:
    searching = service.searching
    text = text_of(received.fields, "text")
    if text is not None and len(text) > MAX_TEXT:
        raise InvalidArgumentError(
            f"the text has {len(text):,} characters; expected at most {MAX_TEXT:,}"
        )
    # Wrong options are told before anything is decoded.
    records = service.served.records()
    options = await service.run(searching.options_of, fields, records, has_text=text is not None)
    with service.metrics.time("decode_query"):
        frames, warnings = await service.query_files.decode(received.files[0], is_image=is_image)
    with service.metrics.time("encode_video"):
        video = await service.run(service.served.retriever.encode_videos, [frames])
    weight = fields.video_weight if isinstance(fields, VideoSearchFields) else 0.5
    more = await service.run(searching.warnings_of, fields)
    return AskedQuery(options, text, video, 0.0 if text is None else weight, (*more, *warnings))


def options_in(received: ReceivedQuery, kind: type[Model]) -> Model:
    """Read the part ``options`` of a form. Raises InvalidArgumentError."""
    content = text_of(received.fields, "options") or "{}"
    try:
        return kind.model_validate(json.loads(content))
    except (ValueError, RecursionError) as error:
        said = "it is no JSON"
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InvalidArgumentError(f"the part 'options' is wrong: {said:.500}") from error
