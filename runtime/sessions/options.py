"""The options of inference sessions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import MAX_THREADS, as_path, as_whole_number, shown
from xclip_deploy.runtime.sessions.registry import (
    backend_names,
    choices,
    load_backend,
    precision_names,
)

DeviceName = Literal["auto", "cpu", "cuda"]

_NUMBERS = (
    ("threads", 1, MAX_THREADS),
    ("device_memory_bytes", 1, 1 << 62),
    ("gallery_memory_bytes", 1, 1 << 62),
    ("device_id", 0, 1023),
    ("streams", 1, 1024),
)
"""Name, minimum and maximum of every numeric option."""
_FOR_ALL = frozenset(
    {"device", "device_id", "precision", "backend", "resident_gallery", "gallery_memory_bytes"}
)


@dataclass(frozen=True)
class SessionOptions:
    """Options of inference sessions.

    Raises InvalidArgumentError for a value out of range, and for an option that the chosen backend
    does not read.
    """

    device: DeviceName = "auto"
    """Device; ``auto`` takes an NVIDIA GPU where one can be used, else the CPU."""
    precision: str = "auto"
    """Arithmetic: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``tf32``, ``mixed-bf16``
    or ``int8-weights``. ``auto``
    takes FP16 on a GPU. On a CPU it takes mixed BF16 where OpenVINO gains by it, or else FP32. It
    never takes BF16 (engines alone), INT8 (ONNX Runtime on a CPU alone), INT8 weights (OpenVINO
    alone) or TF32 (FP32 graphs on ONNX Runtime's GPU providers). TensorRT's provider has no
    FP32."""
    threads: int | None = None
    """CPU threads of a session of ONNX Runtime or OpenVINO; None: one per core."""
    backend: str = "auto"
    """Library that runs the model. ``onnxruntime``: ONNX Runtime, on CPU or CUDA.
    ``openvino``: OpenVINO on a CPU with BF16. ``tensorrt-provider``: ONNX Runtime with its own
    TensorRT 10, which builds engines as it loads.
    ``tensorrt`` and ``rtx``: the engines of ``xclip-deploy build-trt``. ``auto``: engines that fit
    this machine, else ONNX Runtime, or OpenVINO on a CPU where it is faster."""
    engines: Path | None = None
    """Folder of the engine set for ``tensorrt`` or ``rtx``; None: the bundle's best set that fits
    this machine."""
    device_id: int = 0
    """CUDA's number of the GPU."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """Options of ONNX Runtime's execution provider, by its own names."""
    device_memory_bytes: int | None = None
    """Most GPU memory that engines and their buffers may take, bytes; None: all free memory."""
    streams: int = 2
    """Most runs of one engine, or of an encoder on ONNX Runtime's CUDA provider, at the same time,
    each with its own stream and buffers."""
    cuda_graphs: bool = True
    """Whether repeated runs of one shape are replayed as a CUDA graph: by engines, and by ONNX
    Runtime's CUDA provider for up to 32 texts and for videos of less than 34 MB in a run."""
    fused_graphs: bool = True
    """Whether ONNX Runtime's CUDA provider runs the encoders in its fused operators, where the
    bundle has them so."""
    resident_gallery: bool | Literal["auto"] = "auto"
    """Whether the gallery stays in GPU memory between searches. ``auto``: where the model runs on a
    GPU and the gallery fits; else searches run without it, and their reason says why. True: also
    beside a model on the CPU, and a failure is an error."""
    gallery_memory_bytes: int | None = None
    """Most GPU memory that a resident gallery may take, bytes; None: 80 % of what is free."""

    def __post_init__(self) -> None:
        _check_choice("device", self.device, get_args(DeviceName))
        _check_choice("backend", self.backend, ("auto", *backend_names()))
        self._check_precision()
        for name, least, most in _NUMBERS:
            value = getattr(self, name)
            if value is not None or name in ("device_id", "streams"):
                object.__setattr__(self, name, as_whole_number(name, value, least, most))
        if self.device == "cpu" and self.device_id:
            raise InvalidArgumentError(
                f"device_id is {self.device_id} with device 'cpu'; expected device 'cuda' or 'auto'"
            )
        for name in ("cuda_graphs", "fused_graphs"):
            _check_choice(name, getattr(self, name), (True, False))
        _check_choice("resident_gallery", self.resident_gallery, ("auto", True, False))
        self._check_gallery()
        if self.engines is not None:
            object.__setattr__(self, "engines", as_path("engines", self.engines))
        given = self.provider_options
        if not isinstance(given, Mapping) or not all(
            isinstance(each, str) for pair in given.items() for each in pair
        ):
            raise InvalidArgumentError(
                f"provider_options is {shown(given)}; expected a mapping of texts to texts"
            )
        if self.backend != "auto":
            self._check_backend()
        elif self.engines is not None:
            raise InvalidArgumentError(
                f"engines {self.engines} were given with backend 'auto'; expected backend "
                f"{choices(_readers_of('engines'))}"
            )

    @classmethod
    def of(
        cls, device: object, precision: object, threads: object, session: object
    ) -> SessionOptions:
        """Return ``session``, or the options that the three others make where it is None.

        Raises InvalidArgumentError where both are given.
        """
        if session is None:
            return cls(device=device, precision=precision, threads=threads)  # type: ignore[arg-type]
        if not isinstance(session, SessionOptions):
            raise InvalidArgumentError(f"session is {shown(session)}; expected SessionOptions")
        is_left = [isinstance(each, str) and each == "auto" for each in (device, precision)]
        if not all(is_left) or threads is not None:
            raise InvalidArgumentError(
                f"device {shown(device)}, precision {shown(precision)} and threads "
                f"{shown(threads)} were given beside session; expected them in it alone"
            )
        return session

    def changed(self) -> dict[str, Any]:
        """Return the options that are not at their default, by name."""
        changed = {}
        for each in fields(self):
            value = getattr(self, each.name)
            default = {} if each.name == "provider_options" else each.default
            if value != default:
                changed[each.name] = value
        return changed

    def unread_by(self, backend: str) -> list[str]:
        """Name the options that are not at their default and that a backend does not read."""
        return sorted(self.changed().keys() - _FOR_ALL - load_backend(backend).own_options)

    def _check_gallery(self) -> None:
        if self.device == "cpu" and self.resident_gallery is True:
            raise InvalidArgumentError(
                "resident_gallery is True with device 'cpu'; expected device 'cuda' or 'auto'"
            )
        if self.resident_gallery is False and self.gallery_memory_bytes is not None:
            raise InvalidArgumentError(
                f"gallery_memory_bytes is {self.gallery_memory_bytes} with resident_gallery False; "
                "expected resident_gallery 'auto' or True"
            )

    def _check_precision(self) -> None:
        if not isinstance(self.precision, str) or self.precision != "auto":
            # The named backend alone is imported where it has the precision.
            own = () if self.backend == "auto" else precision_names(self.backend)
            if not isinstance(self.precision, str) or self.precision not in own:
                _check_choice("precision", self.precision, ("auto", *precision_names()))

    def _check_backend(self) -> None:
        backend = load_backend(self.backend)
        if self.device != "auto" and self.device not in backend.arithmetics:
            devices = choices(("auto", *backend.arithmetics))
            raise InvalidArgumentError(
                f"backend {self.backend!r} does not run on {self.device}: expected device {devices}"
            )
        for name in self.unread_by(self.backend):
            raise InvalidArgumentError(
                f"{name} was given with backend {self.backend!r}, which does not read it; "
                f"expected backend {choices(_readers_of(name))}"
            )


def _readers_of(option: str) -> tuple[str, ...]:
    return tuple(name for name in backend_names() if option in load_backend(name).own_options)


def _check_choice(name: str, found: object, expected: tuple[object, ...]) -> None:
    # Types must be equal too: 1 is no truth value here.
    if not any(type(found) is type(value) and found == value for value in expected):
        names = choices(tuple(map(str, expected)))
        said = repr(found)[:200] if isinstance(found, str) else shown(found)
        raise InvalidArgumentError(f"{name} {said}: expected {names}")
