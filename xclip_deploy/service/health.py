"""The state of a service: whether it lives, is ready, or is shutting down.

It is ready once all three graphs have answered a real request and while the gallery can be read.
What a client sends changes nothing of that. Only an error of a session makes the service doubt its
model; it then asks the model again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import numpy as np

from xclip_deploy.errors import SessionError, XclipDeployError
from xclip_deploy.service.errors import Refusal

if TYPE_CHECKING:
    from xclip_deploy.runtime.retriever import Retriever
    from xclip_deploy.service.state import Service

_LOG = logging.getLogger(__name__)
_BAD_REFRESHES = 3
"""Failed refreshes in a row after which the gallery counts as unreadable."""
_PROBE_TEXT = "a person walks"


class Health:
    """State of a service, as the load balancer and its own parts ask for it."""

    def __init__(self) -> None:
        """Begin as neither ready nor shutting down."""
        self.stopping = asyncio.Event()
        """Set when the service begins to shut down; streams end then."""
        self.is_stopping = False
        """The same, for threads."""
        self.num_running = 0
        """Requests that are being answered."""
        self.is_doubtful = False
        """Whether the model must answer again, since a session failed."""
        self._faults: dict[str, str] = {"model": "it has not answered a request yet"}

    @property
    def is_ready(self) -> bool:
        """Whether the service takes requests."""
        return not self.is_stopping and not self._faults

    def check(self) -> None:
        """Raise Refusal unless the service is ready."""
        if self.is_stopping:
            raise Refusal(503, "ShuttingDown", "the service is shutting down", retry_after_s=5)
        for part, fault in self._faults.items():
            raise Refusal(503, "Unready", f"the {part} is not ready: {fault}")

    def set_fault(self, part: str, fault: str | None) -> None:
        """Set or clear what is wrong with ``model`` or ``gallery``."""
        if fault is not None:
            if part not in self._faults:
                _LOG.error("the %s is not ready: %s", part, fault)
            self._faults[part] = fault
        elif self._faults.pop(part, None) is not None:
            _LOG.info("the %s is ready", part)

    def note(self, error: BaseException) -> None:
        """Doubt the model after an error of a session."""
        if isinstance(error, SessionError):
            self.is_doubtful = True

    def begin_shutdown(self) -> None:
        """Turn unready for good, and let streams end. Runs in the event loop."""
        self.is_stopping = True
        self.stopping.set()


def probe(retriever: Retriever) -> None:
    """Run a real request through all three graphs. Raises SessionError.

    A text and a black video are embedded and scored, and the numbers must be finite.
    """
    side = retriever.reading.image_size
    texts = retriever.encode_texts([_PROBE_TEXT])
    videos = retriever.encode_videos([np.zeros((1, side, side, 3), np.uint8)])
    logits = retriever.score(texts, videos).logits
    if logits.shape != (1, 1) or not np.isfinite(logits).all():
        raise SessionError(
            f"the model scored a text and a video with {logits.tolist()}; expected one number"
        )


async def ask_model(service: Service) -> None:
    """Ask the model once, and set its state. Never raises for a model that fails."""
    health = service.health
    health.is_doubtful = False
    try:
        await service.run(probe, service.retriever)
    except Exception as error:  # noqa: BLE001 - whatever a driver or a library raises
        health.is_doubtful = True
        known = isinstance(error, XclipDeployError)
        health.set_fault("model", str(error) if known else f"it failed ({type(error).__name__})")
        _LOG.debug("the model failed", exc_info=error)
    else:
        health.set_fault("model", None)


async def keep_watch(service: Service) -> None:
    """Follow the gallery's changes on a timer, and ask a doubtful model again, until cancelled."""
    failures = 0
    while True:
        await asyncio.sleep(service.settings.refresh_s)
        if service.health.is_doubtful:
            await ask_model(service)
        try:
            await service.run(service.follow_gallery)
        except Exception as error:  # noqa: BLE001 - the timer goes on, whatever a library raises
            failures += 1
            service.metrics.failures.labels(type(error).__name__).inc()
            _LOG.warning("the gallery was not refreshed: %s", error)
            if failures >= _BAD_REFRESHES:
                known = isinstance(error, XclipDeployError)
                fault = str(error) if known else f"it cannot be read ({type(error).__name__})"
                service.health.set_fault("gallery", fault)
        else:
            failures = 0
            service.health.set_fault("gallery", None)
