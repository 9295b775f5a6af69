"""Routes that add videos: by upload, or by path. Both answer at once with a job."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import ValidationError

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service.state import Service, service_of
from xclip_deploy.wire import API, AddOptions, IndexRequest, JobModel

router = APIRouter(tags=["adding"])

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                        },
                        "options": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": AddOptions.model_json_schema(),
                            "description": "How the videos are added, as JSON.",
                        },
                    },
                },
                "encoding": {"options": {"contentType": "application/json"}},
            }
        },
    }
}


@router.post("/videos", status_code=202, openapi_extra=_FORM)
async def upload_videos(
    request: Request, response: Response, service: Annotated[Service, Depends(service_of)]
) -> JobModel:
    """Upload videos and index them behind the request.

    The job is answered once all bytes are on the service's disk: it then survives a restart. The
    options may stand before or behind the files.
    """
    service.jobs.check_open()
    length = request.headers.get("content-length", "")
    content_length = int(length) if length.isdecimal() else None
    content_type = request.headers.get("content-type", "")
    with service.metrics.time("upload"):
        async with service.uploads.receiving(
            content_type, content_length, request.stream()
        ) as received:
            options = _options(received.options)
            job = await service.run(service.jobs.add_uploads, received, options)
    response.headers["Location"] = f"{API}/jobs/{job.id}"
    return job


@router.post("/index", status_code=202)
async def index_paths(
    body: IndexRequest, response: Response, service: Annotated[Service, Depends(service_of)]
) -> JobModel:
    """Index files and folders on the service's own disks behind the request.

    Paths must lie below a folder that the service allows. Links are followed, and may not lead out
    of these folders.
    """
    service.jobs.check_open()
    job = await service.run(service.jobs.add_paths, body)
    response.headers["Location"] = f"{API}/jobs/{job.id}"
    return job


def _options(content: bytes) -> AddOptions:
    if not content.strip():
        return AddOptions()
    try:
        return AddOptions.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidArgumentError(
            f"the part 'options' is wrong{f' at {where!r:.100}' if where else ''}: {first['msg']}"
        ) from error
