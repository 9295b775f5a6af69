"""Find out whether the libraries of an ONNX Runtime provider load here.

``get_available_providers`` lists the providers that a build of ONNX Runtime has, whether or not
their libraries load. Without those, ONNX Runtime runs on the CPU instead. This module reads the
names of the libraries from the provider's own file and loads each. The provider itself stays
unloaded: it may be loaded by ONNX Runtime alone, which first gives it its host.

NVIDIA's wheels (``nvidia-cublas``, ``nvidia-cudnn-cu13``) lie where the linker does not search. A
library that is loaded already serves the provider too, so that they are loaded from there.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
import sys
from pathlib import Path
from typing import BinaryIO

from xclip_deploy.runtime import nvidia_driver

_FILES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}
_CUDNN = "libcudnn.so.9"
"""Library that newer CUDA providers are not linked to: they open it when an operator needs it.
Attention and the norms of features do, so that no encoder runs without it."""
# Numbers of the ELF format, for 64 bits.
_LOADED, _DYNAMIC = 1, 2
_NEEDED, _STRINGS, _STRINGS_SIZE, _PATH, _LATER_PATH = 1, 5, 10, 15, 29


def missing_library(provider: str) -> str | None:
    """Say which library of a provider does not load here, in one line; None where all load.

    Also None where this cannot be found out: opening a session tells then.
    """
    import onnxruntime

    needed_cuda = str(getattr(onnxruntime, "cuda_version", "") or "")
    here = nvidia_driver.driver_cuda_version()
    if here and needed_cuda and int(here.split(".")[0]) < int(needed_cuda.split(".")[0]):
        return (
            f"this onnxruntime needs CUDA {needed_cuda}, the NVIDIA driver runs {here}; "
            "update the driver"
        )
    folder = Path(str(onnxruntime.__file__)).parent / "capi"
    fault = _fault(folder / _FILES[provider]) if provider in _FILES else None
    if fault is None:
        return None
    remedy = "install TensorRT 10" if provider.startswith("Tensorrt") else "install CUDA and cuDNN"
    return f"ONNX Runtime's {provider} cannot be loaded ({fault}); {remedy}"


_loaded: set[Path] = set()
"""Providers whose libraries were loaded. Faults are not kept: a caller may load what is missing."""


def _fault(file: Path) -> str | None:
    """Return the linker's reason why a library that ``file`` needs does not load, or None."""
    if file in _loaded:
        return None
    names, folders = needed_libraries(file)
    if names and file.name == _FILES["CUDAExecutionProvider"]:
        names = [*names, _CUDNN]
    for name in names:
        if any((folder / name).is_file() for folder in (file.parent, *folders)):
            continue  # the linker finds it by the provider's own path
        try:
            _load(name)
        except OSError as error:
            return " ".join(str(error).split())
    _loaded.add(file)
    return None


def _load(name: str) -> None:
    """Load a library, from NVIDIA's wheels where the linker finds none. Raises OSError."""
    try:
        ctypes.CDLL(name)
    except OSError:
        spec = importlib.util.find_spec("nvidia")
        folders = [] if spec is None else spec.submodule_search_locations or []
        # CUDA 12 has a folder for each library (nvidia/cublas), CUDA 13 one for all (nvidia/cu13).
        found = [file for folder in folders for file in Path(folder).glob(f"*/lib/{name}")]
        if not found:
            raise
        ctypes.CDLL(str(found[0]))


def needed_libraries(file: Path) -> tuple[list[str], list[Path]]:
    """List the libraries that ``file`` is linked to, and its own folders to search them in.

    Both are empty for files other than shared libraries of Linux.
    """
    if not sys.platform.startswith("linux"):
        return [], []
    try:
        with file.open("rb") as stream:
            names, paths = _read_dynamic(stream)
    except (OSError, ValueError, KeyError, struct.error):
        return [], []
    folders = [path for joined in paths for path in joined.split(":") if path]
    return names, [Path(path.replace("$ORIGIN", str(file.parent))) for path in folders]


def _read_dynamic(stream: BinaryIO) -> tuple[list[str], list[str]]:
    """Read DT_NEEDED and DT_RUNPATH (or DT_RPATH) of a 64-bit, little-endian ELF file.

    Raises ValueError, KeyError or struct.error for other files.
    """
    header = stream.read(64)
    if header[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit, little-endian ELF file")
    (table,) = struct.unpack_from("<Q", header, 32)
    entry_size, count = struct.unpack_from("<HH", header, 54)
    segments: list[tuple[int, int, int]] = []  # address, offset and size of loaded ones
    dynamic: tuple[int, int] | None = None
    for number in range(count):
        stream.seek(table + number * entry_size)
        kind, _, offset, address, _, size = struct.unpack("<IIQQQQ", stream.read(40))
        if kind == _LOADED:
            segments.append((address, offset, size))
        elif kind == _DYNAMIC:
            dynamic = offset, size
    if dynamic is None:
        return [], []
    stream.seek(dynamic[0])
    entries = list(struct.iter_unpack("<QQ", stream.read(dynamic[1] // 16 * 16)))
    values = dict(entries)
    places = [
        offset + values[_STRINGS] - address
        for address, offset, size in segments
        if address <= values[_STRINGS] < address + size
    ]
    stream.seek(places[0] if places else values[_STRINGS])
    strings = stream.read(values[_STRINGS_SIZE])

    def texts(*tags: int) -> list[str]:
        starts = [value for tag, value in entries if tag in tags]
        return [strings[start : strings.index(b"\0", start)].decode() for start in starts]

    return texts(_NEEDED), texts(_PATH, _LATER_PATH)
