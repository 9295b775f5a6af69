"""Choose the backend, device and arithmetic for a bundle, and say why."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from xclip_deploy.errors import SessionError, XclipDeployError
from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.presentation import listed
from xclip_deploy.runtime.sessions.backend import Backend, GraphLoader, Refusal
from xclip_deploy.runtime.sessions.measured_choice import MeasuredChoice, read_choice
from xclip_deploy.runtime.sessions.options import SessionOptions
from xclip_deploy.runtime.sessions.registry import Device, backend_names, choices, load_backend

logger = logging.getLogger(__name__)

_Candidate = tuple[Backend, Device]


def place(options: SessionOptions, bundle: Bundle) -> GraphLoader:
    """Choose backend, device and arithmetic for a bundle.

    Explicit options are taken or refused; only ``auto`` leaves a choice. Backends on the GPU are
    tried in the order that ``bench`` measured on this machine. Without a measurement, engines of
    the bundle that fit come before ONNX Runtime. The CPU comes last. The placement's reason tells
    which were passed over and why.

    Raises SessionError (DriverError, EngineError) where an explicit option cannot be had here, and
    MissingExtraError where no library is installed that could run the bundle.
    """
    is_free = options.backend == "auto" and options.precision == "auto"
    asks_for_gpu = is_free and options.device != "cpu" and nvidia_driver.why_no_gpu() is None
    choice = read_choice(bundle, options.device_id) if asks_for_gpu else None
    candidates = list(_candidates(options, choice))
    if not candidates:
        raise _nothing_computes(options)
    reasons: list[str] = []  # the last one first: it is nearest to the choice
    beside: list[str] = []  # those of other backends on a CPU
    last: XclipDeployError | None = None
    for backend, device in candidates:
        if is_free and not backend.may_gain(bundle, device):
            continue
        # Open a backend that was named: its own error says more than a reason to pass it over.
        is_named = options.backend != "auto" and len(candidates) == 1
        last = None
        try:
            reason = None if is_named else backend.why_not(bundle, device)
            if reason is None:
                pinned = options
                if device != "cpu" and choice is not None:
                    pinned = _with_engines(options, backend.name, choice, bundle)
                loader = backend.open(bundle, pinned, device)
                if device != "cpu" and is_free:
                    loader.found += _words_on_choice(backend, choice)
                return _explained(loader, options, reasons, beside)
        except XclipDeployError as error:
            last = error
            reason = str(error)
        if device == "cpu":
            beside.append(reason)
        elif reason not in reasons:
            reasons.insert(0, reason)
    asked = _asked(options)
    if last is not None and (len(candidates) == 1 or not asked):
        raise last
    what = " and ".join(asked) or "a session"
    raise SessionError(f"{what} was asked for, but {listed([*reasons, *beside])}")


def offers(bundle: Bundle, threads: int | None = None) -> list[SessionOptions | Refusal]:
    """List every way of running a bundle, CPU first, or the reason why this machine lacks it.

    Opening a session may still fail. ``threads``: threads of all sessions that read the option.
    """
    found = [
        replace(offer, threads=threads)
        if isinstance(offer, SessionOptions) and "threads" in backend.own_options
        else offer
        for backend in _backends()
        for offer in backend.offers(bundle)
    ]
    return sorted(found, key=lambda offer: _options_of(offer).device != "cpu")


def _options_of(offer: SessionOptions | Refusal) -> SessionOptions:
    return offer.options if isinstance(offer, Refusal) else offer


def _backends() -> Iterator[Backend]:
    for name in backend_names():
        yield cast("Backend", load_backend(name))


def _with_engines(
    options: SessionOptions, backend: str, choice: MeasuredChoice, bundle: Bundle
) -> SessionOptions:
    """Return the options with the engine set that was measured as a backend's fastest."""
    folder = choice.engines_of(backend, bundle)
    if folder is None:
        return options
    unread = options.unread_by(backend)
    read = {name: value for name, value in options.changed().items() if name not in unread}
    return SessionOptions(**read | {"backend": backend, "engines": folder})


def _words_on_choice(backend: Backend, choice: MeasuredChoice | None) -> str:
    """Say whether a measurement or the rank chose a backend on a GPU."""
    if choice is not None:
        return f", {choice.words_on(backend.name)}"
    is_first = backend.auto_rank["cuda"] == 0
    return "" if is_first else ", first by rank: xclip-deploy bench measures which is faster"


def _candidates(
    options: SessionOptions, choice: MeasuredChoice | None = None
) -> Iterator[_Candidate]:
    """Give the backends and devices to try, in order: as measured, or else by rank."""
    if options.backend != "auto":
        backend = cast("Backend", load_backend(options.backend))
        pairs = [(backend, device) for device in backend.arithmetics]
        # Try a GPU before a CPU, whatever the backend's own order.
        pairs.sort(key=lambda pair: pair[1] == "cpu")
    else:
        ranked = [
            (backend.auto_rank[device], backend, device)
            for backend in _backends()
            for device in backend.auto_rank
        ]
        place_of = {backend.name: 0 for _, backend, _ in ranked}
        if choice is not None:
            place_of = {name: choice.position(name) for name in place_of}
        ranked.sort(key=lambda item: (item[2] == "cpu", place_of[item[1].name], -item[0]))
        pairs = [(backend, device) for _, backend, device in ranked]
    for backend, device in pairs:
        computes = {arithmetic.name for arithmetic in backend.arithmetics[device]}
        if options.device in ("auto", device) and options.precision in ("auto", *computes):
            yield backend, device


def _asked(options: SessionOptions) -> list[str]:
    """List the options that were asked for by name; none where all were ``auto``."""
    kinds = ("backend", "device", "precision")
    chosen = {kind: str(getattr(options, kind)) for kind in kinds}
    return [f"{kind} {name}" for kind, name in chosen.items() if name != "auto"]


def _explained(
    loader: GraphLoader, options: SessionOptions, passed_over: list[str], beside: list[str]
) -> GraphLoader:
    """Complete the reason of a loader's placement.

    ``passed_over``, ``beside``: reasons against other backends, on GPUs and on the CPU.
    """
    asked = _asked(options)
    # "cpu was asked for" needs no kind: the name makes it clear.
    start = f"{asked[0].split()[1]} was asked for" if asked else "auto"
    parts = [loader.found] if loader.found else []
    parts += [*passed_over, *beside]
    placement = loader.placement
    has_choice = options.device == "auto" and placement.device == "cpu"
    if passed_over and has_choice and nvidia_driver.why_no_gpu() is None:
        logger.warning(
            "the CPU runs the model although a GPU is there: %s; device='cpu' chooses it",
            "; ".join(passed_over),
        )
    unread = options.unread_by(placement.backend)
    if unread:
        note = f"{', '.join(unread)} not read by {placement.backend}"
        logger.warning("%s", note)
        parts.append(note)
    reason = f"{start}: {'; '.join(parts)}" if parts else start
    loader.placement = replace(placement, reason=reason)
    return loader


def _nothing_computes(options: SessionOptions) -> SessionError:
    """Explain that no backend computes in a precision where it was asked for."""
    runs = {
        (backend.name, device)
        for backend in _backends()
        for device, arithmetics in backend.arithmetics.items()
        if options.precision in {arithmetic.name for arithmetic in arithmetics}
    }
    names = choices(tuple(repr(name) for name in sorted({name for name, _ in runs})))
    devices = choices(tuple(repr(device) for device in sorted({device for _, device in runs})))
    where = "" if options.device == "auto" else f" on {options.device}"
    who = "no backend" if options.backend == "auto" else options.backend
    verb = "runs" if options.backend == "auto" else "does not run"
    return SessionError(
        f"precision {options.precision} was asked for, which {who} {verb}{where}; "
        f"use backend {names} on device {devices}"
    )
