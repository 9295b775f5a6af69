"""Engines of the shared bundle, built once, and bundles with other graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from xclip_deploy import Bundle, build_engines
from xclip_deploy.export.tensorrt import (
    BatchRange,
    BuildResult,
    EngineShapes,
    TensorRT,
    load_tensorrt,
)
from xclip_deploy.runtime.files import sha256_of
from xclip_deploy.runtime.manifest import FileRecord, Graph, GraphSpec, Manifest, Precision
from xclip_deploy.runtime.progress import Progress


@pytest.fixture(scope="session")
def trt() -> Any:
    """TensorRT-RTX's module."""
    return pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed on this platform"
    )


@pytest.fixture(scope="session")
def rtx(trt: Any) -> TensorRT:
    return load_tensorrt("rtx")


@pytest.fixture(scope="session")
def small_shapes() -> EngineShapes:
    """Ranges whose engines build fast."""
    return EngineShapes(
        videos=BatchRange(1, 2, 4),
        texts=BatchRange(1, 2, 4),
        scored_texts=BatchRange(1, 2, 4),
        scored_videos=BatchRange(1, 4, 8),
    )


@pytest.fixture(scope="session")
def build_steps() -> list[Progress]:
    """What ``built`` reported while it was built."""
    return []


@pytest.fixture(scope="session")
def built(
    trt: Any,
    bundle_path: Path,
    small_shapes: EngineShapes,
    build_steps: list[Progress],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BuildResult]:
    """FP16 engines in a bundle of their own. Not to be changed."""
    path = tmp_path_factory.mktemp("engines") / "bundle"
    shutil.copytree(bundle_path, path)
    yield build_engines(path, flavour="rtx", shapes=small_shapes, progress=build_steps.append)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def built_copy(built: BuildResult, tmp_path: Path) -> Iterator[Path]:
    """A bundle with those engines that a test may damage."""
    path = tmp_path / "built-copy"
    shutil.copytree(built.path.parent.parent, path)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def put_graph() -> Callable[[Path, Graph, onnx.ModelProto], Path]:
    """Put another FP16 graph into a bundle, with the manifest to go with it."""
    return lambda bundle, graph, model: replace_graph(bundle, graph, model, Precision.FP16)


@pytest.fixture
def trivial_bundle(trt: Any, bundle_copy: Path) -> Path:
    """A bundle whose FP32 graphs have the right inputs and outputs and next to nothing within.

    Their engines build in a moment, for tests of what is done with engines.
    """
    specs = Bundle.open(bundle_copy).manifest.graphs[Precision.FP32]
    for graph, spec in specs.items():
        replace_graph(bundle_copy, graph, trivial_graph(spec), Precision.FP32)
    return bundle_copy


def replace_graph(bundle: Path, graph: Graph, model: onnx.ModelProto, precision: Precision) -> Path:
    name = f"{precision.value}/{graph.value}.onnx"
    file = bundle / name
    onnx.save(model, str(file))
    content = json.loads((bundle / "manifest.json").read_text())
    del content["checksum"]
    original = Manifest.model_validate(content)
    record = FileRecord(sha256=sha256_of(file), size_bytes=file.stat().st_size)
    files = {**original.files, name: record}
    changed = original.model_copy(update={"files": files})
    (bundle / "manifest.json").write_bytes(changed.to_json())
    return file


def trivial_graph(spec: GraphSpec) -> onnx.ModelProto:
    """Zeros in the shapes of the outputs, plus the sum of every input."""
    kinds = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "uint8": TensorProto.UINT8}
    nodes, sums, sizes = [], [], {}
    for tensor in spec.inputs:
        name = tensor.name
        nodes.append(helper.make_node("Cast", [name], [f"{name}_real"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceSum", [f"{name}_real"], [f"{name}_sum"], keepdims=0))
        sums.append(f"{name}_sum")
        for axis, size in enumerate(tensor.shape):
            if isinstance(size, str) and size not in sizes:
                sizes[size] = f"size_of_{size}"
                shape = helper.make_node("Shape", [name], [sizes[size]], start=axis, end=axis + 1)
                nodes.append(shape)
    nodes.append(helper.make_node("Sum", sums, ["total"]))
    constants = []
    for tensor in spec.outputs:
        parts = []
        for axis, size in enumerate(tensor.shape):
            if isinstance(size, int):
                constants.append(
                    helper.make_tensor(f"{tensor.name}_{axis}", TensorProto.INT64, [1], [size])
                )
            parts.append(sizes[size] if isinstance(size, str) else f"{tensor.name}_{axis}")
        nodes.append(helper.make_node("Concat", parts, [f"{tensor.name}_shape"], axis=0))
        nodes.append(helper.make_node("Expand", ["total", f"{tensor.name}_shape"], [tensor.name]))
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, kinds[t.dtype.value], t.shape) for t in side]
        for side in (spec.inputs, spec.outputs)
    )
    graph = helper.make_graph(nodes, "trivial", inputs, outputs, initializer=constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
