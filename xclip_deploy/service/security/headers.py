"""Headers that tell browsers what responses may do."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders

_DATA = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; font-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger UI draws its icons from data.
_VIEWER = (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def secure(headers: MutableHeaders, path: str) -> None:
    """Add the headers of security to a response for an address.

    Nothing is kept by browsers and proxies unless a route said so: results are private.
    """
    for name, value in _ALWAYS.items():
        headers[name] = value
    headers["Content-Security-Policy"] = content_policy(path)
    headers.setdefault("Cache-Control", "no-store")


def content_policy(path: str) -> str:
    """Return the ``Content-Security-Policy`` of an address."""
    if path == "/" or path.startswith("/static/"):
        return _PAGE
    return _VIEWER if path == "/docs" or path.startswith("/docs/") else _DATA
