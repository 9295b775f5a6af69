"""Responses to errors: one form for all of them, counted and logged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Send

from xclip_deploy.errors import XclipDeployError
from xclip_deploy.service.errors import Refusal, error_body, headers_of, status_of
from xclip_deploy.service.health import Health
from xclip_deploy.service.logs import current_request_id
from xclip_deploy.service.metrics import ServiceMetrics
from xclip_deploy.service.security.bodies import LimitedBody

_LOG = logging.getLogger(__name__)


class ErrorAnswers:
    """Responses to errors of one service.

    Each is counted by its kind, and logged; an unexpected one with its traceback. An error of a
    session makes :class:`Health` ask the model again.
    """

    def __init__(self, metrics: ServiceMetrics, health: Health, folders: Sequence[Path]) -> None:
        """Count in ``metrics``. ``folders``: see :func:`redacted`."""
        self._metrics = metrics
        self._health = health
        self._folders = folders

    def response(self, error: BaseException) -> Response:
        """Return the response to an error. Raises ClientDisconnect if nobody waits for it."""
        error = translated(error)
        status = status_of(error)
        body = error_body(error, current_request_id(), self._folders)
        self._health.note(error)
        self._metrics.failures.labels(body.error.kind).inc()
        fields = {"kind": body.error.kind, "status": status}
        if not isinstance(error, Refusal | XclipDeployError):
            _LOG.error("unexpected error", exc_info=error, extra={"fields": fields})
        elif status >= 500:
            _LOG.error("%s", error, exc_info=error, extra={"fields": fields})
        else:
            _LOG.info("%s", error, extra={"fields": fields})
        return Response(
            body.model_dump_json(), status, headers_of(error), media_type="application/json"
        )

    async def send(self, error: BaseException, send: Send, unread: LimitedBody | None) -> None:
        """Send the response to an error.

        ``unread``: a body that may not have been read to its end; the connection closes then.
        """
        response = self.response(error)
        is_left = unread is not None and not unread.is_complete
        if is_left:
            response.headers["Connection"] = "close"
        headers = response.raw_headers
        start = {"type": "http.response.start", "status": response.status_code, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": response.body, "more_body": is_left})
        if unread is not None and is_left:
            await unread.drain()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def translated(error: BaseException) -> BaseException:
    """Return an error of the framework as the refusal that it stands for; others as they are.

    Raises ClientDisconnect if the client went away in the middle of its body.
    """
    if isinstance(error, RequestValidationError):
        faults = error.errors()
        places = ".".join(str(part) for part in faults[0]["loc"]) if faults else "request"
        reason = faults[0]["msg"] if faults else "it is invalid"
        more = f"; and {len(faults) - 1} more" if len(faults) > 1 else ""
        return Refusal(422, "InvalidArgumentError", f"{places:.200}: {reason:.400}{more}")
    if not isinstance(error, HTTPException):
        return error
    # The framework turns what the body raises into an error of its own.
    if isinstance(error.__cause__, ClientDisconnect):
        raise error.__cause__
    if isinstance(error.__cause__, Refusal | XclipDeployError):
        return error.__cause__
    phrase = HTTPStatus(error.status_code).phrase
    detail = str(error.detail)
    if error.status_code == 404 and detail == phrase:
        detail = "found no such address; the API's description lists all"
    return Refusal(
        error.status_code,
        phrase.replace(" ", "").replace("-", ""),
        detail,
        headers=dict(error.headers or {}),
    )
