"""Small models with random weights, and checkpoints of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_registry import shared_registry

from xclip_deploy import Bundle, export_bundle
from xclip_deploy.export.exporter import ExportResult
from xclip_deploy.runtime.model_config import ModelConfig, TemporalHead, TextConfig, VisionConfig
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.training.checkpoints import save_checkpoint
from xclip_deploy.training.model import XClip


def random_model(*, scorer_noise: float = 0.3, **changes: Any) -> XClip:
    """A small model; ``changes`` override fields of its configuration.

    ``scorer_noise``: how far the scorer's matrices are from the identity, where training
    leaves them near it. At a temperature of 0.01 much of it makes scores leap.
    """
    fields: dict[str, Any] = {
        "embed_dim": 64,
        "vision": VisionConfig(image_size=32, patch_size=16, width=64, layers=1, heads=1),
        "text": TextConfig(width=64, layers=1, heads=1),
        "max_words": 10,
        "max_frames": 5,
    }
    fields |= changes
    if fields.get("temporal_head") is TemporalHead.TRANSFORMER:
        heads = fields["embed_dim"] // 64
        fields |= {"temporal_layers": 1, "temporal_heads": heads, "temporal_positions": 20}
    torch.manual_seed(3)
    model = XClip(ModelConfig(**fields)).eval()
    with torch.no_grad():
        for name, parameter in model.scorer.named_parameters():
            if name != "logit_scale":
                parameter.add_(scorer_noise * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session", autouse=True)
def one_registry() -> Iterator[None]:
    """Exports of one worker share PyTorch's table of ONNX functions."""
    with shared_registry():
        yield


@pytest.fixture(scope="session")
def make_model() -> Callable[..., XClip]:
    """See :func:`random_model`."""
    return random_model


@pytest.fixture(scope="session")
def every_precision(once_per_code: Callable[..., Path], checkpoint_path: Path) -> ExportResult:
    """The checkpoint of ``bundle_path``, exported with BF16 and INT8. Not to be changed."""
    name = "xclip-bundle"
    folder = once_per_code(
        "every-precision",
        [checkpoint_path, Path(__file__)],
        lambda path: export_bundle(checkpoint_path, path / name, bf16=True, int8=True),
    )
    bundle = Bundle.open(folder / name)
    return ExportResult(bundle, bundle.manifest.parity, bundle.manifest.provenance.notes)


@pytest.fixture(scope="session")
def small_export(once_per_code: Callable[..., Path]) -> Path:
    """A folder with ``checkpoint.pt``, its ``bundle`` and the ``steps.json`` of that export.

    The model is ``make_model()``. Not to be changed.
    """

    def export(folder: Path) -> None:
        model = random_model()
        save_checkpoint(folder / "checkpoint.pt", model.config, model.state_dict())
        steps: list[Progress] = []
        export_bundle(
            folder / "checkpoint.pt",
            folder / "bundle",
            progress=steps.append,
        )
        (folder / "steps.json").write_text(
            json.dumps([(step.done, step.total, step.note) for step in steps])
        )

    return once_per_code("small", [Path(__file__)], export)


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[[XClip], Path]:
    """Save a model as a checkpoint file."""

    def write(model: XClip) -> Path:
        path = tmp_path / "checkpoint.pt"
        save_checkpoint(path, model.config, model.state_dict())
        return path

    return write
