"""Write ``config.pbtxt`` of each model, in protobuf's text format.

Fields and enumerators are those of Triton's ``model_config.proto``; a test parses the output with
that schema. The module writes text itself, so that an export needs no protobuf library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from xclip_deploy.export.triton.description import TritonBackend
from xclip_deploy.runtime.manifest import DType, Graph, TensorSpec
from xclip_deploy.runtime.model_config import ModelConfig

TEXT_TOKENIZER = "text_tokenizer"
TEXT_QUERY = "text_query"

_DTYPES = {
    DType.FLOAT32: "TYPE_FP32",
    DType.FLOAT16: "TYPE_FP16",
    DType.INT32: "TYPE_INT32",
    DType.UINT8: "TYPE_UINT8",
}
MODEL_FILES = {
    TritonBackend.ONNXRUNTIME: "model.onnx",
    TritonBackend.TENSORRT: "model.plan",
    TritonBackend.PYTHON: "model.onnx",
}


class Enumerator(str):
    """A protobuf enumerator, which is written without quotes."""

    __slots__ = ()


Message = Mapping[str, Any]
"""Mapping of field names to a string, int, :class:`Enumerator`, message, or a list of them."""


def graph_config(
    graph: Graph,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    backend: TritonBackend,
    max_batch: int,
    queue_delay_us: int,
    instance_group: Message,
    threads: int | None,
) -> str:
    """Return the configuration of one network.

    ``max_batch``: largest batch; 0 where the first axes are no batch (the scorer's texts and
    videos), which turns dynamic batching off. ``queue_delay_us``: longest time that a request waits
    for others to share its run.
    """
    is_batched = max_batch > 0
    content: dict[str, Any] = {"name": graph.value}
    if backend is TritonBackend.TENSORRT:
        content["platform"] = "tensorrt_plan"
    content |= {
        "backend": backend.value,
        "max_batch_size": max_batch,
        "input": [_tensor(spec, is_batched) for spec in inputs],
        "output": [_tensor(spec, is_batched) for spec in outputs],
        "instance_group": [instance_group],
    }
    if is_batched:
        content["dynamic_batching"] = {"max_queue_delay_microseconds": queue_delay_us}
    if threads is not None:
        content["parameters"] = [_parameter("intra_op_thread_count", str(threads))]
    return to_text(content)


def tokenizer_config(model: ModelConfig, max_batch: int) -> str:
    """Return the configuration of ``text_tokenizer``."""
    return to_text(
        {
            "name": TEXT_TOKENIZER,
            "backend": "python",
            "max_batch_size": max_batch,
            "input": [_field("text", "TYPE_STRING", [1])],
            "output": [
                _field("token_ids", "TYPE_INT32", [model.max_words]),
                _field("num_words", "TYPE_INT32", [1]),
            ],
            "instance_group": [{"kind": Enumerator("KIND_CPU"), "count": 1}],
            # Queued requests are batched without waiting for more: text_encoder waits later.
            "dynamic_batching": {},
            "parameters": [_parameter("max_words", str(model.max_words))],
        }
    )


def query_config(text_outputs: Sequence[TensorSpec], max_batch: int) -> str:
    """Return the configuration of the ensemble ``text_query``: raw texts to embeddings."""
    names = [spec.name for spec in text_outputs]
    return to_text(
        {
            "name": TEXT_QUERY,
            "platform": "ensemble",
            "max_batch_size": max_batch,
            "input": [_field("text", "TYPE_STRING", [1])],
            "output": [
                *(_tensor(spec, is_batched=True) for spec in text_outputs),
                _field("num_words", "TYPE_INT32", [1]),
            ],
            "ensemble_scheduling": {
                "step": [
                    _step(TEXT_TOKENIZER, ["text"], ["token_ids", "num_words"]),
                    _step(Graph.TEXT_ENCODER.value, ["token_ids"], names),
                ]
            },
        }
    )


def to_text(message: Message) -> str:
    """Write a message in protobuf's text format."""
    return "".join(_lines(message, ""))


def _lines(message: Message, indent: str) -> list[str]:
    lines = []
    for name, value in message.items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, Mapping) for each in values):
            text = f"[{', '.join(map(_scalar, values))}]" if value is values else _scalar(value)
            lines.append(f"{indent}{name}: {text}\n")
            continue
        for each in values:
            inner = _lines(each, indent + "  ")
            block = f" {{\n{''.join(inner)}{indent}}}" if inner else " { }"
            lines.append(f"{indent}{name}{block}\n")
    return lines


def _scalar(value: object) -> str:
    is_quoted = isinstance(value, str) and not isinstance(value, Enumerator)
    return json.dumps(value) if is_quoted else str(value)


def _tensor(spec: TensorSpec, is_batched: bool) -> Message:
    """Describe a tensor of a graph; -1 stands for a dynamic axis that is not the batch."""
    shape = spec.shape[1:] if is_batched else spec.shape
    field = _field(
        spec.name, _DTYPES[spec.dtype], [size if isinstance(size, int) else -1 for size in shape]
    )
    # Triton has no empty shape: its clients see [batch] as [batch, 1].
    return field if shape else {**field, "dims": [1], "reshape": {}}


def _field(name: str, data_type: str, dims: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "data_type": Enumerator(data_type), "dims": list(dims)}


def _parameter(key: str, value: str) -> Message:
    return {"key": key, "value": {"string_value": value}}


def _step(model: str, inputs: Sequence[str], outputs: Sequence[str]) -> Message:
    """Describe a step whose tensors keep their names within the ensemble."""
    return {
        "model_name": model,
        "model_version": -1,  # the latest
        "input_map": [{"key": name, "value": name} for name in inputs],
        "output_map": [{"key": name, "value": name} for name in outputs],
    }
