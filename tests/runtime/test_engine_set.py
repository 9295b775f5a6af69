"""The sidecar of an engine set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy import Bundle
from xclip_deploy.errors import EngineError
from xclip_deploy.runtime.engine_set import (
    SCHEMA_VERSION,
    SIDECAR_NAME,
    BuildOptions,
    EngineSet,
    Flavour,
    HardwareCompatibility,
    engine_sets,
    read_engine_set,
)
from xclip_deploy.runtime.manifest import Precision


@pytest.fixture
def engine_set(bundle: Bundle) -> EngineSet:
    specs = bundle.manifest.graphs[Precision.FP16]
    engines = {
        graph: {
            "file": {"sha256": "0" * 64, "size_bytes": 1},
            "graph_sha256": bundle.graph_sha256(graph, Precision.FP16),
            "inputs": [tensor.model_dump() for tensor in spec.inputs],
            "outputs": [tensor.model_dump() for tensor in spec.outputs],
            "profiles": [{}, {}],
            "build_s": 1.0,
            "memory": {
                "source": "builder log",
                "weights_bytes": 100,
                "activation_bytes": [20, 10],
                "tensor_bytes": [1, 12],
            },
            "attention": {"blocks": 12, "expected": 12, "fused": None},
            "float32_islands": {"output": 2},
        }
        for graph, spec in specs.items()
    }
    return EngineSet.model_validate(
        {
            "flavour": "tensorrt",
            "version": "11.4.0",
            "precision": "fp16",
            "target": "sm90",
            "gpu": "a GPU",
            "fingerprint": bundle.manifest.fingerprint,
            "options": {},
            "shape_options": {},
            "self_tested": True,
            "created_utc": "2026-01-01T00:00:00+00:00",
            "engines": engines,
        }
    )


def write(engine_set: EngineSet, bundle: Path, **changes: Any) -> Path:
    folder = bundle / "engines" / engine_set.directory_name
    folder.mkdir(parents=True)
    content = engine_set.model_dump(mode="json") | changes
    (folder / SIDECAR_NAME).write_text(json.dumps(content))
    return folder


def test_round_trip(engine_set: EngineSet, bundle_copy: Path) -> None:
    folder = write(engine_set, bundle_copy)
    assert folder.name == "tensorrt-11.4.0-fp16-sm90"
    assert read_engine_set(folder, bundle_copy) == engine_set
    (folder.parent / ".unfinished").mkdir()
    (folder.parent / ".unfinished" / SIDECAR_NAME).write_text("half of")
    assert engine_sets(Bundle.open(bundle_copy)) == {folder: engine_set}


def test_memory_of_the_profile_that_needs_most(engine_set: EngineSet) -> None:
    assert {engine.memory.needed_bytes for engine in engine_set.engines.values()} == {122}


@pytest.mark.parametrize("version", [1, SCHEMA_VERSION + 1, None])
def test_another_schema_version(
    engine_set: EngineSet, bundle_copy: Path, version: int | None
) -> None:
    folder = write(engine_set, bundle_copy, schema_version=version)
    with pytest.raises(EngineError) as caught:
        read_engine_set(folder, bundle_copy)
    message = str(caught.value)
    assert f"schema version {version}, this release reads {SCHEMA_VERSION}" in message
    assert message.endswith(f"rm -r {folder} && xclip-deploy build-trt {bundle_copy}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "its format is not xclip-engines"),
        ('{"format": "xclip-bundle"}', "its format is not xclip-engines"),
        ("[" * 100_000, "recursion"),
        (b"\xff\xfe\x00", "decode"),
        (None, "No such file"),
    ],
)
def test_what_is_no_sidecar(
    engine_set: EngineSet, bundle_copy: Path, content: str | bytes | None, reason: str
) -> None:
    folder = write(engine_set, bundle_copy)
    (folder / SIDECAR_NAME).unlink()
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / SIDECAR_NAME).write_bytes(raw)
    with pytest.raises(EngineError, match=f"not a description of engines .*{reason}.*run: rm -r"):
        read_engine_set(folder, bundle_copy)


def test_a_field_of_another_type(engine_set: EngineSet, bundle_copy: Path) -> None:
    folder = write(engine_set, bundle_copy, self_tested="perhaps")
    with pytest.raises(EngineError, match="self_tested: Input should be a valid boolean"):
        read_engine_set(folder, bundle_copy)


def test_a_missing_engine(engine_set: EngineSet, bundle_copy: Path) -> None:
    engines = engine_set.model_dump(mode="json")["engines"]
    del engines["scorer"]
    folder = write(engine_set, bundle_copy, engines=engines)
    with pytest.raises(EngineError, match="lacks scorer"):
        read_engine_set(folder, bundle_copy)


@pytest.mark.parametrize(
    ("flavour", "target", "runs", "refused"),
    [
        (Flavour.TENSORRT, "sm80", [(8, 0)], [(8, 6), (9, 0), (7, 5)]),
        (Flavour.TENSORRT, "sm80-ampere-plus", [(8, 0), (8, 6), (12, 0)], [(7, 5)]),
        (Flavour.TENSORRT, "sm86-same-compute-capability", [(8, 6)], [(8, 0), (8, 9)]),
        (Flavour.RTX, "portable", [(8, 0), (8, 9), (12, 1)], [(7, 5), (8, 7), (9, 0), (10, 0)]),
        (Flavour.RTX, "sm75", [(7, 5)], [(8, 0)]),
        (Flavour.RTX, "sm86-sm120", [(8, 6), (12, 0)], [(8, 0), (8, 9), (12, 1)]),
    ],
)
def test_what_a_target_runs_on(
    engine_set: EngineSet,
    flavour: Flavour,
    target: str,
    runs: list[tuple[int, int]],
    refused: list[tuple[int, int]],
) -> None:
    of_target = engine_set.model_copy(update={"flavour": flavour, "target": target})
    assert all(of_target.runs_on(*capability) for capability in runs)
    assert not any(of_target.runs_on(*capability) for capability in refused)


def test_the_command_that_builds_it_again(engine_set: EngineSet) -> None:
    plain = engine_set.rebuild_command(Path("b"))
    assert plain == "xclip-deploy build-trt b --fp16 --flavor tensorrt"
    options = BuildOptions(
        workspace_bytes=1024,
        optimization_level=5,
        hardware_compatibility=HardwareCompatibility.AMPERE_PLUS,
        version_compatible=True,
    )
    shapes = {"video-batch": "1:2:3", "no-query-profile": ""}
    full = engine_set.model_copy(update={"options": options, "shape_options": shapes})
    assert full.rebuild_command(Path("b")) == (
        f"{plain} --workspace 1024 --optimization-level 5 --hardware-compatibility ampere-plus "
        "--version-compatible --video-batch 1:2:3 --no-query-profile"
    )
    rtx = engine_set.model_copy(
        update={"options": BuildOptions(compute_capabilities=("sm86", "sm89"))}
    )
    assert rtx.rebuild_command(Path("b")).endswith(
        "--compute-capability sm86 --compute-capability sm89"
    )
