"""Model, bundle and videos that the benchmarks measure with, made where they are missing.

Weights are random: speed does not depend on them. The model has the dimensions of ViT-B/32 with 12
frames, as X-CLIP publishes them; a toy has small ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.machine import ROOT
from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.manifest import Precision
from xclip_deploy.runtime.model_config import (
    ModelConfig,
    TemporalHead,
    TextConfig,
    VisionConfig,
)
from xclip_deploy.runtime.sessions import SessionOptions, offers
from xclip_deploy.runtime.video import find_videos

TORCH_FP32, TORCH_BF16 = "pytorch fp32", "pytorch bf16"
YARDSTICKS = frozenset((TORCH_FP32, TORCH_BF16))
MAX_BATCH = 16
TEXT = "a man in a red shirt walks his dog along the beach while the sun goes down"


class Matcher(Protocol):
    """A model, by whatever program, that encodes and scores."""

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed texts."""
        ...

    def encode_videos(self, videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        """Embed videos."""
        ...

    def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against every video."""
        ...


@dataclass(frozen=True)
class Setting:
    """Files and sizes of a run."""

    work: Path
    """Folder for what the benchmarks make; it may be kept for the next run."""
    checkpoint: Path
    bundle_path: Path
    is_toy: bool = False
    seed: int = 0
    clips: Path | None = None
    """Folder of real videos; None: videos are generated."""
    before: Path | None = None
    """Clone of other code, whose indexing and cold start are measured beside this code's."""
    sizes: tuple[int, ...] = ()
    """Sizes of the galleries in memory, videos."""
    disk_sizes: tuple[int, ...] = ()
    """Sizes of the galleries on disk, videos."""
    films: Path | None = None
    """Folder in which ``benchmarks.grouping`` built a gallery, which is searched on disk, too."""
    rounds: int | None = None
    """Rounds of every comparison; None: as many as its part takes."""

    @cached_property
    def bundle(self) -> Bundle:
        """The opened bundle."""
        return Bundle.open(self.bundle_path)

    @property
    def config(self) -> ModelConfig:
        """Dimensions of the model."""
        return self.bundle.manifest.model

    @cached_property
    def sessions(self) -> dict[str, SessionOptions]:
        """Options of each session on a CPU that this machine offers, by backend and arithmetic.

        FP16 graphs are left out: a CPU runs them for checks, slower than FP32.
        """
        found = [offer for offer in offers(self.bundle) if isinstance(offer, SessionOptions)]
        return {
            f"{offer.backend} {offer.precision}": offer
            for offer in found
            if offer.device == "cpu" and offer.precision != Precision.FP16.value
        }

    @cached_property
    def refusals(self) -> dict[str, float | str]:
        """Reasons why this machine lacks a session on a CPU, by backend and arithmetic."""
        return {
            f"{offer.options.backend} {offer.options.precision}": offer.reason
            for offer in offers(self.bundle)
            if not isinstance(offer, SessionOptions) and offer.options.device == "cpu"
        }

    def turns(self, usual: int, toy: int = 2) -> int:
        """Return the rounds of a comparison: as asked for, or those of a toy, or the usual."""
        return self.rounds or (toy if self.is_toy else usual)

    def videos(self, most: int | None = None) -> list[Path]:
        """Return the real videos, or generated ones where no folder of real ones is there."""
        folder = self.clips
        if folder is None:
            folder = generated_videos(self.work / "videos", 4 if self.is_toy else 44)
        found = find_videos([folder])
        if not found:
            raise SystemExit(f"{folder} holds no video; pass another folder by --clips")
        return found[:most]

    def frames(self, count: int, frames: int | None = None) -> list[npt.NDArray[np.uint8]]:
        """Return ``count`` videos of random frames, uint8 [n, S, S, 3] each."""
        rng = np.random.default_rng(self.seed)
        side = self.config.vision.image_size
        shape = (frames or self.config.max_frames, side, side, 3)
        return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]

    def child_environment(self, code: Path = ROOT) -> dict[str, str]:
        """Return the environment of a process that runs the code in a folder."""
        return {**os.environ, "PYTHONPATH": str(code)}

    @contextmanager
    def matchers(self) -> Iterator[dict[str, Matcher]]:
        """Open PyTorch's model and every session, by name; the reference comes first."""
        from xclip_deploy.training.checkpoints import load_checkpoint
        from xclip_deploy.training.torch_matcher import TorchMatcher

        torch_matcher = TorchMatcher(load_checkpoint(self.checkpoint).build(), max_batch=MAX_BATCH)
        with ExitStack() as stack:
            opened: dict[str, Matcher] = {
                TORCH_FP32: torch_matcher,
                TORCH_BF16: Autocast(torch_matcher),
            }
            for name, options in self.sessions.items():
                opened[name] = stack.enter_context(DeployedModel(self.bundle, options, MAX_BATCH))
            yield opened


class Autocast:
    """A PyTorch model under autocast to BF16."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed texts."""
        with _bf16():
            return self._matcher.encode_texts(texts)

    def encode_videos(self, videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        """Embed videos."""
        with _bf16():
            return self._matcher.encode_videos(videos)

    def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against every video."""
        with _bf16():
            return self._matcher.score(texts, videos)


@contextmanager
def _bf16() -> Iterator[None]:
    import torch

    with torch.autocast("cpu", torch.bfloat16):
        yield


def model_config(is_toy: bool) -> ModelConfig:
    """Return the dimensions of ViT-B/32 with 12 frames, or of a toy."""
    side, patch, width, layers, heads = (32, 16, 64, 1, 1) if is_toy else (224, 32, 768, 12, 12)
    dim = 64 if is_toy else 512
    return ModelConfig(
        embed_dim=dim,
        vision=VisionConfig(
            image_size=side, patch_size=patch, width=width, layers=layers, heads=heads
        ),
        text=TextConfig(width=dim, layers=layers, heads=dim // 64),
        temporal_head=TemporalHead.TRANSFORMER,
        temporal_layers=1,
        temporal_heads=dim // 64,
        temporal_positions=77,
        max_words=32,
        max_frames=4 if is_toy else 12,
    )


def make_checkpoint(path: Path, config: ModelConfig, seed: int) -> Path:
    """Write a model of random weights, unless the file is there."""
    if not path.is_file():
        import torch

        from xclip_deploy.training.checkpoints import save_checkpoint
        from xclip_deploy.training.model import XClip

        torch.manual_seed(seed)
        save_checkpoint(path, config, XClip(config).state_dict())
    return path


def make_bundle(path: Path, checkpoint: Path, options: Sequence[str] = ()) -> Path:
    """Export a bundle in a process of its own, unless it is there.

    ``options``: further options of ``xclip-deploy export``.
    """
    if not path.is_dir():
        command = [program(), "export", str(checkpoint), "-o", str(path), *options]
        print(f"exporting {path}", file=sys.stderr, flush=True)
        subprocess.run(  # noqa: S603 - words of this module
            command, check=True, stdout=subprocess.DEVNULL, env=with_root(os.environ)
        )
    return path


def generated_videos(folder: Path, count: int) -> Path:
    """Generate short videos of moving shapes, unless they are there; return their folder."""
    from xclip_deploy.training.datasets.generated import SplitSizes, make_videos

    # Generated sets hold a validation split, which is not used.
    make_videos(folder, SplitSizes(train=0, val=2, test=count))
    return folder / "test"


def program() -> str:
    """Return the path of this environment's ``xclip-deploy``."""
    return str(Path(sys.executable).with_name("xclip-deploy"))


def with_root(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment whose Python finds this tree, behind what it already finds."""
    paths = [environment.get("PYTHONPATH", ""), str(ROOT)]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
