"""One gallery, and the same videos in three shards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from segment_samples import Planter, together

from xclip_deploy import Bundle, Gallery
from xclip_deploy.runtime.cluster import create_shards, publish_shards
from xclip_deploy.runtime.video.segmentation import Segmentation

SHARDS = 3
PROGRAM = Path(__file__).parents[2] / "packages" / "cluster_program.py"
RunCluster = Callable[..., dict[str, Any]]


@dataclass
class Galleries:
    """Where the same 60 videos lie, whole and divided."""

    whole: Path
    sharded: Path


@pytest.fixture(scope="session")
def made(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Galleries:
    """Not to be changed."""
    tmp_path = tmp_path_factory.mktemp("shards")
    planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 4.0))
    rng = np.random.default_rng(1)
    videos = [
        planter.video(f"v{n:03d}", rng.uniform(0, 2, 1 + n % 4), kind=f"k{n % 3}")
        for n in range(60)
    ]
    found = Galleries(tmp_path / "whole", tmp_path / "sharded")
    whole = Gallery.open(found.whole, bundle.manifest, create=True)
    whole.add(*together(videos))
    whole.close()
    create_shards(found.sharded, bundle.manifest, SHARDS)
    for number in range(SHARDS):
        shard = Gallery.open(found.sharded / f"shard-{number:03d}")
        shard.add(*together(videos[number::SHARDS]))
        shard.close()
    publish_shards(found.sharded)
    return found


@pytest.fixture
def galleries(made: Galleries, tmp_path: Path) -> Galleries:
    """A copy that a test may change."""
    found = Galleries(tmp_path / "whole", tmp_path / "sharded")
    shutil.copytree(made.whole, found.whole)
    shutil.copytree(made.sharded, found.sharded)
    return found


@pytest.fixture
def run_cluster(bundle_path: Path) -> RunCluster:
    """Return a function that runs the program on a Ray cluster of its own, and reads its line."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'xclip-deploy[cluster]'")

    def run(gallery: Path, *arguments: str, timeout_s: float = 240) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, PROGRAM, bundle_path, gallery, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        # Ray's own messages precede it.
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        assert done.returncode == 0, done.stderr[-3000:]
        outcome: dict[str, Any] = json.loads(lines[-1])
        return outcome

    return run
