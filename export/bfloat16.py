"""Run BF16 graphs without BF16 kernels: as FP32 operators whose results are rounded to BF16.

ONNX Runtime's CPU provider runs FP16 graphs that way by itself. It does not run BF16 graphs at
all. This module rewrites each BF16 graph for the comparison with PyTorch. Every BF16 value becomes
FP32 and is rounded to BF16 as soon as it is computed. Weights and other nodes stay the same.

The comparison shows that the graph is right and what BF16's short mantissa costs. As with FP16, it
says nothing about a GPU's arithmetic. It does not round within an operator (the state of an LSTM,
the sum of a product). Hardware keeps FP32 there too.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from xclip_deploy.errors import ExportError
from xclip_deploy.export.graphs import save_graph
from xclip_deploy.export.parity import Tensors, run_bundle
from xclip_deploy.export.reference_inputs import ReferenceInputs
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import MANIFEST_NAME, Graph, Precision, file_records


def run_rounded(bundle: Bundle, inputs: ReferenceInputs) -> Tensors:
    """Run a bundle's BF16 graphs end to end, and return every output as :func:`run_bundle` does.

    The rewritten graphs lie in the bundle's folder meanwhile. They are twice as large as the
    BF16 graphs.
    """
    with TemporaryDirectory(prefix=".rounded-", dir=bundle.path) as folder:
        path = Path(folder)
        specs = bundle.manifest.graphs[Precision.BF16]
        for graph, spec in specs.items():
            round_to_bfloat16(graph, bundle.graph_path(graph, Precision.BF16), path / spec.file)
        # The other files stay as they are.
        for name in (bundle.manifest.tokenizer, bundle.manifest.scorer_weights):
            shutil.copyfile(bundle.path / name, path / name)
        files = file_records(path)
        # The rewritten graphs have FP32 operators alone, so the manifest calls them FP32.
        manifest = bundle.manifest.model_copy(
            update={
                "graphs": {Precision.FP32: specs},
                "video_parts": {},
                "fused_graphs": {},
                "files": files,
            }
        )
        (path / MANIFEST_NAME).write_bytes(manifest.to_json())
        return run_bundle(Bundle.open(path), Precision.FP32, inputs)


def round_to_bfloat16(graph: Graph, source: Path, target: Path) -> None:
    """Write a graph of FP32 operators that computes as the BF16 operators of ``source`` would.

    A graph without BF16 is written unchanged. Raises ExportError for BF16 in an input, an output
    or a constant, where our graphs have none.
    """
    import onnx_ir
    from onnx_ir import DataType

    model = onnx_ir.load(source)
    bfloat16 = onnx_ir.TensorType(DataType.BFLOAT16)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype is DataType.BFLOAT16:
            raise ExportError(f"{graph.value} has {value.name} in BF16 at its boundary")
    for value in model.graph.initializers.values():
        if value.dtype is DataType.BFLOAT16:
            assert value.const_value is not None
            wide = value.const_value.numpy().astype(np.float32)
            value.const_value = onnx_ir.tensor(wide, name=value.name)
            value.type = onnx_ir.TensorType(DataType.FLOAT)
    for node in list(model.graph):
        if any(_is_bfloat16_tensor(attribute) for attribute in node.attributes.values()):
            raise ExportError(f"{graph.value} has a BF16 constant in {node.op_type} {node.name}")
        for output in node.outputs:
            if output.dtype is not DataType.BFLOAT16:
                continue
            output.type = onnx_ir.TensorType(DataType.FLOAT)
            if node.op_type == "Cast":
                node.attributes["to"] = onnx_ir.AttrInt64("to", DataType.FLOAT)
            rounded = onnx_ir.node("Cast", [output], {"to": DataType.BFLOAT16})
            rounded.outputs[0].type = bfloat16
            rounded.outputs[0].shape = output.shape
            widened = onnx_ir.node("Cast", rounded.outputs, {"to": DataType.FLOAT})
            widened.outputs[0].type = onnx_ir.TensorType(DataType.FLOAT)
            widened.outputs[0].shape = output.shape
            onnx_ir.convenience.replace_all_uses_with(output, widened.outputs[0])
            rounded.replace_input_with(0, output)
            model.graph.insert_after(node, [rounded, widened])
    save_graph(graph, model, target)


def _is_bfloat16_tensor(attribute: object) -> bool:
    dtype = getattr(getattr(attribute, "value", None), "dtype", None)
    return str(dtype) == "BFLOAT16"
