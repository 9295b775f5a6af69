"""Write the fused graphs of a bundle beside the plain ones, and compare them with PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xclip_deploy.export.fused_graphs.rewriting import expected_operators, fuse
from xclip_deploy.export.graphs import check_boundary, save_graph
from xclip_deploy.export.parity import TOLERANCES, Tensors, compare
from xclip_deploy.export.reference_inputs import ReferenceInputs
from xclip_deploy.export.weights_file import WeightsFile
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import (
    AnyGraph,
    FusedSpec,
    Graph,
    GraphSpec,
    Manifest,
    ParityMethod,
    ParityRecord,
    Precision,
    VideoPart,
)
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.sessions.backend import Placement
from xclip_deploy.runtime.sessions.onnx_runtime import OnnxRuntime
from xclip_deploy.runtime.sessions.onnx_session import OnnxRuntimeSession
from xclip_deploy.runtime.valid_frames import ValidFrameEncoder

FUSED_PRECISIONS = (Precision.FP32, Precision.FP16)
"""Precisions that have fused graphs. ONNX Runtime has no fused operators for the others."""


def write_fused(
    graph: AnyGraph,
    precision: Precision,
    plain: GraphSpec,
    config: ModelConfig,
    directory: Path,
    weights: WeightsFile,
) -> FusedSpec | str:
    """Write the fused graph of a plain one that lies below ``directory``.

    ``weights``: file of the plain graph's weights, which is still open. Returns the description of
    the graph, or the reason why it has none. Raises ExportError where the ONNX checker refuses it.
    """
    import onnx_ir

    model = onnx_ir.load(directory / plain.file)
    found, expected = fuse(model), expected_operators(config, graph, precision)
    if found != expected:
        return f"{_listed(found)} found to fuse, expected {_listed(expected)}"
    if not found:
        return "it has no operators to fuse"
    spec = FusedSpec(
        file=plain.file.replace(".onnx", ".fused.onnx"),
        inputs=plain.inputs,
        outputs=plain.outputs,
        weights=(f"{Path(plain.file).parent.as_posix()}/{weights.path.name}",),
        operators=found,
    )
    save_graph(graph, model, directory / spec.file, weights)
    check_boundary(directory / spec.file, graph, spec)
    return spec


def check_fused(
    bundle: Bundle, inputs: ReferenceInputs, reference: Tensors
) -> tuple[Manifest, list[ParityRecord], list[str]]:
    """Run the fused graphs of an unfinished bundle on the CPU, and compare them with PyTorch.

    Fused graphs that are out of tolerance are deleted. Returns the manifest without them, the
    records of the others, and a line on each that was deleted.
    """
    manifest = bundle.manifest
    records: list[ParityRecord] = []
    notes: list[str] = []
    for precision, specs in list(manifest.fused_graphs.items()):
        found = _run(bundle, precision, inputs)
        expected = {key: reference[key] for key in found}
        compared = compare(expected, found, precision, 1.0, ParityMethod.FUSED)
        failed = {record.graph: record for record in compared if not record.passed}
        for graph, record in failed.items():
            file = specs[graph].file
            (bundle.path / file).unlink()
            manifest = manifest.without_fused(graph, precision)
            allowed = TOLERANCES[precision].feature
            notes.append(
                f"{file} is left out: {record.tensor} differs from PyTorch by "
                f"{record.max_abs_error:.2g}, allowed {allowed:.2g}"
            )
        records += [record for record in compared if record.graph not in failed]
    return manifest, records, notes


def _run(bundle: Bundle, precision: Precision, inputs: ReferenceInputs) -> Tensors:
    """Return every output of the fused graphs of a precision, on the CPU."""
    manifest = bundle.manifest
    specs = manifest.fused_graphs[precision]
    arithmetic = next(each for each in OnnxRuntime.arithmetics["cpu"] if each.graphs is precision)
    placement = Placement(OnnxRuntime.name, "cpu", arithmetic)

    def opened(graph: AnyGraph) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(bundle, graph, placement, is_fused=graph in specs)

    found: Tensors = {}
    given: dict[AnyGraph, dict[str, AnyArray]] = {
        Graph.TEXT_ENCODER: {"token_ids": inputs.token_ids},
        Graph.VIDEO_ENCODER: {"frames": inputs.frames, "num_frames": inputs.num_frames},
    }
    for graph, feeds in given.items():
        if graph in specs:
            session = opened(graph)
            found |= {(graph, name): array for name, array in session.run(feeds).items()}
            session.close()
    if precision not in manifest.video_parts:
        return found
    halves = ValidFrameEncoder(opened, manifest.model)
    rows = zip(inputs.frames, inputs.num_frames, strict=True)
    valid = [row[:count] for row, count in rows]
    if VideoPart.FRAME_ENCODER in specs:
        raw = halves.embed(np.concatenate(valid))
        found[VideoPart.FRAME_ENCODER, "frame_raw"] = raw
    if VideoPart.TEMPORAL_HEAD in specs:
        head = halves.encode(valid)
        found |= {(VideoPart.TEMPORAL_HEAD, name): array for name, array in head.items()}
    halves.close()
    return found


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
