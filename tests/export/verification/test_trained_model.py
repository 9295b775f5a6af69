"""A model that has learned something: its precisions must retrieve as it does.

Random weights cannot show this: their scores hardly differ, and any rounding changes ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from xclip_deploy import (
    evaluate,
    export_bundle,
    open_dataset,
    resolve_config,
    train,
    verify_bundle,
)
from xclip_deploy.export.verification import Certificate
from xclip_deploy.runtime.manifest import Precision
from xclip_deploy.runtime.sessions.openvino import backend as openvino_backend
from xclip_deploy.runtime.sessions.openvino.backend import why_no_bf16, why_no_openvino
from xclip_deploy.training.datasets.generated import SplitSizes, make_videos

pytestmark = pytest.mark.slow
missing = why_no_openvino() or why_no_bf16()
if missing is None and find_spec("nncf") is None:
    missing = "NNCF is not installed; run: pip install 'xclip-deploy[int8-weights]'"


QUERIES = 800
"""Of 200, a few near ties that move the same way are more than a point: of one model, INT8 raised
R@1 by 1.5 points on 200 queries and lowered it by 0.9 on 800."""


@pytest.fixture(scope="module")
def folder(once_per_run: Callable[..., Path]) -> Path:
    """A run of the demo preset, and a certificate of every precision of its model."""

    def make(folder: Path) -> None:
        train(resolve_config("demo"), folder / "run")
        checkpoint = folder / "run" / "last.pt"
        export_bundle(
            checkpoint, folder / "bundle", int8=True, bf16=True, int8_weights=missing is None
        )
        # Of another seed, for enough queries: some say what the model was trained on, which is
        # no matter where it is compared with itself.
        sizes = SplitSizes(train=2, val=2, test=QUERIES)
        make_videos(folder / "videos", sizes, seed=1_000_003, num_workers=2)
        split = open_dataset("folder", "test", folder / "videos", folder / "videos")
        with pytest.MonkeyPatch.context() as patch:
            # The preset is too narrow to gain by OpenVINO, and would not be compared.
            patch.setattr(openvino_backend, "_LEAST_WIDTH", 0)
            found = verify_bundle(folder / "bundle", checkpoint=checkpoint, split=split)
        (folder / "certificate.json").write_text(found.model_dump_json())

    return once_per_run("trained", make)


@pytest.fixture(scope="module")
def certificate(folder: Path) -> Certificate:
    return Certificate.model_validate_json((folder / "certificate.json").read_bytes())


def test_it_has_learned(folder: Path) -> None:
    videos = folder / "run" / "videos"
    split = open_dataset("folder", "test", videos, videos)
    found = evaluate(folder / "run" / "last.pt", split).metrics.text_to_video
    assert found.num_queries == 200
    assert found.recall_at_1 >= 60  # by chance: 0.5 %
    assert found.recall_at_5 >= 90


@pytest.mark.parametrize(
    ("precision", "points", "top1"),
    [(Precision.FP32, 0.0, 1.0), (Precision.FP16, 0.5, 0.99), (Precision.INT8, 1.0, 0.95)],
)
def test_retrieval_survives(
    certificate: Certificate, precision: Precision, points: float, top1: float
) -> None:
    (found,) = (
        c
        for c in certificate.comparisons
        if c.run.precision is precision and c.run.arithmetic is None
    )
    assert found.failures == ()
    assert certificate.inputs.num_texts == QUERIES
    assert found.ranking is not None
    assert found.ranking.top1_agreement >= top1
    assert len(found.recalls) == 6
    for record in found.recalls:
        assert abs(record.found - record.reference) <= points + 1e-4, record


@pytest.mark.skipif(missing is not None, reason=str(missing))
@pytest.mark.parametrize(
    ("name", "points", "cosine", "top10"),
    [("mixed-bf16", 0.5, 0.9998, 0.99), ("int8-weights", 1.0, 0.9995, 0.98)],
)
def test_retrieval_survives_openvino(
    certificate: Certificate, name: str, points: float, cosine: float, top10: float
) -> None:
    """Nearly all of this model's rankings hold near ties, and no rank changes beyond them."""
    (found,) = (
        c
        for c in certificate.comparisons
        if c.run.backend == "openvino" and name in (c.run.arithmetic, c.run.precision.value)
    )
    assert found.failures == ()
    assert certificate.inputs.num_texts == QUERIES
    assert found.ranking is not None
    assert found.ranking.flips == 0
    assert found.ranking.top10_agreement is not None
    assert found.ranking.top10_agreement >= top10
    for record in found.recalls:
        assert abs(record.found - record.reference) <= points + 1e-4, record
    cosines = [each.min_cosine for each in found.tensors if each.min_cosine is not None]
    assert len(cosines) == 4
    assert min(cosines) >= cosine
