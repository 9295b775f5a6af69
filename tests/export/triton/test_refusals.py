from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy import Bundle, export_triton
from xclip_deploy.errors import (
    BundleIntegrityError,
    BundleNotFoundError,
    EngineError,
    ExportError,
    InvalidArgumentError,
)
from xclip_deploy.export.triton import TritonExport
from xclip_deploy.export.triton.description import DESCRIPTION_NAME
from xclip_deploy.runtime.engine_set import Flavour, engine_file
from xclip_deploy.runtime.manifest import Graph, Precision

AddEngines = Callable[..., Path]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Replacing


def exported(bundle: Bundle, path: Path, **options: Any) -> TritonExport:
    return export_triton(bundle, path, **options)


def test_an_older_repository_is_replaced(bundle: Bundle, tmp_path: Path) -> None:
    exported(bundle, tmp_path / "r", model_version=1, backend="python")
    exported(bundle, tmp_path / "r", model_version=2)
    assert not (tmp_path / "r" / "scorer" / "1").exists()
    assert (tmp_path / "r" / "scorer" / "2" / "model.onnx").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_an_empty_folder_is_taken(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    exported(bundle, tmp_path / "r")


@pytest.mark.parametrize(
    "name", ["my_model/config.pbtxt", "scorer/1/labels.txt", "scorer/2/model.onnx"]
)
def test_what_others_wrote_stands(bundle: Bundle, tmp_path: Path, name: str) -> None:
    exported(bundle, tmp_path / "r")
    (tmp_path / "r" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "r" / name).write_text("mine")
    before = files_of(tmp_path / "r")
    with pytest.raises(InvalidArgumentError, match=name):
        exported(bundle, tmp_path / "r")
    assert files_of(tmp_path / "r") == before


def test_a_configuration_changed_by_hand_stands(bundle: Bundle, tmp_path: Path) -> None:
    exported(bundle, tmp_path / "r")
    file = tmp_path / "r" / "scorer" / "config.pbtxt"
    file.write_text(file.read_text().replace("count: 1", "count: 3"))
    with pytest.raises(InvalidArgumentError, match=r"scorer/config\.pbtxt"):
        exported(bundle, tmp_path / "r")
    assert "count: 3" in file.read_text()


@pytest.mark.parametrize("marker", [None, "", "{}", "[]", '{"format": "xclip-triton"}'])
def test_a_folder_of_something_else_stands(
    bundle: Bundle, tmp_path: Path, marker: str | None
) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"holiday")
    if marker is not None:
        (tmp_path / DESCRIPTION_NAME).write_text(marker)
    with pytest.raises(InvalidArgumentError, match="holds what no export to Triton wrote"):
        exported(bundle, tmp_path)
    assert (tmp_path / "photo.jpg").read_bytes() == b"holiday"


def test_a_file_in_the_way(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "r").write_text("mine")
    with pytest.raises(InvalidArgumentError, match="is no folder"):
        exported(bundle, tmp_path / "r")


def test_an_interrupted_export_leaves_the_old_one(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(bundle, tmp_path / "r")
    before = files_of(tmp_path / "r")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        exported(bundle, tmp_path / "r", model_version=2)
    assert files_of(tmp_path / "r") == before
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_folder_that_cannot_be_written(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match=r"cannot be written .*; what was there stands"):
        exported(bundle, tmp_path / "file" / "r")


# Refusing


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backend": "tensorrt", "device": "cpu"}, "runs on cuda alone"),
        ({"backend": "tensorrt", "threads": 2}, "takes none"),
        ({"backend": "python", "device": "cuda"}, "runs on the CPU alone"),
        ({"engines": "somewhere"}, "runs ONNX graphs, no engines"),
        ({"precision": Precision.BF16}, "ONNX Runtime cannot run it"),
        ({"precision": Precision.INT8, "device": "cuda"}, "for the CPU alone"),
        ({"precision": Precision.INT8}, "has no int8 graphs"),
        ({"max_videos": 0}, "max_videos is 0 .*at least 1"),
        ({"instances": 0}, "instances is 0 .*at least 1"),
        ({"threads": 0}, "threads is 0 .*at least 1"),
        ({"model_version": 0}, "model_version is 0 .*at least 1"),
        ({"queue_delay_us": -1}, "queue_delay_us is -1 .*at least 0"),
        ({"device": "gpu"}, "device is 'gpu' .*; expected one of 'cpu', 'cuda'"),
        ({"backend": "pytorch"}, "expected one of 'onnxruntime', 'tensorrt', 'python'"),
    ],
)
def test_what_cannot_be(
    bundle: Bundle, tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        export_triton(bundle, tmp_path / "r", **options)
    assert list(tmp_path.iterdir()) == []


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        export_triton(tmp_path / "none", tmp_path / "r")


def test_no_engines(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"found: none.*build-trt .* --flavor tensorrt"):
        export_triton(bundle, tmp_path / "r", backend="tensorrt")


@pytest.mark.parametrize("is_named", [False, True])
def test_engines_of_rtx(
    bundle_copy: Path, add_engines: AddEngines, tmp_path: Path, is_named: bool
) -> None:
    folder = add_engines(bundle_copy, Flavour.RTX)
    with pytest.raises(EngineError, match="loads engines of flavour tensorrt alone") as caught:
        export_triton(
            bundle_copy,
            tmp_path / "r",
            backend="tensorrt",
            engines=folder.name if is_named else None,
        )
    assert folder.name in str(caught.value)


def test_several_engine_sets(bundle_copy: Path, add_engines: AddEngines, tmp_path: Path) -> None:
    add_engines(bundle_copy)
    folder = add_engines(bundle_copy, precision=Precision.FP32)
    with pytest.raises(InvalidArgumentError, match="several engine sets"):
        export_triton(bundle_copy, tmp_path / "r", backend="tensorrt")
    by_path = export_triton(bundle_copy, tmp_path / "a", backend="tensorrt", engines=folder)
    by_name = export_triton(bundle_copy, tmp_path / "b", backend="tensorrt", engines=folder.name)
    by_precision = export_triton(
        bundle_copy, tmp_path / "c", backend="tensorrt", precision=Precision.FP32
    )
    for result in (by_path, by_name, by_precision):
        assert result.description.precision is Precision.FP32
    with pytest.raises(InvalidArgumentError, match=r"precision fp16: the engines .* are fp32"):
        export_triton(
            bundle_copy,
            tmp_path / "d",
            backend="tensorrt",
            engines=folder,
            precision=Precision.FP16,
        )


def test_a_batch_above_the_engine_s(
    bundle_copy: Path, add_engines: AddEngines, tmp_path: Path
) -> None:
    add_engines(bundle_copy)
    with pytest.raises(InvalidArgumentError, match=r"max_videos 99999: .*built for at most \d+"):
        export_triton(bundle_copy, tmp_path / "r", backend="tensorrt", max_videos=99_999)


def test_altered_and_missing_engines(
    bundle_copy: Path, add_engines: AddEngines, tmp_path: Path
) -> None:
    engine = add_engines(bundle_copy) / engine_file(Graph.SCORER)
    content = bytearray(engine.read_bytes())
    content[1000] ^= 1
    engine.write_bytes(content)
    with pytest.raises(EngineError, match=r"was altered.*build-trt"):
        export_triton(bundle_copy, tmp_path / "r", backend="tensorrt")
    engine.unlink()
    with pytest.raises(EngineError, match=r"cannot be read.*build-trt"):
        export_triton(bundle_copy, tmp_path / "r", backend="tensorrt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fingerprint": "0" * 64}, "was built for model 0000"),
        ({"precision": "bf16"}, "was built from bf16 graphs, the bundle has fp32"),
        ({"precision": "fp32"}, "was built from graph"),
    ],
)
def test_engines_that_are_not_of_this_bundle(
    bundle_copy: Path,
    add_engines: AddEngines,
    tmp_path: Path,
    changes: dict[str, str],
    said: str,
) -> None:
    sidecar = add_engines(bundle_copy) / "engines.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | changes))
    with pytest.raises(EngineError, match=f"{said}.*; run: xclip-deploy build-trt"):
        export_triton(bundle_copy, tmp_path / "r", backend="tensorrt")


def test_an_altered_graph_is_not_passed_on(bundle_copy: Path, tmp_path: Path) -> None:
    file = bundle_copy / "fp32" / "scorer.onnx"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="was altered"):
        export_triton(bundle_copy, tmp_path / "r")
    assert not (tmp_path / "r").exists()
