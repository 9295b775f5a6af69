"""Turn texts into token ids, in Triton's Python backend.

The tokenizer of ``xclip_deploy.runtime`` reads the ``tokenizer.json`` beside this file, so that the
server cuts texts as training and the Retriever do. The server's Python needs xclip-deploy; the base
install suffices (no PyTorch, no ONNX Runtime).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


class TritonPythonModel:
    """Model from ``text`` [T, 1] to ``token_ids`` int32 [T, W] and ``num_words`` int32 [T, 1]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer. The server calls this once; see Triton's Python backend."""
        # The module exists in the server alone.
        import triton_python_backend_utils

        try:
            from xclip_deploy.errors import InvalidArgumentError
            from xclip_deploy.runtime.tokenizer import Tokenizer, count_tokens
        except ImportError as error:
            raise triton_python_backend_utils.TritonModelException(
                f"text_tokenizer needs xclip-deploy in the server's Python ({error}); "
                "run there: pip install xclip-deploy"
            ) from error
        self._count_tokens = count_tokens
        self._server: Any = triton_python_backend_utils
        self._refused: type[Exception] = InvalidArgumentError
        config = json.loads(args["model_config"])
        self._max_words = int(config["parameters"]["max_words"]["string_value"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self._tokenizer = Tokenizer.open(folder / "tokenizer.json")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request. A text that cannot be read fails its own request alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:  # noqa: ANN401 - the server's types
        server = self._server
        given = server.get_input_tensor_by_name(request, "text").as_numpy()
        try:
            texts = [text.decode("utf-8") for text in given.reshape(-1)]
            token_ids = self._tokenizer.encode(texts, self._max_words)
        except UnicodeDecodeError as error:
            return self._failure(f"text: expected UTF-8 ({error})")
        except self._refused as error:
            return self._failure(str(error))
        num_words = self._count_tokens(token_ids)[:, np.newaxis]
        return server.InferenceResponse(
            [server.Tensor("token_ids", token_ids), server.Tensor("num_words", num_words)]
        )

    def _failure(self, message: str) -> Any:  # noqa: ANN401
        return self._server.InferenceResponse(error=self._server.TritonError(message))
