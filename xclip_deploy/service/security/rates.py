"""Limits on the number of requests: a minute, and at the same time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from xclip_deploy.service.errors import Refusal

_MOST_CLIENTS = 10_000


class RateLimit:
    """A bucket of requests for each client that refills steadily.

    A client can send a minute's requests at once, and then as many as refill.
    """

    def __init__(self, per_minute: int) -> None:
        """Allow so many requests a minute of one client."""
        self._most = float(per_minute)
        self._per_s = per_minute / 60
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, client: str, now: float | None = None) -> None:
        """Count a request of a client. Raises Refusal with the time to wait if it is one too many.

        ``now``: seconds of a steady clock.
        """
        wait_s = self._take(client, time.monotonic() if now is None else now)
        if wait_s > 0:
            raise Refusal(
                429,
                "TooManyRequests",
                f"found more than {self._most:g} requests a minute of one client; wait "
                f"{wait_s:.0f} s",
                retry_after_s=wait_s,
            )

    def _take(self, client: str, now: float) -> float:
        with self._lock:
            left, seen = self._clients.pop(client, (self._most, now))
            left = min(self._most, left + max(0.0, now - seen) * self._per_s)
            is_allowed = left >= 1
            self._clients[client] = (left - 1 if is_allowed else left, now)
            # The oldest has most likely refilled, so that forgetting it changes nothing.
            if len(self._clients) > _MOST_CLIENTS:
                self._clients.popitem(last=False)
            return 0.0 if is_allowed else max(1.0, (1 - left) / self._per_s)
