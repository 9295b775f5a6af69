from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xclip_deploy import Bundle
from xclip_deploy.errors import BundleIntegrityError, BundleVersionError
from xclip_deploy.runtime.grains import Grain
from xclip_deploy.runtime.manifest import checksum
from xclip_deploy.runtime.scorer_weights import SCORER_WEIGHTS_NAME, ScorerWeights


def test_they_are_the_checkpoints(bundle: Bundle, checkpoint_path: Path) -> None:
    import torch

    found = bundle.scorer_weights()
    source = torch.load(checkpoint_path, weights_only=True)
    assert found.score_scale == pytest.approx(float(source["clip.logit_scale"].exp()), rel=1e-6)
    assert len(found.matrices) == 8
    for name, matrix in found.matrices.items():
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, source[name].float().numpy())


def test_written_and_read(bundle: Bundle, tmp_path: Path) -> None:
    first = bundle.scorer_weights()
    first.save(tmp_path / "a.npz")
    second = ScorerWeights.open(tmp_path / "a.npz", bundle.manifest.model)
    assert second.logit_scale == first.logit_scale
    assert list(second.matrices) == list(first.matrices)
    for name, value in first.matrices.items():
        np.testing.assert_array_equal(second.matrices[name], value)
    # The same weights give the same file, and so the same hash.
    assert (tmp_path / "a.npz").read_bytes() == (bundle.path / SCORER_WEIGHTS_NAME).read_bytes()


def test_a_model_with_fewer_grains_has_fewer(bundle: Bundle) -> None:
    config = bundle.manifest.model.model_copy(
        update={"grains": (Grain.VIDEO_SENTENCE,), "sentence_projection": False}
    )
    found = ScorerWeights.from_arrays({"logit_scale": np.float32(2)[...]}, config)
    assert found.logit_scale == 2
    assert not found.matrices


def broken(arrays: dict[str, Any], what: str) -> dict[str, Any]:
    if what == "missing":
        del arrays["local_mat_weight"]
    elif what == "unknown":
        arrays["more"] = np.zeros(3)
    elif what == "shape":
        arrays["global_mat_weight"] = np.zeros((3, 3), np.float32)
    elif what == "dtype":
        arrays["global_mat_weight"] = np.zeros((64, 64), np.int32)
    elif what == "infinite":
        arrays["logit_scale"] = np.float32(np.inf)
    elif what == "pickle":
        arrays["logit_scale"] = np.array([{"a": 1}], dtype=object)
    return arrays


@pytest.mark.parametrize("what", ["missing", "unknown", "shape", "dtype", "infinite", "pickle"])
def test_other_arrays_are_refused(bundle: Bundle, tmp_path: Path, what: str) -> None:
    with np.load(bundle.path / SCORER_WEIGHTS_NAME) as arrays:
        content = broken(dict(arrays), what)
    path = tmp_path / SCORER_WEIGHTS_NAME
    np.savez(path, **content)
    with pytest.raises(BundleIntegrityError, match="no scorer weights of this model"):
        ScorerWeights.open(path, bundle.manifest.model)


@pytest.mark.parametrize("size", [0, 10, 1000, -1])
def test_a_truncated_file(bundle: Bundle, tmp_path: Path, size: int) -> None:
    path = tmp_path / SCORER_WEIGHTS_NAME
    path.write_bytes((bundle.path / SCORER_WEIGHTS_NAME).read_bytes()[:size])
    with pytest.raises(BundleIntegrityError):
        ScorerWeights.open(path, bundle.manifest.model)


@pytest.mark.parametrize("is_named", [False, True])
def test_a_bundle_of_before_it_was_written(bundle_copy: Path, is_named: bool) -> None:
    file = bundle_copy / "manifest.json"
    content = json.loads(file.read_text("utf-8"))
    if is_named:  # as the first exports of this schema wrote it
        content["scorer_weights"] = None
    else:
        del content["scorer_weights"]
    del content["files"][SCORER_WEIGHTS_NAME]
    content["checksum"] = checksum(content)
    file.write_text(json.dumps(content), "utf-8")
    (bundle_copy / SCORER_WEIGHTS_NAME).unlink()
    with pytest.raises(BundleVersionError, match="run: xclip-deploy export CHECKPOINT -o"):
        Bundle.open(bundle_copy)


def test_an_altered_file(bundle_copy: Path) -> None:
    file = bundle_copy / SCORER_WEIGHTS_NAME
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="was altered"):
        Bundle.open(bundle_copy).scorer_weights()
