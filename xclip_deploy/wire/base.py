"""Base of all models, the prefix of all addresses, and the body of an error."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

API = "/api/v1"
"""Prefix of every address of the JSON API."""
MAX_ID = 4096
"""Longest id, handle or name of a video in a request, in characters."""
MAX_TEXT = 10_000
"""Longest text of a query, in characters; the model reads far less, and says so."""

VideoName = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
"""Id or handle of a video."""
QueryText = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class WireModel(BaseModel):
    """A frozen model that refuses unknown fields and numbers that JSON lacks."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FailedShardModel(WireModel):
    """A shard of the gallery that did not answer; see :class:`FailedShard`."""

    number: int
    """Number of the shard, from 0."""
    node: str
    """Names of the machines of its actors."""
    reason: str


class ErrorModel(WireModel):
    """What went wrong. It carries no path and no traceback."""

    kind: str
    """Name of the class in :mod:`xclip_deploy.errors`, or of a refusal by the service."""
    message: str
    """One line: what was found, what was expected, and what to do."""
    request_id: str
    """Id of the request in the service's log."""


class ErrorBody(WireModel):
    """Body of every response whose status is 4xx or 5xx."""

    error: ErrorModel
