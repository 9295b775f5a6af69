"""One gallery, and the same videos in three shards."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_galleries import Nodes, line_of, running_nodes, write_shards
from segment_samples import Planter, together

from xclip_deploy import Bundle, Gallery
from xclip_deploy.runtime.video.segmentation import Segmentation

SHARDS = 3
NODES = 3
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
    write_shards(found.sharded, bundle, videos, SHARDS)
    return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster of three nodes, which ends with the module."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'xclip-deploy[cluster]'")
    with running_nodes(NODES) as found:
        yield found


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

    def run(gallery: Path, *arguments: str) -> dict[str, Any]:
        return line_of("cluster_program.py", bundle_path, gallery, *arguments)

    return run
