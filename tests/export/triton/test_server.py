"""The repository on a real Triton Inference Server, on the CPU.

The ``nvidia-pytriton`` wheel carries the server with its Python backend, and with no other. So
what runs here is a repository of backend ``python``: the same models, tensors, batching and
ensemble as with the other backends, whose configurations differ in the backend's name alone.
Of those, the server checks the configuration, up to where it misses the backend.

The server's Python is an environment of its own, as its Python backend wants NumPy 1::

    python3.11 -m venv DIR && DIR/bin/pip install nvidia-pytriton '.[cpu]'
    XCLIP_TRITON_ENV=DIR pytest tests/export/triton/test_server.py
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from xclip_deploy import Bundle, DeployedModel, export_triton
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.sessions import SessionOptions

ENVIRONMENT = os.environ.get("XCLIP_TRITON_ENV")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        ENVIRONMENT is None, reason="XCLIP_TRITON_ENV names no environment with nvidia-pytriton"
    ),
]
TEXTS = ["a man is driving a car", "naïve &amp; 東京 🎬", "word " * 100, "", "A DOG"]
WHERE = """
import json, pathlib, sys, pytriton
print(json.dumps([str(pathlib.Path(pytriton.__file__).parent), "%d.%d" % sys.version_info[:2]]))
"""
NUMPY_TYPES = {"FP32": np.float32, "INT32": np.int32}


class RefusedError(Exception):
    """The server's answer to a request that it does not take: status and message."""


class Server:
    """A running server, spoken to over HTTP."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/v2/{path}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def infer(self, model: str, **inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """One request; raises RefusedError where the server refuses it."""
        types = {"float32": "FP32", "int32": "INT32", "uint8": "UINT8", "object": "BYTES"}
        content = {
            "inputs": [
                {
                    "name": name,
                    "shape": list(array.shape),
                    "datatype": types[array.dtype.name],
                    "data": array.reshape(-1).tolist(),
                }
                for name, array in inputs.items()
            ]
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v2/models/{model}/infer",
            data=json.dumps(content).encode(),
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                outputs = json.loads(answer.read())["outputs"]
        except urllib.error.HTTPError as error:
            with error:
                message = error.read().decode()
            raise RefusedError(error.code, message) from None
        return {
            output["name"]: np.array(output["data"], dtype=NUMPY_TYPES[output["datatype"]]).reshape(
                output["shape"]
            )
            for output in outputs
        }


@dataclass(frozen=True)
class Installed:
    """The server of the wheel, ready to be started."""

    python: Path
    home: Path
    libraries: Path
    backends: Path

    def launch(self, repository: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(self.libraries),
        }
        command: list[str | Path] = [
            self.home / "bin" / "tritonserver",
            f"--model-repository={repository}",
            f"--backend-directory={self.backends}",
            "--http-address=127.0.0.1",
            f"--http-port={port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
            "--disable-auto-complete-config",
            "--exit-timeout-secs=10",
        ]
        with log.open("wb") as output:
            # Not in the repository's root, whose folders Python would take for the package.
            return subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, cwd=log.parent
            )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    assert ENVIRONMENT is not None
    python = Path(ENVIRONMENT).absolute() / "bin" / "python"
    found = subprocess.run([python, "-c", WHERE], capture_output=True, text=True, check=True)
    package, version = json.loads(found.stdout)
    home = Path(package) / "tritonserver"
    # The backend wants the stub for the server's Python beside itself.
    backends = tmp_path_factory.mktemp("triton") / "backends"
    shutil.copytree(home / "backends", backends)
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    return Installed(python, home, Path(package).parent / "nvidia_pytriton.libs", backends)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def server(
    installed: Installed, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    # Long enough for requests sent at the same time to meet.
    export_triton(bundle, folder / "r", backend="python", threads=1, queue_delay_us=300_000)
    port = free_port()
    process = installed.launch(folder / "r", port, folder / "log")
    try:
        wait_until_ready(process, port, folder / "log")
        yield Server(port)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Iterator[DeployedModel]:
    with DeployedModel(bundle, SessionOptions(device="cpu")) as opened:
        yield opened


def as_text(texts: list[str]) -> npt.NDArray[np.object_]:
    return np.array([[text] for text in texts], dtype=object)


def close(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_all_models_are_ready(server: Server) -> None:
    for name in (*(graph.value for graph in Graph), "text_tokenizer", "text_query"):
        assert server.get(f"models/{name}")["name"] == name
        server.get(f"models/{name}/ready")


def test_token_ids_are_identical(server: Server, model: DeployedModel) -> None:
    found = server.infer("text_tokenizer", text=as_text(TEXTS))
    expected = model.tokenizer.encode(TEXTS, model.config.max_words)
    np.testing.assert_array_equal(found["token_ids"], expected)
    assert found["num_words"].shape == (len(TEXTS), 1)


def test_raw_texts_to_embeddings(server: Server, model: DeployedModel) -> None:
    found = server.infer("text_query", text=as_text(TEXTS))
    expected = model.encode_texts(TEXTS)
    close(found["sentence_features"], expected.sentence_features)
    close(found["word_features"], expected.word_features)
    np.testing.assert_array_equal(found["num_words"][:, 0], expected.num_words)


def test_text_to_score(server: Server, model: DeployedModel) -> None:
    """The whole way: texts and frames in, logits and grains out."""
    size, most = model.config.vision.image_size, model.config.max_frames
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, most, size, size, 3), dtype=np.uint8)
    num_frames = np.array([most, 3], dtype=np.int32)
    videos = server.infer("video_encoder", frames=frames, num_frames=num_frames[:, np.newaxis])
    expected_videos = model.encode_frames(frames, num_frames)
    close(videos["video_features"], expected_videos.video_features)
    close(videos["frame_features"], expected_videos.frame_features)
    texts = server.infer("text_query", text=as_text(TEXTS))
    del texts["num_words"]
    found = server.infer("scorer", **texts, **videos)
    expected = model.score(model.encode_texts(TEXTS), expected_videos)
    np.testing.assert_allclose(found["logits"], expected.logits, rtol=0, atol=1e-3)
    for name, grain in expected.grains.items():
        close(found[name], grain)


def test_requests_share_a_run(server: Server, model: DeployedModel) -> None:
    before = server.get("models/text_encoder/stats")["model_stats"][0]
    texts = [f"request number {number}" for number in range(8)]
    with ThreadPoolExecutor(len(texts)) as pool:
        answers = list(
            pool.map(lambda text: server.infer("text_query", text=as_text([text])), texts)
        )
    after = server.get("models/text_encoder/stats")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == len(texts)
    assert after["execution_count"] - before["execution_count"] < len(texts)
    # And each gets its own answer.
    expected = model.encode_texts(texts)
    for answer, row in zip(answers, expected.sentence_features, strict=True):
        close(answer["sentence_features"][0], row)


def test_a_text_too_long_fails_alone(server: Server) -> None:
    with pytest.raises(RefusedError, match="at most 1,000,000 are read"):
        server.infer("text_query", text=as_text(["x" * 1_000_001]))
    server.infer("text_query", text=as_text(["a dog"]))


@pytest.mark.parametrize("shape", [(65, 1), (1, 2), (1,)])
def test_shapes_that_the_configuration_forbids(server: Server, shape: tuple[int, ...]) -> None:
    with pytest.raises(RefusedError) as caught:
        server.infer("text_query", text=np.full(shape, "a dog", dtype=object))
    assert caught.value.args[0] == 400


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_the_server_takes_the_other_configurations(
    installed: Installed, bundle_copy: Path, add_engines: Any, tmp_path: Path, backend: str
) -> None:
    """All that it misses is the backend, which the wheel does not have."""
    add_engines(bundle_copy)
    export_triton(bundle_copy, tmp_path / "r", backend=backend)  # type: ignore[arg-type]
    process = installed.launch(tmp_path / "r", free_port(), tmp_path / "log")
    assert process.wait(timeout=60) != 0
    log = (tmp_path / "log").read_text()
    for graph in Graph:
        assert (
            f"failed to load '{graph.value}' version 1: Invalid argument: unable to find backend "
            f"library for backend '{backend}'"
        ) in log
    assert "successfully loaded 'text_tokenizer'" in log
    assert "Poll failed" not in log
