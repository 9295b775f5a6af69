"""Find TensorRT, and keep one logger of it a process."""

from __future__ import annotations

import importlib
import logging
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from xclip_deploy.errors import MissingExtraError
from xclip_deploy.runtime.engine_set import Flavour
from xclip_deploy.runtime.manifest import DType
from xclip_deploy.runtime.presentation import cut

logger = logging.getLogger(__name__)

TENSOR_DTYPES = {
    "FLOAT": DType.FLOAT32,
    "HALF": DType.FLOAT16,
    "INT32": DType.INT32,
    "UINT8": DType.UINT8,
}
"""Name of TensorRT's ``DataType`` -> dtype, for the types that tensors of our graphs have."""
LEAN_MODULE = "tensorrt_lean"
"""Module of TensorRT's lean runtime, which runs version-compatible engines and builds none."""
_KEPT_MESSAGES = 8

_libraries: dict[Flavour, Library] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Library:
    """One TensorRT library, ready to run engines."""

    flavour: Flavour
    module: Any
    version: str
    log: Any
    """Logger of the library, which keeps error messages."""
    is_lean: bool = False
    """Whether it is TensorRT's lean runtime, which runs version-compatible engines alone."""

    @property
    def name(self) -> str:
        """Module and version, for messages."""
        return f"{LEAN_MODULE if self.is_lean else self.flavour.module_name} {self.version}"

    def reasons(self) -> str:
        """Return the last errors that TensorRT logged, in one line. Its calls give no reasons."""
        return (
            " | ".join(cut(each, 250) for each in list(self.log.messages)[-3:])
            or "it gave no reason"
        )

    def forget_reasons(self) -> None:
        """Forget logged errors. Called before an attempt, so that old reasons are not its own."""
        self.log.messages.clear()


def load_library(flavour: Flavour) -> Library:
    """Load the library of a flavour, or the lean runtime where that alone is installed.

    Raises MissingExtraError where neither is.
    """
    trt, is_lean = _import(flavour)
    with _lock:
        library = _libraries.get(flavour)
        if library is None or (library.module, library.is_lean) != (trt, is_lean):
            library = Library(flavour, trt, str(trt.__version__), _make_log(trt), is_lean)
            _libraries[flavour] = library
        return library


def _import(flavour: Flavour) -> tuple[Any, bool]:
    """Import the library of a flavour, and return whether it is the lean runtime."""
    try:
        return importlib.import_module(flavour.module_name), False
    except ImportError as error:
        # The lean runtime has names of its own for the same classes.
        if flavour is Flavour.TENSORRT:
            with suppress(ImportError):
                return importlib.import_module(LEAN_MODULE), True
        raise MissingExtraError(
            flavour.module_name, flavour.value, "Running TensorRT engines"
        ) from error


def _make_log(trt: Any) -> Any:  # noqa: ANN401 - a module without type hints
    class Log(trt.ILogger):  # type: ignore[misc]  # the base is not typed
        """Logger that keeps errors for messages and passes everything to Python's logging."""

        def __init__(self) -> None:
            super().__init__()
            self.messages: deque[str] = deque(maxlen=_KEPT_MESSAGES)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            line = " ".join(message.split())
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.messages.append(line)
                logger.debug("TensorRT error: %s", line)
            elif severity == trt.ILogger.WARNING:
                logger.info("TensorRT: %s", line)
            else:
                logger.debug("TensorRT: %s", line)

    return Log()
