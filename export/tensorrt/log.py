"""Keep TensorRT's messages, for the reasons of errors and for its memory figures.

TensorRT reports failure by returning None, False or -1. It tells the reason to its logger alone.
"""

from __future__ import annotations

import logging
from typing import Any

from xclip_deploy.errors import EngineBuildError
from xclip_deploy.export.tensorrt.flavours import TensorRT
from xclip_deploy.runtime.presentation import cut

logger = logging.getLogger(__name__)

_MAX_REASONS = 3
_MEMORY_WORDS = ("Total Activation Memory:", "Total Weights Memory:")

_logs: dict[str, Any] = {}


def log_of(library: TensorRT) -> Any:  # noqa: ANN401 - a class of TensorRT's
    """Return the process's logger for a flavour. TensorRT keeps the first that it is given.

    ``errors`` and ``memory`` of the logger list the messages since ``clear()``.
    """
    if library.flavour.value not in _logs:
        _logs[library.flavour.value] = _make_log(library.module)
    return _logs[library.flavour.value]


def failure(library: TensorRT, what: str, log: Any) -> EngineBuildError:  # noqa: ANN401
    """Return the error for a failed call of TensorRT, with the reasons that it logged."""
    reasons = (
        " | ".join(cut(each, 250) for each in log.errors[-_MAX_REASONS:]) or "it gave no reason"
    )
    return EngineBuildError(f"{library.name} {what}: {reasons}")


def _make_log(trt: Any) -> Any:  # noqa: ANN401 - a module without type hints
    class Log(trt.ILogger):  # type: ignore[misc]  # the base is not typed
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.memory: list[str] = []

        def clear(self) -> None:
            self.errors.clear()
            self.memory.clear()

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            # TensorRT's own threads call this too, so it only appends.
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.WARNING:
                logger.info("TensorRT: %s", message)
            else:
                if message.startswith(_MEMORY_WORDS):
                    self.memory.append(message)
                logger.debug("TensorRT: %s", message)

    return Log()
