"""A model that has learned something: its precisions must retrieve as it does.

Random weights cannot show this: their scores hardly differ, and any rounding changes ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xclip_deploy import export_bundle, open_dataset, resolve_config, train, verify_bundle
from xclip_deploy.export.verification import Certificate
from xclip_deploy.runtime.manifest import Precision

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def certificate(once_per_run: Callable[..., Path]) -> Certificate:
    """Of the demo preset, in every precision, on the 200 videos of its test split."""

    def make(folder: Path) -> None:
        train(resolve_config("demo"), folder / "run")
        checkpoint = folder / "run" / "last.pt"
        export_bundle(checkpoint, folder / "bundle", int8=True, bf16=True)
        videos = folder / "run" / "videos"
        split = open_dataset("folder", "test", videos, videos)
        found = verify_bundle(folder / "bundle", checkpoint=checkpoint, split=split)
        (folder / "certificate.json").write_text(found.model_dump_json())

    folder = once_per_run("trained", make)
    return Certificate.model_validate_json((folder / "certificate.json").read_bytes())


def test_it_has_learned(certificate: Certificate) -> None:
    recalls = {
        (record.direction, record.k): record.reference
        for record in certificate.comparisons[0].recalls
    }
    assert recalls["text_to_video", 1] >= 60  # by chance: 0.5 %
    assert recalls["text_to_video", 5] >= 90
    assert certificate.inputs.num_texts == 200


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
