"""Embed texts by Triton Inference Server, with nothing but the standard library.

    xclip-deploy export-triton && tritonserver --model-repository xclip-triton
    python triton_client.py http://127.0.0.1:8000 "a dog on a leash"

NOT VERIFIED against a server over HTTP. A real Triton has served the repository's Python backend
in process; this client follows the KServe protocol, version 2, that Triton's HTTP port speaks.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any


def main() -> None:
    """Ask the ensemble ``text_query`` for the embeddings of the texts."""
    if len(sys.argv) < 3:
        sys.exit((__doc__ or "").strip())
    address, *texts = sys.argv[1:]
    for name, shape in embed(address, texts).items():
        print(name, shape)


def request_of(texts: list[str]) -> dict[str, Any]:
    """Return the body of a request for T texts: bytes [T, 1]."""
    return {
        "inputs": [
            {"name": "text", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts},
        ],
        "outputs": [{"name": "sentence_features"}, {"name": "word_features"}],
    }


def embed(address: str, texts: list[str]) -> dict[str, list[int]]:
    """Return the shape of each output; ``output["data"]`` holds its numbers, row by row."""
    request = urllib.request.Request(  # noqa: S310 - the address is the user's own
        f"{address}/v2/models/text_query/infer",
        data=json.dumps(request_of(texts)).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        answer = json.load(response)
    return {output["name"]: output["shape"] for output in answer["outputs"]}


if __name__ == "__main__":
    main()
