"""The secret of a service: how it is read, compared and kept in a browser.

Programs send it as ``Authorization: Bearer``. The page trades it for a cookie, so that pictures
and videos load; the cookie holds a proof with an end, and never the token itself.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.security.sources import is_loopback

TOKEN_VARIABLE = "XCLIP_DEPLOY_TOKEN"  # noqa: S105 - the variable's name
"""Environment variable with the token."""
SESSION_S = 30 * 86_400
"""Seconds that a browser stays signed in."""
_TOKEN = re.compile(r"[\x21-\x7e]{16,512}", re.ASCII)
_MOST_BYTES = 4096


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the token from a file, else from ``XCLIP_DEPLOY_TOKEN``; None if there is neither.

    White space around it does not count. Raises InvalidArgumentError for a file that cannot be
    read, and for a token that is not 16 to 512 printable characters.
    """
    if file is None:
        text = environment.get(TOKEN_VARIABLE)
        source = TOKEN_VARIABLE
    else:
        source = f"the token file {file}"
        try:
            with file.open("rb") as stream:
                text = stream.read(_MOST_BYTES).decode("ascii", "replace")
        except OSError as error:
            raise InvalidArgumentError(f"{source} cannot be read: {error.strerror}") from error
    return None if text is None else checked_token(text, source)


def checked_token(text: str, source: str) -> str:
    """Return a token without the white space around it. Raises InvalidArgumentError."""
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise InvalidArgumentError(
            f"{source} holds {len(token)} characters; expected 16 to 512 printable ones without "
            "spaces, such as: openssl rand -hex 32"
        )
    return token


def check_binding(host: str, token: str | None) -> None:
    """Raise InvalidArgumentError for an address that others reach, without a token."""
    if token is None and not is_loopback(host):
        raise InvalidArgumentError(
            f"{host} can be reached by other machines, and there is no token; pass --token-file "
            f"FILE or set {TOKEN_VARIABLE}, or serve on 127.0.0.1"
        )


class Guard:
    """The check of a token. Without a token everyone may pass."""

    def __init__(self, token: str | None) -> None:
        """Keep the digest of the token, which all comparisons take."""
        self.is_open = token is None
        secret = b"" if token is None else token.encode()
        self._digest = hashlib.sha256(secret).digest()
        self._key = hashlib.sha256(b"xclip-deploy session\0" + secret).digest()
        # Cookies of a host go to all its ports, so two services need two names.
        name = hmac.new(self._key, b"name", hashlib.sha256).hexdigest()[:8]
        self.cookie = f"xclip-session-{name}"

    def accepts(self, token: str) -> bool:
        """Compare a token, in a time that tells nothing of the right one."""
        given = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        return self.is_open or hmac.compare_digest(given, self._digest)

    def issue(self, now: float | None = None) -> str:
        """Return the value of a cookie that is good for 30 days."""
        end = int(time.time() if now is None else now) + SESSION_S
        return f"{end}.{self._signature(end)}"

    def accepts_cookie(self, value: str, now: float | None = None) -> bool:
        """Return whether this service issued the value of a cookie that has not ended."""
        text, _, signature = value.partition(".")
        if not re.fullmatch(r"\d{1,12}", text, re.ASCII) or not signature.isascii():
            return False
        is_ours = hmac.compare_digest(signature, self._signature(int(text)))
        return is_ours and int(text) > (time.time() if now is None else now)

    def admits(self, headers: Headers) -> bool:
        """Return whether a request carries the token or a cookie for it."""
        if self.is_open:
            return True
        given = headers.getlist("authorization")
        if given:
            scheme, _, token = given[0].partition(" ")
            return len(given) == 1 and scheme.lower() == "bearer" and self.accepts(token.strip())
        cookies = cookie_parser(headers.get("cookie", ""))
        return self.accepts_cookie(cookies.get(self.cookie, ""))

    def check(self, headers: Headers) -> None:
        """Raise Refusal unless a request carries the token or a cookie for it."""
        if not self.admits(headers):
            is_given = "authorization" in headers
            raise unauthorized("found a wrong token" if is_given else "found no token")

    def _signature(self, end: int) -> str:
        return hmac.new(self._key, f"until {end}".encode(), hashlib.sha256).hexdigest()


def unauthorized(found: str) -> Refusal:
    """Return the refusal of a request without the right token."""
    return Refusal(
        401,
        "Unauthorized",
        f"{found} in the request; expected the service's token, as Authorization: Bearer TOKEN",
        headers={"WWW-Authenticate": "Bearer"},
    )
