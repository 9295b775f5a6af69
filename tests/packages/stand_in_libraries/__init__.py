"""CUDA's libraries without a GPU, for ONNX Runtime's real CUDA provider in a process of its own.

The provider loads, places the nodes of a graph and captures CUDA graphs as it does on an H100.
Kernels compute nothing: results mean nothing. What is learned is which calls a run makes.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("cudart.c")
_CUDNN = [
    "cudnnCreate",
    "cudnnDestroy",
    "cudnnSetStream",
    "cudnnGetVersion",
    "cudnnGetErrorString",
    "cudnnCreateTensorDescriptor",
    "cudnnSetTensorNdDescriptor",
    "cudnnDestroyTensorDescriptor",
    "cudnnCreateReduceTensorDescriptor",
    "cudnnSetReduceTensorDescriptor",
    "cudnnDestroyReduceTensorDescriptor",
    "cudnnGetReductionIndicesSize",
    "cudnnGetReductionWorkspaceSize",
    "cudnnReduceTensor",
]
"""Functions of cuDNN for sums over an axis. The provider looks them up by name."""


def provider() -> Path | None:
    """The library of ONNX Runtime's CUDA provider, if this build has one."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    return path if path.is_file() else None


def headers() -> Path | None:
    """Triton's copy of CUDA's headers, if it is installed."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "backends" / "nvidia" / "include"
    return path if (path / "cuda_runtime_api.h").is_file() else None


def why_not() -> str | None:
    """Why the stand-in cannot be built here."""
    if provider() is None:
        return "this onnxruntime has no CUDA provider"
    if headers() is None:
        return "triton is not installed, which has CUDA's headers"
    missing = [tool for tool in ("gcc", "nm", "readelf") if shutil.which(tool) is None]
    return f"{', '.join(missing)} is not installed" if missing else None


def build(folder: Path) -> None:
    """Write the libraries that the provider asks for."""
    found = provider()
    assert found is not None
    listing = _run("nm", "-D", "--undefined-only", str(found))
    needed = re.findall(r"\[(libcu\S+)\]", _run("readelf", "-d", str(found)))
    wanted: dict[str, list[str]] = {library: [] for library in needed if library != "libcuda.so.1"}
    for name, library in re.findall(r" U (\w+)@(lib(?:cu)\S+)", listing):
        wanted[library].append(name)
    source = _SOURCE.read_text(encoding="utf-8")
    (runtime,) = (library for library in wanted if library.startswith("libcudart"))
    rest = [name for name in wanted[runtime] if not re.search(rf"\b{name}\(", source)]
    # What no test calls answers with success.
    _compile(folder, runtime, source + _answering(rest))
    for library in wanted:
        if library != runtime:
            _compile(folder, library, _handles(wanted[library]))
    _compile(folder, "libcuda.so.1", "int cuTensorMapEncodeTiled() { return 0; }\n")
    _compile(folder, "libcudnn.so.9", _handles(_CUDNN))


def _answering(names: list[str]) -> str:
    lines = (f".globl {n}\\n.type {n},@function\\n{n}: xor %eax,%eax\\nret\\n" for n in names)
    return "".join(f'\n__asm__("{line}");' for line in lines)


def _handles(names: list[str]) -> str:
    """Functions that do nothing: those that create something answer with memory of zeros."""
    made = (
        f"int {name}(void **handle) {{ *handle = calloc(1, 4096); return 0; }}"
        if re.search("Create|Init$", name)
        else f"long {name}() {{ return {91500 if name.endswith('Version') else 0}; }}"
        for name in names
    )
    return "#include <stdlib.h>\n" + "\n".join(made) + "\n"


def _compile(folder: Path, library: str, source: str) -> None:
    file, versions = folder / f"{library}.c", folder / f"{library}.map"
    file.write_text(source, encoding="utf-8")
    versions.write_text(f"{library} {{ global: *; }};\n", encoding="utf-8")
    named = [f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"]
    include = f"-I{headers()}"
    _run("gcc", "-w", "-shared", "-fPIC", include, *named, "-o", str(folder / library), str(file))


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout
