"""Routes of signing in: a token for a cookie, so that pictures and videos load in a page."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from xclip_deploy.service.security.tokens import SESSION_S, Guard, unauthorized
from xclip_deploy.wire.base import WireModel

router = APIRouter(tags=["session"])


class SessionRequest(WireModel):
    """The service's token."""

    token: Annotated[str, Field(min_length=1, max_length=512)]


class SessionModel(WireModel):
    """Whether a browser is signed in."""

    signed_in: bool
    needs_token: bool
    """Whether the service has a token at all."""


@router.get("/session")
async def show_session(request: Request) -> SessionModel:
    """Tell whether this browser may use the service."""
    guard = _guard_of(request)
    return SessionModel(signed_in=guard.admits(request.headers), needs_token=not guard.is_open)


@router.post("/session")
async def sign_in(given: SessionRequest, request: Request, response: Response) -> SessionModel:
    """Trade the token for a cookie that scripts cannot read and other sites do not send."""
    guard = _guard_of(request)
    if not guard.accepts(given.token):
        raise unauthorized("found a wrong token")
    if not guard.is_open:
        response.set_cookie(
            guard.cookie,
            guard.issue(),
            max_age=SESSION_S,
            path="/",
            secure=_is_encrypted(request),
            httponly=True,
            samesite="strict",
        )
    return SessionModel(signed_in=True, needs_token=not guard.is_open)


@router.delete("/session")
async def sign_out(request: Request, response: Response) -> SessionModel:
    """Drop the cookie."""
    guard = _guard_of(request)
    response.delete_cookie(
        guard.cookie,
        path="/",
        secure=_is_encrypted(request),
        httponly=True,
        samesite="strict",
    )
    return SessionModel(signed_in=guard.is_open, needs_token=not guard.is_open)


def _guard_of(request: Request) -> Guard:
    guard = request.app.state.guard
    assert isinstance(guard, Guard)
    return guard


def _is_encrypted(request: Request) -> bool:
    """Return whether the browser speaks HTTPS, be it with a proxy in front."""
    origin = request.headers.get("origin", "")
    return request.url.scheme == "https" or origin.startswith("https://")
