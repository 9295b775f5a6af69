"""The scorer's learned matrices, as the runtime reads them: beside the graphs, not out of them.

``scorer.onnx`` computes scores; what has to look inside a score, or to fold a matrix into a
query, needs the matrices themselves. They are those of the checkpoint in FP32, which every
precision of the scorer computes with.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import BundleIntegrityError
from xclip_deploy.runtime.model_config import Grain, ModelConfig

FILE_NAME = "scorer.npz"
TEMPERATURE = 0.01
"""Of the scorer's attention over similarities (AOSM); the same as in ``training/scorer.py``."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ScorerWeights:
    """Parameters of the scorer, under the names that they have in the authors' checkpoints.

    None for a matrix that the model has not. D: embedding, W: words, F: frames.
    """

    logit_scale: float
    """As the model learns it: a score is exp(logit_scale) times the mean of the grains."""
    global_mat_weight: Matrix | None = None
    """G [D, D]: video-sentence is (sentence G) · video."""
    local_mat_weight: Matrix | None = None
    """L [D, D]: the frame-word similarities are (word L) · frame."""
    word_logit_weight: Matrix | None = None
    """[W, W]: aggregation of video-word."""
    frame_logit_weight: Matrix | None = None
    """[F, F]: aggregation of frame-sentence."""
    word_mat_weight: Matrix | None = None
    """[W, W]: frame-word, words within each frame, where words come first."""
    frame_mat_weight2: Matrix | None = None
    """[F, F]: frame-word, frames after the words."""
    frame_mat_weight: Matrix | None = None
    """[F, F]: frame-word, frames within each word, where frames come first."""
    word_mat_weight2: Matrix | None = None
    """[W, W]: frame-word, words after the frames."""

    @property
    def scale(self) -> float:
        """What the mean of the grains is multiplied with."""
        return float(np.exp(self.logit_scale))

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], config: ModelConfig
    ) -> ScorerWeights:
        """Take the parameters by name. Raises ValueError where they are not those of ``config``."""
        shapes = _shapes(config)
        if set(arrays) != set(shapes):
            raise ValueError(
                f"scorer weights {', '.join(sorted(arrays))}; expected {', '.join(sorted(shapes))}"
            )
        matrices: dict[str, Matrix] = {}
        for name, shape in shapes.items():
            array = arrays[name]
            is_float = np.issubdtype(array.dtype, np.floating)
            if array.shape != shape or not is_float or not np.isfinite(array).all():
                raise ValueError(
                    f"scorer weight {name} is {array.dtype} {list(array.shape)}; expected finite "
                    f"float32 {list(shape)}"
                )
            matrices[name] = array.astype(np.float32)
        logit_scale = float(matrices.pop("logit_scale"))
        return cls(logit_scale, **matrices)

    @classmethod
    def open(cls, path: Path, config: ModelConfig) -> ScorerWeights:
        """Read a ``scorer.npz``. Raises BundleIntegrityError where it is not that of ``config``."""
        try:
            # NumPy leaves a file open that it opened itself and found to be damaged.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                return cls.from_arrays(dict(arrays), config)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BundleIntegrityError(
                f"{path}: no scorer weights of this model ({error})"
            ) from error

    def save(self, path: Path) -> None:
        """Write ``scorer.npz``. Raises OSError as the file system does."""
        present: dict[str, Any] = {
            name: np.asarray(value, np.float32)
            for name, value in vars(self).items()
            if value is not None
        }
        with path.open("wb") as stream:
            np.savez(stream, **present)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Parameters that the scorer of a configuration has."""
    dim, words, frames = config.embed_dim, config.max_words, config.max_frames
    shapes: dict[str, tuple[int, ...]] = {"logit_scale": ()}
    if Grain.VIDEO_SENTENCE in config.grains and config.sentence_projection:
        shapes["global_mat_weight"] = (dim, dim)
    if Grain.VIDEO_WORD in config.grains:
        shapes["word_logit_weight"] = (words, words)
    if Grain.FRAME_SENTENCE in config.grains:
        shapes["frame_logit_weight"] = (frames, frames)
    if Grain.FRAME_WORD in config.grains:
        shapes["local_mat_weight"] = (dim, dim)
        shapes |= dict.fromkeys(("word_mat_weight", "word_mat_weight2"), (words, words))
        shapes |= dict.fromkeys(("frame_mat_weight", "frame_mat_weight2"), (frames, frames))
    return shapes
