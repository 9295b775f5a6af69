"""A model that has learned something: its precisions must retrieve as it does.

Random weights cannot show this: their scores hardly differ, and any rounding changes ranks.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xclip_deploy import export_bundle, open_dataset, resolve_config, train, verify_bundle
from xclip_deploy.export.verification import Certificate
from xclip_deploy.runtime.manifest import Precision

pytestmark = pytest.mark.slow

NUM_TEST = 240
BUDGET = {
    "data.generated.train": 1800,
    "data.generated.val": 2,
    "data.generated.test": NUM_TEST,
    "data.validation_split": None,
    "optimization.epochs": 20,
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Of a model trained for some minutes, in every precision, on videos that it has not seen."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = [f"{name}={json.dumps(value)}" for name, value in BUDGET.items()]
    train(resolve_config("demo", overrides=overrides), folder / "run")
    checkpoint: Path = folder / "run" / "last.pt"
    export_bundle(checkpoint, folder / "bundle", int8=True, bf16=True)
    videos = folder / "run" / "videos"
    split = open_dataset("folder", "test", videos, videos)
    return verify_bundle(folder / "bundle", checkpoint=checkpoint, split=split)


def test_it_has_learned(certificate: Certificate) -> None:
    recalls = {
        (record.direction, record.k): record.reference
        for record in certificate.comparisons[0].recalls
    }
    # By chance: 0.4 and 2 %.
    assert recalls["text_to_video", 1] > 20
    assert recalls["text_to_video", 5] > 60
    assert certificate.inputs.num_texts == NUM_TEST


@pytest.mark.parametrize(
    ("precision", "points", "top1"),
    [(Precision.FP32, 0.0, 1.0), (Precision.FP16, 0.5, 0.99), (Precision.INT8, 1.0, 0.95)],
)
def test_retrieval_survives(
    certificate: Certificate, precision: Precision, points: float, top1: float
) -> None:
    (found,) = (c for c in certificate.comparisons if c.run.precision is precision)
    assert found.failures == ()
    assert found.ranking is not None
    assert found.ranking.top1_agreement >= top1
    assert len(found.recalls) == 6
    for record in found.recalls:
        assert abs(record.found - record.reference) <= points + 1e-4, record
