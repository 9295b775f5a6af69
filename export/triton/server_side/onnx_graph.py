"""Run one ONNX graph on ONNX Runtime's CPU provider, in Triton's Python backend.

This serves servers without Triton's own ONNX Runtime backend, which is faster: here tensors pass
through shared memory and Python. The server's Python needs onnxruntime.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


class TritonPythonModel:
    """The graph ``model.onnx`` beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph. The server calls this once; see Triton's Python backend for ``args``."""
        # The module exists in the server alone.
        import triton_python_backend_utils

        self._server: Any = triton_python_backend_utils
        try:
            import onnxruntime
        except ImportError as error:
            raise self._server.TritonModelException(
                f"{args['model_name']} needs onnxruntime in the server's Python ({error}); "
                "run there: pip install onnxruntime"
            ) from error
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        threads = config["parameters"].get("intra_op_thread_count")
        if threads is not None:
            options.intra_op_num_threads = int(threads["string_value"])
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session: Any = onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._ranks = {node.name: len(node.shape) for node in self._session.get_inputs()}
        self._outputs = [node.name for node in self._session.get_outputs()]
        self._is_batched = config["max_batch_size"] > 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests, in one run of the graph where the first axis is a batch."""
        given = [self._inputs(request) for request in requests]
        if not self._is_batched:
            return [self._response(self._run(inputs)) for inputs in given]
        outputs = self._run(
            {name: np.concatenate([inputs[name] for inputs in given]) for name in self._ranks}
        )
        rows = np.cumsum([len(next(iter(inputs.values()))) for inputs in given])[:-1]
        parts = [np.split(array, rows) for array in outputs]
        return [self._response(list(arrays)) for arrays in zip(*parts, strict=True)]

    def _inputs(self, request: Any) -> dict[str, Any]:  # noqa: ANN401 - the server's types
        found = {}
        for name, rank in self._ranks.items():
            array = self._server.get_input_tensor_by_name(request, name).as_numpy()
            # The server has no empty shape: it gives a graph's [batch] as [batch, 1].
            found[name] = array.reshape(array.shape[:rank])
        return found

    def _run(self, inputs: dict[str, Any]) -> list[Any]:
        arrays: list[Any] = self._session.run(self._outputs, inputs)
        return arrays

    def _response(self, arrays: list[Any]) -> Any:  # noqa: ANN401
        tensors = [
            self._server.Tensor(name, array)
            for name, array in zip(self._outputs, arrays, strict=True)
        ]
        return self._server.InferenceResponse(tensors)
