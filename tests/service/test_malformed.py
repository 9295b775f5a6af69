"""Requests that schemathesis makes of the server's own description, valid ones and broken ones.

It runs as a process of its own. Each answer is held against the description: its status, type,
headers and body. ``/events`` is left out, as its streams do not end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest
from served_programs import MORE_BYTES, Program, answers_of, memory_of, wait_for_all

from xclip_deploy.wire import API

pytestmark = pytest.mark.skipif(
    find_spec("schemathesis") is None, reason="schemathesis, which needs Python 3.11, is missing"
)
SEED = 15
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)

CHECKED = "\n".join(f"{name} = {{ enabled = true }}" for name in CHECKS)
SETTINGS = f"""
[generation]
database = "none"

[checks]
enabled = false
{CHECKED}

# Every content of a part is bytes, so that none breaks the description.
[[operations]]
include-path = "{API}/videos"
include-method = "POST"
checks = {{ negative_data_rejection = {{ enabled = false }} }}

# Other methods take "remove" for the handle of a video.
[[operations]]
include-path = "{API}/videos/remove"
checks = {{ allow_header_conformance = {{ enabled = false }} }}
"""


def attack(address: Any, folder: Path, *options: str, handle: str | None = None) -> None:
    """Send what schemathesis makes of the description. Fails with its report.

    ``handle``: video that all requests name in their address; None makes names up.
    """
    settings = folder / "schemathesis.toml"
    fixed = "" if handle is None else f'[parameters]\n"path.handle" = "{handle}"\n'
    settings.write_text(fixed + SETTINGS)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings)),
        *("run", f"{address}{API}/openapi.json", "--seed", str(SEED), "--no-color"),
        *("--exclude-path", f"{API}/events", "--continue-on-failure"),
        *("--request-timeout", "120", *options),
    ]
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_boundary_values(open_live: Callable[..., str], tmp_path: Path) -> None:
    """Addresses of reading, with values at and outside every bound."""
    address = open_live()
    attack(address, tmp_path, "--phases", "coverage", "--include-method", "GET")
    with httpx2.Client(base_url=address) as client:
        answers = answers_of(client)
        assert client.get("/health/ready").status_code == 200
    assert sum(answers.values()) > 100, answers
    assert max(answers) < 500, answers


@pytest.mark.slow
def test_hundreds_of_requests(
    bundle_path: Path, gallery_path: Path, videos_path: Path, tmp_path: Path
) -> None:
    """Every address, and then those of one video that is there."""
    shutil.copytree(gallery_path, tmp_path / "gallery")
    program = Program(bundle_path, tmp_path, "--root", str(videos_path))
    with program.running() as (process, client):
        (handle,) = (
            video["handle"]
            for video in client.get(f"{API}/videos").json()["videos"]
            if video["name"] == "numbers.mp4"
        )
        attack(client.base_url, tmp_path, "--max-examples", "15")
        before = memory_of(process.pid)  # every address has loaded what it needs
        one = ("--max-examples", "10", "--exclude-method", "DELETE")
        attack(client.base_url, tmp_path, "--include-path-regex", "handle", *one, handle=handle)
        answers = answers_of(client)
        assert process.poll() is None
        assert client.get("/health/ready").status_code == 200
        jobs = wait_for_all(client)
        assert {job["state"] for job in jobs.values()} <= {"done", "cancelled"}, jobs
        grown = memory_of(process.pid) - before
    assert sum(answers.values()) >= 500, answers
    assert max(answers) < 500, answers
    assert {200, 202, 404, 415, 422} <= answers.keys(), answers
    assert grown < MORE_BYTES, grown
    log = program.log.read_text()
    assert "Traceback" not in log, log
