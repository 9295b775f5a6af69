"""What a service does by itself: it follows the gallery, and asks a doubtful model again."""

from __future__ import annotations

import asyncio
import logging

from xclip_deploy.errors import XclipDeployError
from xclip_deploy.service.health import probe
from xclip_deploy.service.state import Service

_LOG = logging.getLogger(__name__)
_BAD_REFRESHES = 3
"""Failed refreshes in a row after which the gallery counts as unreadable."""


async def ask_model(service: Service) -> None:
    """Ask the model once, and set its state. Never raises for a model that fails."""
    health = service.health
    health.is_doubtful = False
    try:
        await service.run(probe, service.served.retriever, service.served.model)
    except Exception as error:  # noqa: BLE001 - whatever a driver or a library raises
        health.is_doubtful = True
        known = isinstance(error, XclipDeployError)
        health.set_fault("model", str(error) if known else f"it failed ({type(error).__name__})")
        _LOG.debug("the model failed", exc_info=error)
    else:
        health.set_fault("model", None)


async def keep_watch(service: Service) -> None:
    """Watch the gallery, its shards and a doubtful model on timers, until cancelled."""
    watches = [_watch_gallery(service)]
    if service.served.num_shards is not None:
        watches.append(_watch_shards(service))
    await asyncio.gather(*watches)


async def _watch_shards(service: Service) -> None:
    """Ask on a timer which shards answer. A shard that hangs must not hold up the rest."""
    while True:
        try:
            await service.run(service.look_for_lost_shards)
        except Exception as error:  # noqa: BLE001 - the timer goes on, whatever a library raises
            service.metrics.failures.labels(type(error).__name__).inc()
            _LOG.warning("the shards were not asked: %s", error)
            known = isinstance(error, XclipDeployError)
            fault = str(error) if known else f"it failed ({type(error).__name__})"
            service.health.set_fault("search", fault)
        await asyncio.sleep(service.settings.refresh_s)


async def _watch_gallery(service: Service) -> None:
    """Follow the gallery's changes, and ask a doubtful model again."""
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
