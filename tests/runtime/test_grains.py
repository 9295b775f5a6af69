"""The table of grains, and that it stays the only place that names them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xclip_deploy.runtime.grains import (
    CLIP_GRAINS,
    GRAINS,
    LENGTHS,
    PUBLISHED_GRAINS,
    Grain,
    matrices_over,
    matrix_shapes,
)

ROOT = Path(__file__).parents[2]
MAY_NAME_GRAINS = {
    "runtime/grains.py",
    "training/scorer.py",
    "runtime/evidence/decomposition.py",
    "runtime/resident/gpu_scan.py",
    "runtime/resident/kernel_set.py",
    "runtime/resident/scan_inputs.py",
    "runtime/search/video_grains.py",
    "runtime/sessions/scorer_graphs.py",
    "xclip_deploy/wire/evidence.py",
}
PUBLISHED_SHAPES = {
    "global_mat_weight": (16, 16),
    "word_logit_weight": (7, 7),
    "frame_logit_weight": (3, 3),
    "local_mat_weight": (16, 16),
    "word_mat_weight": (7, 7),
    "frame_mat_weight": (3, 3),
    "word_mat_weight2": (7, 7),
    "frame_mat_weight2": (3, 3),
}


def dimensions(**changes: Any) -> Any:
    fields = {"embed_dim": 16, "max_words": 7, "max_frames": 3, "sentence_projection": True}
    return SimpleNamespace(**(fields | {"grains": PUBLISHED_GRAINS} | changes))


def test_every_grain_has_an_entry() -> None:
    assert list(GRAINS) == list(Grain)
    names = [name for entry in GRAINS.values() for name in entry.matrices]
    assert len(set(names)) == len(names)
    for entry in GRAINS.values():
        assert entry.projections <= set(entry.matrices)
        assert entry.reads_words == (entry.text in LENGTHS)
        assert entry.reads_frames == (entry.video in LENGTHS)


def test_the_published_models() -> None:
    assert [grain.value for grain in PUBLISHED_GRAINS] == [
        "video_sentence",
        "video_word",
        "frame_sentence",
        "frame_word",
    ]
    # The order is that of the optimizer's state in checkpoints of a run.
    assert list(matrix_shapes(dimensions()).items()) == list(PUBLISHED_SHAPES.items())
    backwards = dimensions(grains=PUBLISHED_GRAINS[::-1])
    assert list(matrix_shapes(backwards)) == list(PUBLISHED_SHAPES)
    assert matrix_shapes(dimensions(grains=CLIP_GRAINS, sentence_projection=False)) == {}
    assert list(matrix_shapes(dimensions(grains=CLIP_GRAINS))) == ["global_mat_weight"]


def test_matrices_by_axis() -> None:
    assert set(matrices_over("words")) == {
        "word_logit_weight",
        "word_mat_weight",
        "word_mat_weight2",
    }
    assert set(matrices_over("embed")) == {"global_mat_weight", "local_mat_weight"}


def test_names_for_people() -> None:
    assert Grain.VIDEO_SENTENCE.spoken == "video–sentence"


# The only place


def names_in(source: str) -> Iterator[str]:
    """Grains and their matrices that a module names: in prose they may be named anywhere."""
    known = {grain.value for grain in Grain} | {
        name for entry in GRAINS.values() for name in entry.matrices
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            is_member = isinstance(node.value, ast.Name) and node.value.id == "Grain"
            found: object = node.attr.lower() if is_member else node.attr
        elif isinstance(node, ast.Constant):
            found = node.value
        elif isinstance(node, ast.Name):
            found = node.id
        elif isinstance(node, ast.keyword | ast.arg):
            found = node.arg
        else:
            continue
        if found in known:
            yield str(found)


@pytest.mark.parametrize(
    "source",
    [
        'parts["frame_word"]',
        "Grain.FRAME_WORD in config.grains",
        "hit.grains.video_word",
        "GrainScores(video_sentence=1)",
        "weights.matrices.get('word_mat_weight2')",
        "frame_sentence: float",
    ],
)
def test_what_counts_as_naming_a_grain(source: str) -> None:
    assert list(names_in(source))


def test_prose_may_name_grains() -> None:
    assert not list(names_in('"""The grain ``frame_word``."""\n# Grain.FRAME_WORD\nGrain(name)'))


def test_grains_are_named_in_the_recipes_files_alone() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("xclip_deploy", "training", "export", "runtime")
        for path in (ROOT / folder).rglob("*.py")
        if list(names_in(path.read_text("utf-8")))
    }
    assert found == MAY_NAME_GRAINS
    recipe = (
        (ROOT / "CONTRIBUTING.md")
        .read_text("utf-8")
        .partition("### A grain")[2]
        .partition("\n### ")[0]
    )
    for name in MAY_NAME_GRAINS:
        assert f"`{name}`" in recipe
