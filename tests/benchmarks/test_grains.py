"""The comparison of grains: that every variant is a model, and what the table says of runs."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from xclip_deploy import resolve_config
from xclip_deploy.runtime.model_config import Family
from xclip_deploy.training.datasets.generated import SplitSizes, make_videos
from xclip_deploy.training.model import XClip


@pytest.fixture(scope="module")
def grains() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "grains.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_grains", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_every_variant_is_the_model_that_its_name_says(grains: ModuleType) -> None:
    families = {}
    for variant in grains.VARIANTS:
        settings = [
            f"start.architecture.{key}={json.dumps(value)}"
            for key, value in variant.architecture.items()
        ]
        config = resolve_config("demo", overrides=settings).start.architecture
        assert config is not None
        XClip(config)
        families[variant.name] = config.family
        if "without" in variant.name:
            assert len(config.grains) == 3
    assert families["CLIP4Clip-meanP"] is Family.CLIP  # CLIP pools as it does
    assert families["CLIP4Clip-seqTransf"] is Family.CLIP4CLIP
    assert list(families.values()).count(Family.XCLIP) == 6
    assert len(families) == 8


@pytest.mark.parametrize("toy", [False, True])
def test_runs_are_configured_for_the_videos_that_are_made(
    grains: ModuleType, tmp_path: Path, toy: bool
) -> None:
    budget = grains.TOY if toy else grains.Budget()
    for variant in grains.VARIANTS:
        config = grains.configuration(variant, 0, tmp_path, budget)
        sizes = SplitSizes(**config.data.generated.model_dump(exclude={"seed", "excerpts"}))
        assert sizes == budget.sizes
    # make_videos draws with the seed of its own default.
    assert config.data.generated.seed == inspect.signature(make_videos).parameters["seed"].default


def test_table_and_picture(grains: ModuleType, tmp_path: Path) -> None:
    runs: list[dict[str, Any]] = [
        {
            "variant": variant.name,
            "seed": seed,
            "steps": 10,
            "text_to_video": {"recall_at_1": 10.0 * seed, "recall_at_5": 50.0, "mean_rank": 2.0},
            "video_to_text": {"recall_at_1": 7.0},
        }
        for variant in grains.VARIANTS
        for seed in (1, 2, 3)
    ]
    content = {"steps": 10, "held_out": 200, "runs": runs}
    lines = grains.table(content).splitlines()
    assert lines[-8] == "| CLIP4Clip-meanP | 20.0 ± 10.0 | 50.0 ± 0.0 | 2.0 ± 0.0 | 7.0 ± 0.0 |"
    assert "over 3 seeds" in lines[0]
    grains.draw_grains(content, tmp_path / "grains.png")
    assert (tmp_path / "grains.png").read_bytes().startswith(b"\x89PNG")
