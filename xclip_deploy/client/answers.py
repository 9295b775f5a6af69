"""Answers of the service: their heads, and the errors that some of them are."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from pydantic import ValidationError

from xclip_deploy import errors
from xclip_deploy.errors import (
    ServiceAccessError,
    ServiceBusyError,
    ServiceError,
    XclipDeployError,
)
from xclip_deploy.wire import ErrorBody, ErrorModel

_MAX_WAIT_S = 86_400.0
_KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, XclipDeployError)
}


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer."""

    status: int
    headers: Mapping[str, str]
    """Values by names in small letters."""

    @property
    def length(self) -> int | None:
        """Bytes that the answer announces; None where it announces none."""
        text = self.headers.get("content-length", "")
        return int(text) if re.fullmatch(r"\d{1,18}", text) else None

    @property
    def kind(self) -> str:
        """Media type, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


def refused_after_s(head: Head) -> float | None:
    """Return the seconds that Retry-After names, or None. It is a number or a date."""
    text = head.headers.get("retry-after", "").strip()
    if not text:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return min(float(text), _MAX_WAIT_S)
    try:
        wait_s = parsedate_to_datetime(text).timestamp() - time()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(wait_s, 0.0), _MAX_WAIT_S) if math.isfinite(wait_s) else None


def refusal_of(head: Head, content: bytes, address: str) -> XclipDeployError:
    """Return the error of an answer whose status is 400 or above."""
    try:
        model = ErrorBody.model_validate_json(content).error
    except ValidationError:
        message = (
            f"{address} answered {head.status} without an error that this client knows; expected "
            "an xclip-deploy service, of this client's version"
        )
        return _service_error(head, message)
    return error_of(model, head)


def error_of(model: ErrorModel, head: Head | None = None) -> XclipDeployError:
    """Return the error that a model describes: of the same class where there is one."""
    message = printable_line(model.message)
    kind = _KINDS.get(model.kind)
    if kind is None or issubclass(kind, ServiceError) or kind is XclipDeployError:
        return _service_error(head, message, model)
    # The constructors of some classes take more than a message.
    error = kind.__new__(kind, message)
    Exception.__init__(error, message)
    for name, value in _ATTRIBUTES.get(model.kind, {}).items():
        setattr(error, name, value)
    return error


_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "MissingExtraError": {"package": "", "extra": ""},
    "MissingVideosError": {"missing": ()},
    "ParityError": {"records": ()},
    "ShardError": {"shards": ()},
    "VerificationError": {"certificate": None},
}
"""Attributes that constructors set, which do not travel."""


def _service_error(
    head: Head | None, message: str, model: ErrorModel | None = None
) -> XclipDeployError:
    status = None if head is None else head.status
    request_id = None if model is None else printable_line(model.request_id)
    kind = {401: ServiceAccessError, 403: ServiceAccessError}.get(status or 0, ServiceError)
    if status in (429, 503):
        kind = ServiceBusyError
    if status is not None and status >= 500 and request_id:
        message += f" (request {request_id:.100} in the service's log)"
    return kind(
        message,
        status=status,
        kind=None if model is None else model.kind,
        request_id=request_id,
        retry_after_s=None if head is None else refused_after_s(head),
    )


def printable_line(text: str) -> str:
    """Return a text of the service in one line, without what a terminal would act on."""
    return "".join(c if c.isprintable() else " " for c in text)
