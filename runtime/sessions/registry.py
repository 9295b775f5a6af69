"""The registry of backends, by name.

A backend is one module and one registration. Options, placement, ``bench``, ``verify`` and the
command line read this registry and name no backend themselves.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.manifest import Precision, Tolerance

Device = Literal["cpu", "cuda"]

_BUILT_IN = {
    "onnxruntime": "xclip_deploy.runtime.sessions.onnx_runtime:OnnxRuntime",
    "openvino": "xclip_deploy.runtime.sessions.openvino.backend:OpenVino",
    "tensorrt-provider": "xclip_deploy.runtime.sessions.onnx_runtime:TensorRTProvider",
    "tensorrt": "xclip_deploy.runtime.sessions.native.backend:TensorRTEngines",
    "rtx": "xclip_deploy.runtime.sessions.native.backend:RtxEngines",
}
_targets = dict(_BUILT_IN)
_loaded: dict[str, RegisteredBackend] = {}


@dataclass(frozen=True)
class Arithmetic:
    """Arithmetic of a session."""

    name: str
    """Name that ``SessionOptions.precision`` takes."""
    graphs: Precision
    """Precision of the bundle's graphs that it runs. BF16 arithmetic, say, can run FP32 graphs."""
    is_automatic: bool = True
    """Whether ``auto`` may choose it."""
    tolerance: Tolerance | None = None
    """Tolerance for ``verify``; None: that of the manifest for ``graphs``."""


class RegisteredBackend(Protocol):
    """The part of a backend that needs no bundle; see ``Backend`` for the whole."""

    name: str
    summary: str
    """A few words for ``--help``."""
    arithmetics: Mapping[Device, tuple[Arithmetic, ...]]
    """Arithmetics on every device that it runs on, preferred first."""
    own_options: frozenset[str]
    """Fields of ``SessionOptions`` that it reads, beside those that every backend reads."""


def register(name: str, target: str) -> None:
    """Register a backend.

    ``target``: ``module:class`` of a :class:`Backend`, imported on first use. Processes of
    ``bench`` import it too. Raises InvalidArgumentError for a name that is taken, and for a
    target that no other process can import.
    """
    module, _, attribute = target.partition(":")
    if not module or not attribute or module == "__main__":
        raise InvalidArgumentError(
            f"backend {name!r}: target {target!r}; expected 'module:class' of a module that other "
            "processes can import"
        )
    if _targets.setdefault(name, target) != target:
        raise InvalidArgumentError(f"a backend {name!r} is registered already: {_targets[name]}")


def unregister(name: str) -> None:
    """Forget a registered backend. Those of the package stay."""
    if name not in _BUILT_IN:
        _targets.pop(name, None)
        _loaded.pop(name, None)


def registrations() -> dict[str, str]:
    """Return the names and targets of backends that are not the package's own."""
    return {name: target for name, target in _targets.items() if name not in _BUILT_IN}


def backend_names() -> tuple[str, ...]:
    """Return the names of all backends."""
    return tuple(_targets)


def load_backend(name: str) -> RegisteredBackend:
    """Import a backend.

    Raises InvalidArgumentError for a name that none has, and for one that cannot be imported.
    """
    if name not in _targets:
        raise InvalidArgumentError(f"backend {name!r}: expected {choices(('auto', *_targets))}")
    if name not in _loaded:
        target = _targets[name]
        module, _, attribute = target.partition(":")
        try:
            made = getattr(importlib.import_module(module), attribute)()
        except (ImportError, AttributeError) as error:
            raise InvalidArgumentError(
                f"backend {name!r}: {target} cannot be imported ({error}); expected another target "
                "in register()"
            ) from error
        found = cast("RegisteredBackend", made)
        if found.name != name:
            raise InvalidArgumentError(
                f"backend {name!r}: {target} has the name {found.name!r}; expected the same name"
            )
        _loaded[name] = found
    return _loaded[name]


def precision_names(backend: str | None = None) -> tuple[str, ...]:
    """Return the names of all arithmetics of one backend, or of all backends."""
    names = [
        arithmetic.name
        for backend in map(load_backend, _targets if backend is None else (backend,))
        for arithmetics in backend.arithmetics.values()
        for arithmetic in arithmetics
    ]
    return tuple(dict.fromkeys(names))


def choices(names: tuple[str, ...]) -> str:
    """List names for a message: ``cpu, cuda or auto``."""
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
