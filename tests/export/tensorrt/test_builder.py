"""Real engines, built by TensorRT-RTX on whatever machine this is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from xclip_deploy import Bundle, build_engines
from xclip_deploy.errors import (
    BundleIntegrityError,
    EngineBuildError,
    EngineError,
    InvalidArgumentError,
    VerificationError,
)
from xclip_deploy.export.tensorrt import BatchRange, BuildResult, EngineShapes
from xclip_deploy.export.tensorrt.graph_audit import FUSED_KERNEL
from xclip_deploy.runtime.engine_set import (
    SIDECAR_NAME,
    BuildOptions,
    EngineSet,
    Flavour,
    engine_file,
    engine_sets,
)
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.progress import Progress

pytestmark = pytest.mark.usefixtures("trt")
PutGraph = Callable[[Path, Graph, onnx.ModelProto], Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def unsupported_video_encoder(bundle: Path, put_graph: PutGraph) -> None:
    """Rename two operators of the graph that is built first."""
    model = onnx.load(str(bundle / "fp16" / "video_encoder.onnx"))
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    softmaxes[0].op_type = "Multinomial"  # ONNX has it, TensorRT does not
    softmaxes[1].op_type = "NoSuchOperator"
    put_graph(bundle, Graph.VIDEO_ENCODER, model)


def test_three_engines_and_a_sidecar(built: BuildResult, trt: Any) -> None:
    bundle = Bundle.open(built.path.parent.parent)
    assert built.is_new
    assert built.notes == ()
    assert built.path.name == f"rtx-{trt.__version__}-fp16-portable"
    assert set(contents(built.path)) == {SIDECAR_NAME, *(engine_file(graph) for graph in Graph)}
    sidecar = EngineSet.model_validate_json((built.path / SIDECAR_NAME).read_bytes())
    assert sidecar == built.engine_set
    assert sidecar.flavour is Flavour.RTX
    assert sidecar.directory_name == built.path.name
    assert sidecar.fingerprint == bundle.manifest.fingerprint
    assert (sidecar.gpu, sidecar.self_tested) == (None, False)
    for graph, engine in sidecar.engines.items():
        content = (built.path / engine_file(graph)).read_bytes()
        assert engine.file.size_bytes == len(content) > 10_000
        assert engine.file.sha256 == hashlib.sha256(content).hexdigest()
        assert engine.graph_sha256 == bundle.graph_sha256(graph, Precision.FP16)
        assert engine.build_s > 0
    frames = sidecar.engines[Graph.VIDEO_ENCODER].profiles[0]["frames"]
    assert (frames.min, frames.max) == ((1, 12, 64, 64, 3), (4, 12, 64, 64, 3))
    query, bulk = sidecar.engines[Graph.TEXT_ENCODER].profiles
    assert query["token_ids"].max == (1, 32)
    assert bulk["token_ids"].max == (4, 32)
    assert engine_sets(bundle) == {built.path: sidecar}


def test_proofs_are_in_the_sidecar(built: BuildResult) -> None:
    engines = built.engine_set.engines
    video, text = engines[Graph.VIDEO_ENCODER], engines[Graph.TEXT_ENCODER]
    # Three blocks of two heads in the image tower; four of one masked head in the temporal.
    assert (video.attention.blocks, video.attention.expected, video.attention.fused) == (7, 3, 3)
    assert (text.attention.blocks, text.attention.expected, text.attention.fused) == (4, 0, 0)
    assert video.float32_islands == {"layer norm": 16, "L2 norm": 3, "output": 2}
    assert text.float32_islands == {"layer norm": 9, "L2 norm": 1, "output": 2}
    assert engines[Graph.SCORER].float32_islands["scorer softmax"] == 6
    for engine in engines.values():
        assert engine.memory.source == "builder log"
        assert len(engine.memory.activation_bytes) == len(engine.profiles)
    weights = text.memory.weights_bytes
    # Half of the FP32 parameters' size: the embeddings alone are 49408 by 64.
    assert 49408 * 64 * 2 < weights < text.file.size_bytes
    assert text.memory.needed_bytes > weights + text.memory.tensor_bytes[1]


@pytest.mark.slow
def test_fp32_engines_of_larger_batches(
    built: BuildResult, built_copy: Path, small_shapes: EngineShapes
) -> None:
    whole = build_engines(
        built_copy,
        precision=Precision.FP32,
        flavour="rtx",
        shapes=dataclasses.replace(small_shapes, videos=BatchRange(1, 2, 64)),
    )
    # Three markers for each of the image tower's three blocks in FP16; none in FP32.
    plans = [
        (result.path / engine_file(Graph.VIDEO_ENCODER)).read_bytes() for result in (built, whole)
    ]
    assert [plan.count(FUSED_KERNEL) for plan in plans] == [9, 0]
    engine = whole.engine_set.engines[Graph.VIDEO_ENCODER]
    assert engine.float32_islands == {}
    assert engine.attention.blocks == 0
    few, many = built.engine_set.engines[Graph.VIDEO_ENCODER].memory, engine.memory
    # Frames, lengths and features of 4 and of 64 videos.
    a_video = 12 * 64 * 64 * 3 + 4 + 64 * 4 + 12 * 64 * 4
    assert (few.tensor_bytes, many.tensor_bytes) == ((4 * a_video,), (64 * a_video,))
    assert many.weights_bytes > 1.8 * few.weights_bytes
    assert many.activation_bytes[0] > few.activation_bytes[0] + 20_000_000
    assert len(engine_sets(Bundle.open(built_copy))) == 2


def test_the_library_can_read_its_engines_header(built: BuildResult, trt: Any) -> None:
    """Running needs a GPU; the engine's own header can be read without."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    content = (built.path / engine_file(Graph.SCORER)).read_bytes()
    _, diagnostics = runtime.get_engine_validity(content)
    # Whatever this machine lacks, the file is an engine of this version ...
    assert not diagnostics & (
        int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
        | int(trt.EngineInvalidityDiagnostics.VERSION_MISMATCH)
    )
    # ... which half a file is not.
    _, diagnostics = runtime.get_engine_validity(b"\0" * 1000)
    assert diagnostics & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


def test_nothing_is_built_twice(built_copy: Path, small_shapes: EngineShapes) -> None:
    (folder,) = (built_copy / "engines").iterdir()
    before = contents(folder)
    again = build_engines(built_copy, flavour="rtx", shapes=small_shapes)
    assert not again.is_new
    assert again.path == folder
    assert contents(folder) == before


@pytest.mark.parametrize("change", ["engine", "truncated", "sidecar", "shapes", "options"])
def test_what_makes_a_build_necessary(
    built_copy: Path, small_shapes: EngineShapes, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in itself; that it then builds is seen by the first thing that a build does."""
    (folder,) = (built_copy / "engines").iterdir()
    options = BuildOptions()
    if change == "engine":
        file = folder / "scorer.engine"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif change == "truncated":
        (folder / "scorer.engine").write_bytes(b"")
    elif change == "sidecar":
        (folder / SIDECAR_NAME).write_text("{")
    elif change == "shapes":
        small_shapes = EngineShapes()
    else:
        options = BuildOptions(workspace_bytes=1 << 30)
    steps: list[Progress] = []

    def stop(step: Progress) -> None:
        steps.append(step)
        raise RuntimeError("seen")

    with pytest.raises(RuntimeError, match="seen"):
        build_engines(
            built_copy, flavour="rtx", shapes=small_shapes, options=options, progress=stop
        )
    assert steps[0].fraction == 0


def test_force_builds_anyway(built_copy: Path, small_shapes: EngineShapes) -> None:
    def stop(step: Progress) -> None:
        raise RuntimeError("seen")

    with pytest.raises(RuntimeError, match="seen"):
        build_engines(built_copy, flavour="rtx", shapes=small_shapes, force=True, progress=stop)


def test_progress_of_each_engine(built: BuildResult, build_steps: list[Progress]) -> None:
    for number, graph in enumerate(Graph):
        of_graph = [step for step in build_steps if step.step == graph.value]
        fractions = [step.fraction for step in of_graph]
        assert (fractions[0], fractions[-1]) == (0, 1)
        assert fractions == sorted(fractions)
        assert len({round(fraction, 1) for fraction in fractions}) > 5
        assert {(step.done, step.total) for step in of_graph} == {(number, 3)}
        assert "Building engine" in {step.note for step in of_graph}


INTERRUPTED = """
import json, os, signal, sys
# Python's own, which a shell takes from what it starts in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
from xclip_deploy import build_engines
from xclip_deploy.export.tensorrt import BatchRange, EngineShapes

steps = []

def interrupt(step):
    steps.append((step.step, step.fraction))
    if len(steps) == 100:
        os.kill(os.getpid(), signal.SIGINT)

small = BatchRange(1, 2, 4)
shapes = EngineShapes(small, small, small, BatchRange(1, 4, 8))
try:
    build_engines(sys.argv[1], flavour="rtx", shapes=shapes, force=True, progress=interrupt)
except KeyboardInterrupt:
    print(json.dumps(steps))
"""


def test_ctrl_c_stops_and_leaves_the_old_engines(built_copy: Path) -> None:
    (folder,) = (built_copy / "engines").iterdir()
    before = contents(folder)
    # In a process of its own: a signal concerns every library that other tests have loaded.
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(built_copy)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    steps = json.loads(done.stdout)
    # It did not run to its end before it noticed.
    assert {name for name, _ in steps} == {"video_encoder"}
    assert steps[-1][1] < 0.9
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_unsupported_operator_is_named_and_the_old_engines_stand(
    built_copy: Path, small_shapes: EngineShapes, put_graph: PutGraph
) -> None:
    (folder,) = (built_copy / "engines").iterdir()
    before = contents(folder)
    unsupported_video_encoder(built_copy, put_graph)
    with pytest.raises(EngineBuildError, match="could not parse") as caught:
        build_engines(built_copy, flavour="rtx", shapes=small_shapes, precision=Precision.FP16)
    message = str(caught.value)
    assert "Multinomial (node_softmax): UNSUPPORTED_NODE" in message
    assert "NoSuchOperator (node_softmax_1): INVALID_NODE" in message
    assert "--dry-run" in message
    assert contents(folder) == before
    assert not list(folder.parent.glob(".*"))


def test_a_workspace_that_is_too_small(bundle_copy: Path, small_shapes: EngineShapes) -> None:
    with pytest.raises(EngineBuildError, match="within a workspace of 1,024 bytes") as caught:
        build_engines(
            bundle_copy,
            flavour="rtx",
            shapes=small_shapes,
            options=BuildOptions(workspace_bytes=1024),
        )
    assert "allow more with --workspace" in str(caught.value)
    assert not list((bundle_copy / "engines").iterdir())


def test_a_target_that_cannot_compute_in_fp32(bundle_copy: Path) -> None:
    """The reason is TensorRT's own."""
    with pytest.raises(EngineBuildError, match=r"Turing \(SM75\): FP32 GEMM is not supported"):
        build_engines(
            bundle_copy, flavour="rtx", options=BuildOptions(compute_capabilities=("sm75",))
        )


def test_a_target_of_its_own(trivial_bundle: Path) -> None:
    options = BuildOptions(compute_capabilities=("sm86", "sm89"))
    built = build_engines(trivial_bundle, flavour="rtx", precision=Precision.FP32, options=options)
    assert built.path.name.endswith("-fp32-sm86-sm89")
    assert built.engine_set.options == options


def test_a_full_disk(trivial_bundle: Path) -> None:
    """The system refuses to write any file beyond a size, as it does on a full disk."""
    folder = build_engines(trivial_bundle, flavour="rtx", precision=Precision.FP32).path
    before = contents(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(EngineBuildError, match=r"cannot be written.*what was there stands"):
            build_engines(trivial_bundle, flavour="rtx", precision=Precision.FP32, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_bundle_that_cannot_be_written_to(bundle_copy: Path) -> None:
    """Found before anything is built."""
    assert not (bundle_copy / "engines").exists()
    (bundle_copy / "engines").write_text("no folder")
    steps: list[Progress] = []
    with pytest.raises(EngineBuildError, match="cannot be written"):
        build_engines(bundle_copy, flavour="rtx", progress=steps.append)
    assert steps == []


def test_a_self_test_decides(trivial_bundle: Path) -> None:
    folder = build_engines(trivial_bundle, flavour="rtx", precision=Precision.FP32).path
    before = contents(folder)
    seen: list[set[str]] = []

    def run(bundle: Bundle, new: Path, engine_set: EngineSet) -> bool:
        # It is given the whole set, which has not taken its place yet.
        assert bundle.path == trivial_bundle
        assert EngineSet.model_validate_json((new / SIDECAR_NAME).read_bytes()) == engine_set
        assert contents(folder) == before
        seen.append(set(contents(new)))
        if len(seen) == 1:
            raise VerificationError("they differ")
        return True

    def build() -> BuildResult:
        return build_engines(
            trivial_bundle, flavour="rtx", precision=Precision.FP32, force=True, self_test=run
        )

    with pytest.raises(VerificationError, match="they differ"):
        build()
    assert contents(folder) == before
    assert build().engine_set.self_tested
    assert json.loads((folder / SIDECAR_NAME).read_text())["self_tested"] is True
    assert seen == [set(before)] * 2


def test_a_graph_of_another_dtype_than_it_declares(bundle_copy: Path, put_graph: PutGraph) -> None:
    """The trap: it declares FP32 and yields half. TensorRT would build it without a word."""
    model = onnx.load(str(bundle_copy / "fp16" / "video_encoder.onnx"))
    name = model.graph.output[0].name
    for node in model.graph.node:
        for index, output in enumerate(node.output):
            if output == name:
                node.output[index] = "before_cast"
    model.graph.node.append(
        helper.make_node("Cast", ["before_cast"], [name], to=TensorProto.FLOAT16)
    )
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    put_graph(bundle_copy, Graph.VIDEO_ENCODER, model)
    with pytest.raises(
        EngineBuildError, match=r"video_features float16 \[\?, 64\]; the bundle says"
    ):
        build_engines(bundle_copy, flavour="rtx")


def test_an_altered_graph_is_not_built(bundle_copy: Path) -> None:
    file = bundle_copy / "fp16" / "scorer.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="was altered"):
        build_engines(bundle_copy, flavour="rtx")
    assert not list((bundle_copy / "engines").glob("*"))


@pytest.mark.parametrize(
    ("precision", "reason"),
    [
        (Precision.INT8, "int8 graphs are for the CPU"),
        (Precision.BF16, r"run: xclip-deploy export CHECKPOINT -o .* --bf16"),
    ],
)
def test_precisions_without_graphs(bundle_path: Path, precision: Precision, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        build_engines(bundle_path, flavour="rtx", precision=precision)


def test_a_damaged_sidecar_is_refused(built_copy: Path) -> None:
    (folder,) = (built_copy / "engines").iterdir()
    (folder / SIDECAR_NAME).write_text('{"format": "xclip-engines"')
    with pytest.raises(EngineError, match="not a description of engines"):
        engine_sets(Bundle.open(built_copy))
