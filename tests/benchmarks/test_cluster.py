"""The benchmark of a Ray cluster at its toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_toy_of_a_cluster(bundle_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'xclip-deploy[cluster]'")
    command = [sys.executable, "-m", "benchmarks.cluster", "--toy"]
    command += ["--bundle", str(bundle_path), "--output", str(tmp_path), "--work", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads((tmp_path / "cluster.json").read_text())
    for count in (1, 3, 8):
        found = content[f"shards_{count}"]
        assert len(found["fan_out_ms"]) == len(found["two_stage_ms"]) == 5
    assert len(content["one_committer_per_s"]) == len(content["three_committers_per_s"]) == 2
    # Three nodes are about a dozen processes.
    assert content["idle_bytes"] > 1e8
    page = (tmp_path / "cluster.md").read_text(encoding="utf-8")
    assert page in done.stdout
    assert "| fan-out, 3 shards, ms |" in page
    assert max(map(len, page.splitlines())) <= 80
