"""A client and a server process that is killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy import Client
from xclip_deploy.errors import ServiceAccessError, ServiceConnectionError
from xclip_deploy.service import ServiceSettings

TOKEN = "a-token-of-the-tests-0123456789"


@contextmanager
def process_of(settings: ServiceSettings, port: int) -> Iterator[subprocess.Popen[str]]:
    """Run the command until it takes requests."""
    program = Path(sys.executable).with_name("xclip-deploy")
    places = ["--gallery", settings.gallery, "--data", settings.data, "--port", port]
    words = [program, "serve", settings.bundle, *places, "--device", "cpu", "--threads", 1]
    process = subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "XCLIP_DEPLOY_TOKEN": TOKEN},
    )
    assert process.stdout is not None
    try:
        assert f":{port}" in process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.mark.slow
def test_a_job_is_followed_over_a_killed_server(
    settings_of: Callable[..., Any], videos_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, port = settings_of(), free_port()
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("XCLIP_DEPLOY_TOKEN", TOKEN)
    files = sorted((videos_path / "shapes").rglob("*.mp4"))
    with Client(address) as client:
        with process_of(settings, port) as process:
            assert len(client.search("a red square")) > 0
            count = client.stats().num_videos
            assert client.remove(where="split != 'none'") == len(files)
            job = client.upload(files, metadata={"caption": "again", "split": "x"}, segment="8s")
            events = job.events()
            first = next(events)
            process.kill()
            process.wait()
        with Client(address, retries=0) as other, pytest.raises(ServiceConnectionError):
            other.stats()
        with process_of(settings, port):
            states = [first, *events]
            assert states[-1].state == "done"
            report = job.wait()
            assert len(report.indexed) + len(report.unchanged) == len(files), report
            assert client.stats().num_videos == count
            assert len(client.search("again", where="split = 'x'")) == len(files)
            with (
                Client(address, token="another-token-of-16") as stranger,
                pytest.raises(ServiceAccessError),
            ):
                stranger.stats()
