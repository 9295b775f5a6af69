from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from xclip_deploy import Bundle, export_triton
from xclip_deploy.cli import main
from xclip_deploy.errors import EngineError
from xclip_deploy.export.graphs import graph_specs
from xclip_deploy.export.triton import TritonBackend
from xclip_deploy.export.triton.description import DESCRIPTION_NAME, TritonRepository
from xclip_deploy.export.triton.model_config import graph_config
from xclip_deploy.runtime.engine_set import engine_file, read_engine_set
from xclip_deploy.runtime.files import sha256_of
from xclip_deploy.runtime.manifest import DType, Graph, Precision

Parse = Callable[[Path], Any]
AddEngines = Callable[..., Path]
MODELS = ("video_encoder", "text_encoder", "scorer", "text_tokenizer", "text_query")
TYPES = {
    DType.FLOAT32: "TYPE_FP32",
    DType.FLOAT16: "TYPE_FP16",
    DType.INT32: "TYPE_INT32",
    DType.UINT8: "TYPE_UINT8",
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def type_name(tensor: Any) -> str:
    field = tensor.DESCRIPTOR.fields_by_name["data_type"]
    return str(field.enum_type.values_by_number[tensor.data_type].name)


# Configurations, by Triton's schema


def test_the_schema_is_strict(parse: Parse, tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('name: "a"\nmax_batches: 3\n')
    with pytest.raises(text_format.ParseError, match="no field named"):
        parse(tmp_path / "config.pbtxt")
    (tmp_path / "config.pbtxt").write_text("input { data_type: TYPE_FLOAT }\n")
    with pytest.raises(text_format.ParseError, match="TYPE_FLOAT"):
        parse(tmp_path / "config.pbtxt")


@pytest.mark.parametrize("backend", ["onnxruntime", "python", "tensorrt"])
def test_every_configuration_is_one(
    backend: str, bundle_copy: Path, add_engines: AddEngines, parse: Parse, tmp_path: Path
) -> None:
    add_engines(bundle_copy)
    result = export_triton(bundle_copy, tmp_path / "repository", backend=backend)  # type: ignore[arg-type]
    assert result.description.models == MODELS
    configs = {path.parent.name: parse(path) for path in result.path.glob("*/config.pbtxt")}
    assert set(configs) == set(MODELS)
    for name, config in configs.items():
        assert config.name == name
        assert config.backend == {
            "text_tokenizer": "python",
            "text_query": "",
        }.get(name, backend)
        versions = [path.name for path in (result.path / name).iterdir() if path.is_dir()]
        assert versions == ["1"]
    assert configs["text_query"].platform == "ensemble"


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_tensors_are_the_manifest_s(
    backend: str, bundle: Bundle, parse: Parse, tmp_path: Path
) -> None:
    export_triton(bundle, tmp_path / "r", backend=backend)  # type: ignore[arg-type]
    for graph, spec in bundle.manifest.graphs[Precision.FP32].items():
        config = parse(tmp_path / "r" / graph.value / "config.pbtxt")
        is_batched = graph is not Graph.SCORER
        assert (config.max_batch_size > 0) is is_batched
        assert config.HasField("dynamic_batching") is is_batched
        for found, expected in ((config.input, spec.inputs), (config.output, spec.outputs)):
            assert [tensor.name for tensor in found] == [tensor.name for tensor in expected]
            for tensor, want in zip(found, expected, strict=True):
                assert type_name(tensor) == TYPES[want.dtype]
                shape = want.shape[1:] if is_batched else want.shape
                dims = [size if isinstance(size, int) else -1 for size in shape]
                if tensor.HasField("reshape"):
                    # A [batch] for the graph; for clients a [batch, 1].
                    assert (list(tensor.dims), list(tensor.reshape.shape)) == ([1], [])
                    assert dims == []
                else:
                    assert list(tensor.dims) == dims
                    assert dims


def test_limits_and_groups(bundle: Bundle, parse: Parse, tmp_path: Path) -> None:
    export_triton(
        bundle,
        tmp_path / "r",
        device="cuda",
        max_videos=3,
        max_texts=5,
        queue_delay_us=70,
        instances=2,
        threads=4,
        model_version=12,
    )
    video = parse(tmp_path / "r" / "video_encoder" / "config.pbtxt")
    assert video.max_batch_size == 3
    assert video.dynamic_batching.max_queue_delay_microseconds == 70
    (group,) = video.instance_group
    assert (group.count, group.kind) == (2, group.DESCRIPTOR.enum_values_by_name["KIND_GPU"].number)
    assert video.parameters["intra_op_thread_count"].string_value == "4"
    for name in ("text_encoder", "text_tokenizer", "text_query"):
        assert parse(tmp_path / "r" / name / "config.pbtxt").max_batch_size == 5
        assert (tmp_path / "r" / name / "12").is_dir()


def test_the_ensemble_fits_together(bundle: Bundle, parse: Parse, tmp_path: Path) -> None:
    """Every tensor of a step is one of its model's, and of the same type and shape."""
    export_triton(bundle, tmp_path / "r")
    query = parse(tmp_path / "r" / "text_query" / "config.pbtxt")
    known = {tensor.name: tensor for tensor in query.input}
    for step in query.ensemble_scheduling.step:
        model = parse(tmp_path / "r" / step.model_name / "config.pbtxt")
        inputs = {tensor.name: tensor for tensor in model.input}
        outputs = {tensor.name: tensor for tensor in model.output}
        assert set(step.input_map) == set(inputs)
        assert set(step.output_map) == set(outputs)
        for name, outer in step.input_map.items():
            assert inputs[name].data_type == known[outer].data_type
            assert list(inputs[name].dims) == list(known[outer].dims)
        known |= {outer: outputs[name] for name, outer in step.output_map.items()}
    assert {tensor.name for tensor in query.output} == {
        "sentence_features",
        "word_features",
        "num_words",
    }
    for tensor in query.output:
        assert tensor.data_type == known[tensor.name].data_type
        assert list(tensor.dims) == list(known[tensor.name].dims)


def test_a_scorer_that_masks_padding_takes_the_counts(
    make_model: Any, parse: Parse, tmp_path: Path
) -> None:
    spec = graph_specs(make_model(mask_padding=True).config, Precision.FP32)[Graph.SCORER]
    text = graph_config(
        Graph.SCORER,
        spec.inputs,
        spec.outputs,
        backend=TritonBackend.ONNXRUNTIME,
        max_batch=0,
        queue_delay_us=0,
        instance_group={"count": 1},
        threads=None,
    )
    (tmp_path / "config.pbtxt").write_text(text)
    config = parse(tmp_path / "config.pbtxt")
    dims = {tensor.name: list(tensor.dims) for tensor in config.input}
    assert (dims["num_words"], dims["num_frames"]) == ([-1], [-1])


# What is copied


def test_graphs_are_the_bundle_s(bundle: Bundle, tmp_path: Path) -> None:
    for device, precision in (("cpu", Precision.FP32), ("cuda", Precision.FP16)):
        result = export_triton(bundle, tmp_path / "r", device=device)  # type: ignore[arg-type]
        assert result.description.precision is precision
        for graph in Graph:
            copied = tmp_path / "r" / graph.value / "1" / "model.onnx"
            assert sha256_of(copied) == bundle.graph_sha256(graph, precision)


def test_engines(bundle_copy: Path, add_engines: AddEngines, parse: Parse, tmp_path: Path) -> None:
    folder = add_engines(bundle_copy)
    engine_set = read_engine_set(folder, bundle_copy)
    result = export_triton(bundle_copy, tmp_path / "r", backend=TritonBackend.TENSORRT)
    description = result.description
    assert (description.tensorrt_version, description.target) == ("10.13.2.6", "sm80")
    for graph in Graph:
        plan = tmp_path / "r" / graph.value / "1" / "model.plan"
        assert plan.read_bytes() == (folder / engine_file(graph)).read_bytes()
        config = parse(tmp_path / "r" / graph.value / "config.pbtxt")
        assert config.platform == "tensorrt_plan"
        # Without this, Triton would use the first profile alone.
        profiles = engine_set.engines[graph].profiles
        names = [str(number) for number in range(len(profiles))] if len(profiles) > 1 else []
        assert list(config.instance_group[0].profile) == names
    # One for a single query and one for many: the case that this is about.
    assert len(engine_set.engines[Graph.TEXT_ENCODER].profiles) > 1
    for graph, name in ((Graph.VIDEO_ENCODER, "frames"), (Graph.TEXT_ENCODER, "token_ids")):
        config = parse(tmp_path / "r" / graph.value / "config.pbtxt")
        profiles = engine_set.engines[graph].profiles
        assert config.max_batch_size == max(profile[name].max[0] for profile in profiles)


def test_version_compatible_engines_need_an_option_of_the_server(
    bundle_copy: Path, add_engines: AddEngines, tmp_path: Path
) -> None:
    sidecar = add_engines(bundle_copy) / "engines.json"
    result = export_triton(bundle_copy, tmp_path / "r", backend="tensorrt")
    assert result.description.server_arguments == ()
    content = json.loads(sidecar.read_text())
    content["options"]["version_compatible"] = True
    sidecar.write_text(json.dumps(content))
    result = export_triton(bundle_copy, tmp_path / "r", backend="tensorrt")
    assert result.description.server_arguments == (
        "--backend-config=tensorrt,version-compatible=true",
    )


def test_the_tokenizer_runs_on_the_bundle_s_file(bundle: Bundle, tmp_path: Path) -> None:
    from xclip_deploy.runtime.tokenizer import Tokenizer

    export_triton(bundle, tmp_path / "r")
    texts = ["A man is driving a car", "naïve &amp;amp; 東京 🎬", "x " * 100, ""]
    copied = Tokenizer.open(tmp_path / "r" / "text_tokenizer" / "1" / "tokenizer.json")
    words = bundle.manifest.model.max_words
    assert (copied.encode(texts, words) == bundle.tokenizer().encode(texts, words)).all()


def test_code_in_the_server_needs_little(bundle: Bundle, tmp_path: Path) -> None:
    """It is loaded by its file alone, on a server without PyTorch and our export package."""
    export_triton(bundle, tmp_path / "r", backend="python")
    found = set()
    for file in (tmp_path / "r").rglob("model.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module))
    assert found == {
        "__future__",
        "json",
        "numpy",
        "onnxruntime",
        "pathlib",
        "triton_python_backend_utils",
        "typing",
        "xclip_deploy.errors",
        "xclip_deploy.runtime.tokenizer",
    }


def test_the_description_lists_every_file(bundle: Bundle, tmp_path: Path) -> None:
    result = export_triton(bundle, tmp_path / "r")
    content = json.loads((tmp_path / "r" / DESCRIPTION_NAME).read_text())
    assert TritonRepository.model_validate(content) == result.description
    assert set(result.description.files) | {DESCRIPTION_NAME} == set(files_of(tmp_path / "r"))
    for name, record in result.description.files.items():
        assert sha256_of(tmp_path / "r" / name) == record.sha256
    assert result.description.fingerprint == bundle.manifest.fingerprint


# The command


def test_the_command(bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--json"]):
        options = ["--device=cuda", "--max-texts=7", *arguments]
        with pytest.raises(SystemExit) as caught:
            main(["export-triton", str(bundle.path), "-o", str(tmp_path / "r"), *options])
        assert caught.value.code == 0
        printed = capfd.readouterr().out
    content = json.loads(printed)
    assert (content["path"], content["precision"]) == (str(tmp_path / "r"), "fp16")
    assert content["models"] == list(MODELS)
    assert "max_batch_size: 7" in (tmp_path / "r/text_query/config.pbtxt").read_text()


def test_the_command_refuses(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export-triton", str(bundle.path), "-o", str(tmp_path / "r"), "--backend=tensorrt"])
    assert caught.value.code == EngineError.exit_code
    printed = capfd.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
