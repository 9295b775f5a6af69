"""Settings of a client, checked once."""

from __future__ import annotations

import logging
import os
import random
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import as_number, as_text, as_truth, as_whole_number

TOKEN_VARIABLE = "XCLIP_DEPLOY_TOKEN"  # noqa: S105 - the name of a variable
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")
_MAX_TIMEOUT_S = 7 * 86_400.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClientSettings:
    """Settings of a client. Raises InvalidArgumentError for invalid values."""

    address: str = "http://127.0.0.1:8000"
    """Address of the service: scheme, host and port, with a path where a proxy adds one."""
    token: str | None = field(default=None, repr=False)
    """Secret of the service; None takes that of the environment, if there is one."""
    connect_timeout_s: float = 5.0
    """Longest time to connect, seconds."""
    read_timeout_s: float = 120.0
    """Longest time without a byte from the service, seconds."""
    timeout_s: float = 600.0
    """Longest time of a call with all its attempts, seconds. Uploads have none."""
    retries: int = 3
    """Most repetitions of a request that may be repeated."""
    max_response_bytes: int = 512 << 20
    """Largest answer that is held in memory."""
    max_download_bytes: int = 16 << 30
    """Largest file that is downloaded."""
    proxy: str | None = field(default=None, repr=False)
    """Address of a proxy. Proxies of the environment are not used."""
    follow_redirects: bool = False
    verify: bool | ssl.SSLContext = True
    """Whether the service's certificate is checked, or how."""

    def __post_init__(self) -> None:
        parts = _checked_address(self.address)
        object.__setattr__(self, "address", parts.geturl().rstrip("/"))
        for name in ("connect_timeout_s", "read_timeout_s", "timeout_s"):
            value = as_number(name, getattr(self, name), 1e-3, _MAX_TIMEOUT_S)
            object.__setattr__(self, name, value)
        as_whole_number("retries", self.retries, 0, 100)
        for name in ("max_response_bytes", "max_download_bytes"):
            as_whole_number(name, getattr(self, name), 1 << 10)
        as_truth("follow_redirects", self.follow_redirects)
        if not isinstance(self.verify, ssl.SSLContext):
            as_truth("verify", self.verify)
        if self.proxy is not None:
            _check_proxy(self.proxy)
        token = self.token if self.token is not None else os.environ.get(TOKEN_VARIABLE)
        if token is not None and not _TOKEN.fullmatch(as_text("token", token).strip()):
            # The message does not show the secret.
            raise InvalidArgumentError(
                f"the token (or {TOKEN_VARIABLE}) is empty or holds other characters than visible "
                "ASCII; expected the one that the service was started with"
            )
        object.__setattr__(self, "token", None if token is None else token.strip())
        if token is not None and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            _log.warning(
                "the token goes to %s without encryption; expected https, or a network of yours",
                parts.hostname,
            )

    @property
    def shown_address(self) -> str:
        """The address, for messages."""
        return f"{self.address:.200}"


@dataclass(frozen=True)
class Rules:
    """The rules by which requests are repeated and answers are bounded."""

    settings: ClientSettings
    first_pause_s: float = 0.25
    longest_pause_s: float = 8.0
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def pause_s(self, repetition: int, retry_after_s: float | None) -> float:
        """Return the seconds to wait before a repetition, the first of which is 1.

        Pauses double, and vary by chance so that many clients do not return at once. A pause is
        never shorter than what the service asked for.
        """
        doubled = min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(repetition - 1, 30))
        varied = doubled * (0.5 + self.chance() / 2)
        return varied if retry_after_s is None else retry_after_s + varied / 2

    def deadline(self, timeout_s: float | None = None) -> float:
        """Return the time of the clock at which a call ends; by default, the settings'."""
        return self.clock() + (self.settings.timeout_s if timeout_s is None else timeout_s)


def _checked_address(address: str) -> SplitResult:
    wanted = "expected one such as http://127.0.0.1:8000"
    try:
        parts = urlsplit(as_text("address", address))
        is_fit = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError as error:
        raise InvalidArgumentError(f"the address of the service is invalid; {wanted}") from error
    if parts.username is not None or parts.password is not None:
        raise InvalidArgumentError(
            "the address of the service holds a name or password; expected them in `token`"
        )
    if parts.query or parts.fragment:  # it may hold a secret, and is not shown
        raise InvalidArgumentError(f"the address of the service holds a query; {wanted}")
    if not is_fit or not address.isprintable() or " " in address:
        raise InvalidArgumentError(f"the address is {address!r:.200}; {wanted}")
    return parts


def _check_proxy(proxy: str) -> None:
    """Check the address of a proxy, which may hold a password and is not shown."""
    try:
        parts = urlsplit(as_text("proxy", proxy))
        is_fit = parts.scheme in ("http", "https") and bool(parts.hostname) and proxy.isprintable()
        _ = parts.port
    except ValueError:
        is_fit = False
    if not is_fit:
        raise InvalidArgumentError(
            "the proxy is no address; expected one such as http://127.0.0.1:3128, or None"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
