"""Open an encoder on the stand-in libraries, run it, and print what each run called, as JSON.

python -m stand_in_libraries.child BUNDLE GRAPH fused|plain LOG
"""

from __future__ import annotations

import ctypes
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import runtime as real

LIBRARY = ctypes.CDLL("libcudart.so.13")
OK = real.cudaError_t.cudaSuccess


def bindings() -> types.ModuleType:
    """CUDA's Python bindings, which would ask the driver, on the stand-in."""
    module: Any = types.ModuleType("cuda.bindings.runtime")
    for name in (
        "cudaMemcpyKind",
        "cudaHostAllocDefault",
        "cudaStreamNonBlocking",
        "cudaGetErrorString",
    ):
        setattr(module, name, getattr(real, name))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t

    def made(function: str, *arguments: Any) -> tuple[Any, Any]:
        found = pointer()
        status = getattr(LIBRARY, function)(ctypes.byref(found), *arguments)
        return real.cudaError_t(status), found.value

    def done(function: str, *arguments: Any) -> tuple[Any]:
        getattr(LIBRARY, function)(*arguments)
        return (OK,)

    module.cudaDriverGetVersion = lambda: (OK, 13000)
    module.cudaRuntimeGetVersion = lambda: (OK, 13000)
    module.cudaGetDeviceCount = lambda: (OK, 1)
    module.cudaSetDevice = lambda _: (OK,)
    module.cudaMalloc = lambda n: made("cudaMalloc", size(n))
    module.cudaHostAlloc = lambda n, flags: made("cudaHostAlloc", size(n), flags)
    module.cudaFree = lambda a: done("cudaFree", pointer(a))
    module.cudaFreeHost = lambda a: done("cudaFreeHost", pointer(a))
    module.cudaStreamCreateWithFlags = lambda flags: made("cudaStreamCreateWithFlags", flags)
    module.cudaStreamDestroy = lambda _: (OK,)
    module.cudaStreamSynchronize = lambda s: done("cudaStreamSynchronize", pointer(s))
    module.cudaMemcpyAsync = lambda to, source, n, kind, s: done(
        "cudaMemcpyAsync", pointer(to), pointer(source), size(n), int(kind), pointer(s)
    )
    module.cudaMemsetAsync = lambda to, value, n, s: done(
        "cudaMemsetAsync", pointer(to), value, size(n), pointer(s)
    )
    stand_in: types.ModuleType = module
    return stand_in


def main() -> None:
    """Run the graph four times at one size, and then at another."""
    path, name, form, log = sys.argv[1:]
    sys.modules["cuda.bindings.runtime"] = bindings()
    from xclip_deploy import Bundle
    from xclip_deploy.errors import SessionError
    from xclip_deploy.runtime.manifest import Graph, VideoPart
    from xclip_deploy.runtime.sessions import Placement
    from xclip_deploy.runtime.sessions.device_lanes import DeviceLink
    from xclip_deploy.runtime.sessions.onnx_session import FP16, BoundSession

    graph = Graph(name) if name in set(Graph) else VideoPart(name)
    bundle = Bundle.open(path)
    reports: list[str] = []
    try:
        session = BoundSession(
            bundle,
            graph,
            Placement("onnxruntime", "cuda", FP16),
            link=DeviceLink.open(0),
            report=reports.append,
            is_fused=form == "fused",
            replays=True,
        )
    except SessionError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        return
    specs = bundle.manifest.spec(graph, FP16.graphs).inputs
    for size in (1, 1, 1, 1, 40):
        LIBRARY.stand_in_say(b"run")
        feeds = {
            spec.name: np.ones((size, *map(int, spec.shape[1:])), spec.dtype.value)
            for spec in specs
        }
        try:
            session.run(feeds)
        except SessionError as error:
            session.close()
            print(json.dumps({"error": str(error), "kind": type(error).__name__, "size": size}))
            return
    LIBRARY.stand_in_say(b"run")
    session.close()
    _, *runs = Path(log).read_text(encoding="utf-8").split("run\n")
    calls = [each.split("\n")[:-1] for each in runs[:-1]]
    print(json.dumps({"runs": calls, "reports": reports}))


if __name__ == "__main__":
    main()
