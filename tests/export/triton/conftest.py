"""Triton's own schema, and engine sets as builds write them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, message_factory, text_format

from xclip_deploy import build_engines
from xclip_deploy.runtime.engine_set import ENGINES_DIRECTORY, SIDECAR_NAME, Flavour, directory_name
from xclip_deploy.runtime.manifest import Precision

HERE = Path(__file__).resolve().parent
VERSION, TARGET = "10.13.2.6", "sm80"


@pytest.fixture(scope="session")
def model_config_class() -> Any:
    """``inference.ModelConfig``, by the schema that Triton's client ships."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile((HERE / "model_config.binpb").read_bytes())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


@pytest.fixture
def parse(model_config_class: Any) -> Callable[[Path], Any]:
    """Read a ``config.pbtxt``; what the schema does not know is an error."""

    def read(path: Path) -> Any:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_class())

    return read


@pytest.fixture(scope="session")
def built(
    bundle_path: Path, checkpoint_path: Path, once_per_code: Callable[..., Path]
) -> dict[Precision, Path]:
    """Engine sets of TensorRT-RTX, which builds anywhere; by precision."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed on this platform")
    precisions = (Precision.FP16, Precision.FP32)

    def build(folder: Path) -> None:
        shutil.copytree(bundle_path, folder / "bundle")
        for precision in precisions:
            made = build_engines(folder / "bundle", precision=precision, flavour="rtx").path
            shutil.copytree(made, folder / precision.value)
        shutil.rmtree(folder / "bundle")

    folder = once_per_code("rtx-engines", [checkpoint_path, Path(__file__)], build)
    return {precision: folder / precision.value for precision in precisions}


@pytest.fixture
def add_engines(built: dict[Precision, Path]) -> Callable[..., Path]:
    """Put an engine set into a bundle.

    Engines of flavour ``tensorrt`` can be built on their GPU alone: these are TensorRT-RTX's,
    whose sidecar is made to say otherwise. An export copies them and never loads them.
    """

    def add(
        path: Path, flavour: Flavour = Flavour.TENSORRT, precision: Precision = Precision.FP16
    ) -> Path:
        name = directory_name(flavour, VERSION, precision, TARGET)
        folder = path / ENGINES_DIRECTORY / name
        shutil.copytree(built[precision], folder)
        content = json.loads((folder / SIDECAR_NAME).read_text())
        content |= {"flavour": flavour.value, "version": VERSION, "target": TARGET, "gpu": "A100"}
        (folder / SIDECAR_NAME).write_text(json.dumps(content))
        return folder

    return add
