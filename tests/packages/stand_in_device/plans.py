"""Engine sets for the stand-in: a true sidecar, and plans that name the bundle's own graphs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stand_in_device.tensorrt_module import MAGIC
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.engine_set import (
    ENGINES_DIRECTORY,
    SIDECAR_NAME,
    BuildOptions,
    EngineMemory,
    EngineRecord,
    EngineSet,
    Flavour,
    FusedAttention,
    ShapeRange,
    engine_file,
)
from xclip_deploy.runtime.manifest import FileRecord, Graph, Precision, TensorSpec

VERSION = "10.16.1.11"
RTX_VERSION = "1.7.1.116"
Profile = Mapping[str, tuple[int, int]]
"""Smallest and largest size of every dynamic axis, by name."""

BULK: Profile = {"batch": (1, 8), "texts": (1, 8), "videos": (1, 64)}
SINGLE: Profile = {"batch": (1, 1), "texts": (1, 1), "videos": (1, 128)}


def write_engines(
    bundle: Bundle,
    flavour: Flavour,
    precision: Precision = Precision.FP16,
    *,
    profiles: Sequence[Profile] = (SINGLE, BULK),
    weights_bytes: int = 1 << 20,
    scratch_bytes: int = 1 << 16,
    options: BuildOptions | None = None,
    **changes: Any,
) -> Path:
    """Write a set into a bundle; ``changes`` override fields of the sidecar. Its folder."""
    is_rtx = flavour is Flavour.RTX
    fields: dict[str, Any] = {
        "flavour": flavour,
        "version": RTX_VERSION if is_rtx else VERSION,
        "precision": precision,
        "target": "portable" if is_rtx else "sm89",
        "gpu": None if is_rtx else "stand-in device (no GPU)",
        "fingerprint": bundle.manifest.fingerprint,
        "options": options or BuildOptions(),
        "shape_options": {},
        "self_tested": False,
        "created_utc": "2026-01-01T00:00:00+00:00",
    } | changes
    records, plans = {}, {}
    for graph, spec in bundle.manifest.graphs[precision].items():
        ranges = [_ranges(spec.inputs, profile) for profile in profiles]
        header = {
            "name": graph.value,
            "graph": str(bundle.graph_path(graph, precision)),
            # A version that loads in later ones is the one of the machine.
            "module_version": RTX_VERSION if is_rtx else VERSION,
            "version_compatible": fields["options"].version_compatible,
            "weights_bytes": weights_bytes,
            "scratch_bytes": scratch_bytes,
            "inputs": [tensor.model_dump(mode="json") for tensor in spec.inputs],
            "outputs": [tensor.model_dump(mode="json") for tensor in spec.outputs],
            "profiles": [
                {name: [r.min, r.opt, r.max] for name, r in profile.items()} for profile in ranges
            ],
        }
        plan = MAGIC + json.dumps(header).encode()
        plans[graph] = plan
        records[graph] = EngineRecord(
            file=FileRecord(sha256=hashlib.sha256(plan).hexdigest(), size_bytes=len(plan)),
            graph_sha256=bundle.graph_sha256(graph, precision),
            inputs=spec.inputs,
            outputs=spec.outputs,
            profiles=tuple(ranges),
            build_s=0.1,
            memory=EngineMemory(
                source="engine",
                weights_bytes=weights_bytes,
                activation_bytes=(scratch_bytes,) * len(ranges),
                tensor_bytes=(1,) * len(ranges),
            ),
            attention=FusedAttention(blocks=0, expected=0, fused=None),
            float32_islands={},
        )
    engine_set = EngineSet(**fields, engines=records)
    folder = bundle.path / ENGINES_DIRECTORY / engine_set.directory_name
    folder.mkdir(parents=True)
    for graph, plan in plans.items():
        (folder / engine_file(graph)).write_bytes(plan)
    (folder / SIDECAR_NAME).write_text(engine_set.model_dump_json())
    return folder


def rewrite_plan(folder: Path, graph: Graph, plan: bytes) -> None:
    """Put other bytes in an engine's place as if they had been built so."""
    (folder / engine_file(graph)).write_bytes(plan)
    content = json.loads((folder / SIDECAR_NAME).read_text())
    content["engines"][graph.value]["file"] = {
        "sha256": hashlib.sha256(plan).hexdigest(),
        "size_bytes": len(plan),
    }
    (folder / SIDECAR_NAME).write_text(json.dumps(content))


def _ranges(inputs: tuple[TensorSpec, ...], profile: Profile) -> dict[str, ShapeRange]:
    return {
        tensor.name: ShapeRange(
            min=_shape(tensor, {axis: low for axis, (low, _) in profile.items()}),
            opt=_shape(tensor, {axis: high for axis, (_, high) in profile.items()}),
            max=_shape(tensor, {axis: high for axis, (_, high) in profile.items()}),
        )
        for tensor in inputs
    }


def _shape(tensor: TensorSpec, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)
