"""The state of a service: whether it lives, is ready, or is shutting down.

It is ready once all three graphs have answered a real request and while the gallery can be read.
What a client sends changes nothing of that. Only an error of a session makes the service doubt its
model; it then asks the model again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.failures import FailedShard
from xclip_deploy.service.errors import Refusal

if TYPE_CHECKING:
    from xclip_deploy.runtime.deployed_model import DeployedModel
    from xclip_deploy.runtime.opened import Opened

_LOG = logging.getLogger(__name__)
_STOPPED_S = 2.0
"""Time without a piece of a response after which its reader counts as stopped."""
_PROBE_TEXT = "a person walks"


@dataclass(eq=False)
class Running:
    """A request that is being answered."""

    has_begun: bool = False
    """Whether its response has begun."""
    moved: float = field(default_factory=time.monotonic)
    """Time when a piece of its response last went out, in seconds of a steady clock."""

    def move(self) -> None:
        """Note that a piece of the response went out."""
        self.moved = time.monotonic()


class Health:
    """State of a service, as the load balancer and its own parts ask for it."""

    def __init__(self) -> None:
        """Begin as neither ready nor shutting down."""
        self.stopping = asyncio.Event()
        """Set when the service begins to shut down; streams end then."""
        self.is_stopping = False
        """The same, for threads."""
        self.running: set[Running] = set()
        """Requests that are being answered, apart from those for health."""
        self.is_doubtful = False
        """Whether the model must answer again, since a session failed."""
        self.lost_shards: tuple[FailedShard, ...] = ()
        """Shards of the gallery that did not answer the last look."""
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
            kind = "ShardError" if part == "search" else "Unready"
            raise Refusal(503, kind, f"the {part} is not ready: {fault}")

    def set_fault(self, part: str, fault: str | None) -> None:
        """Set or clear what is wrong with ``model``, ``gallery`` or ``search``."""
        if fault is not None:
            if part not in self._faults:
                _LOG.error("the %s is not ready: %s", part, fault)
            self._faults[part] = fault
        elif self._faults.pop(part, None) is not None:
            _LOG.info("the %s is ready", part)

    def set_lost_shards(self, lost: Sequence[FailedShard], count: int, allow_partial: bool) -> None:
        """Set the shards that do not answer, of ``count``.

        The search is ready without them if ``allow_partial`` and another one answers.
        """
        known = {shard.number for shard in self.lost_shards}
        for shard in lost:
            if shard.number not in known:
                _LOG.warning(
                    "shard %d on %s does not answer: %s", shard.number, shard.node, shard.reason
                )
        for number in sorted(known - {shard.number for shard in lost}):
            _LOG.info("shard %d answers again", number)
        self.lost_shards = tuple(lost)
        fault = None
        if lost and not (allow_partial and len(lost) < count):
            names = ", ".join(str(shard.number) for shard in lost)
            fault = (
                f"of {count} shards, {names} did not answer; shard {lost[0].number} on "
                f"{lost[0].node}: {lost[0].reason}"
            )
        self.set_fault("search", fault)

    def note(self, error: BaseException) -> None:
        """Doubt the model after an error of a session."""
        if isinstance(error, SessionError):
            self.is_doubtful = True

    def is_busy(self) -> bool:
        """Return whether a request is worth waiting for at the end.

        A browser's player stops reading once it has enough, and holds its response for hours.
        """
        oldest = time.monotonic() - _STOPPED_S
        return any(not request.has_begun or request.moved > oldest for request in self.running)

    def begin_shutdown(self) -> None:
        """Turn unready for good, and let streams end. Runs in the event loop."""
        self.is_stopping = True
        self.stopping.set()


def probe(retriever: Opened, model: DeployedModel | None = None) -> None:
    """Run a real request through all three graphs. Raises SessionError.

    A text and a black video are embedded and scored, and the numbers must be finite. ``model``:
    the one that embeds texts and scores for searches; None for the retriever's.
    """
    asked = model or retriever.model
    side = retriever.reading.image_size
    texts = asked.encode_texts([_PROBE_TEXT])
    videos = retriever.encode_videos([np.zeros((1, side, side, 3), np.uint8)])
    logits = asked.score(texts, videos).logits
    if logits.shape != (1, 1) or not np.isfinite(logits).all():
        raise SessionError(
            f"the model scored a text and a video with {logits.tolist()}; expected one number"
        )
