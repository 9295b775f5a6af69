"""Where a request comes from: checks against web pages that post to a local address.

A page of another host can make a browser send requests here. With DNS rebinding it even reads the
answers, since its own name then leads to this address. So the name in ``Host`` must be one that
this service is known by, and a browser's request must come from the service's own page.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers

from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.settings import LOOPBACK
from xclip_deploy.wire import API

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
MULTIPART = frozenset(
    f"{API}/{name}" for name in ("videos", "search/image", "search/video", "encode/videos")
)
"""Addresses whose requests are ``multipart/form-data``; all others take JSON."""

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(:\d{1,5})?", re.ASCII)


def is_loopback(host: str) -> bool:
    """Return whether an address or name means this machine alone."""
    address = _address(host)
    return host.lower() in LOOPBACK if address is None else address.is_loopback


class HostNames:
    """Names that requests may give as the host."""

    def __init__(self, host: str, allowed: Collection[str]) -> None:
        """Allow the served address, the loopback's names, and ``allowed``."""
        self._names = {_bare(name) for name in (host, *LOOPBACK, *allowed)}
        self._is_local = is_loopback(host)

    def check(self, headers: Headers) -> str:
        """Return the request's host with its port. Raises Refusal for a strange one."""
        given = headers.getlist("host")
        host = given[0].lower() if len(given) == 1 else ""
        found = _HOST.fullmatch(host)
        if found is None or not self._is_known(_bare(found["name"])):
            shown = f"the host {given[0]!r:.100}" if given else "no host"
            raise Refusal(
                400,
                "UnknownHost",
                f"found {shown} in the request; expected an address that this service is known "
                "by: start it with --allow-host NAME for another",
            )
        return host

    def _is_known(self, name: str) -> bool:
        if name in self._names:
            return True
        address = _address(name)
        # No name leads to a literal address, so that rebinding cannot use one.
        return address is not None and (address.is_loopback or not self._is_local)


def check_origin(method: str, path: str, headers: Headers, host: str) -> None:
    """Refuse a browser's request that another site's page caused. Raises Refusal.

    Programs send neither ``Origin`` nor ``Sec-Fetch-Site``, and are not concerned.
    """
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none")
    is_foreign = origin is not None and _place_of(origin) != host
    if method in SAFE_METHODS:
        # A link to the page is welcome; a picture or script from here in another page is not.
        is_link = headers.get("sec-fetch-mode") == "navigate" and not path.startswith(API)
        is_foreign = is_foreign or (site not in ("none", "same-origin") and not is_link)
    else:
        is_foreign = is_foreign or site not in ("none", "same-origin")
    if is_foreign:
        raise Refusal(
            400,
            "ForeignOrigin",
            f"found a request by a page of {origin or 'another site'!r:.100}; expected one by "
            "this service's own page, or by a program",
        )


def check_content(method: str, path: str, headers: Headers) -> None:
    """Refuse a body of another type than the address takes. Raises Refusal.

    Web pages can post ``text/plain`` and forms anywhere without being asked.
    """
    if method in SAFE_METHODS:
        return
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise Refusal(
            415,
            "UnsupportedEncoding",
            f"found a body in the encoding {encoding!r:.40}; expected one without",
        )
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    given = headers.get("content-type")
    if given is None and not has_body:
        return
    wanted = "multipart/form-data" if path in MULTIPART else "application/json"
    kind = (given or "").partition(";")[0].strip().lower()
    count = len(headers.getlist("content-type"))
    if kind != wanted or count > 1:
        found = f"{count} types" if count > 1 else f"the type {kind or 'of no name'!r:.60}"
        raise Refusal(415, "UnsupportedContentType", f"found a body of {found}; expected {wanted}")


def _place_of(origin: str) -> str | None:
    """Return host and port of an origin as ``Host`` writes them; None for ``null``."""
    scheme, mark, place = origin.lower().partition("://")
    return place if mark and scheme in ("http", "https") else None


def _bare(name: str) -> str:
    return name.lower().strip("[]").rstrip(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None
