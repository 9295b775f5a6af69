"""Calibrating scores over a bank of typical queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import as_array, as_instance, shown
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.presentation import brief

Score = Callable[[TextFeatures, VideoFeatures], npt.NDArray[np.float32]]
MAX_QUERIES = 4096


class QueryBank:
    """Texts that a video's scores are held against, so that hubs do not crowd every result.

    Some videos score high for whatever text. With a bank, a video's score s becomes
    ``s - logsumexp(b) + log(B)``, over its scores b for the bank's B texts: the logarithm of the
    inverted softmax with which querybank normalisation re-ranks (Bogolin et al., CVPR 2022,
    equation 3, its temperature being exp(logit_scale)), centred so that a video that
    fits the query as well as the bank on the whole gets 0. It costs B more scores per candidate.
    Training captions are a good bank; texts of what is searched for are too.
    """

    def __init__(self, features: TextFeatures) -> None:
        """``features``: the bank's texts, encoded by the model of the gallery."""
        as_instance("features", features, TextFeatures, "TextFeatures")
        if not 1 <= len(features) <= MAX_QUERIES:
            raise InvalidArgumentError(
                f"a query bank of {len(features)} texts; expected 1 to {MAX_QUERIES}"
            )
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        return brief(self, texts=len(self.features))

    def calibrate(
        self, logits: npt.NDArray[np.float32], videos: VideoFeatures, score: Score
    ) -> npt.NDArray[np.float32]:
        """Calibrated scores [V] of one query's ``logits`` [V] for ``videos``."""
        as_instance("videos", videos, VideoFeatures, "VideoFeatures")
        count = len(videos)
        as_array("logits", logits, np.floating, (count,), f"decimal numbers [{count}]")
        if not callable(score):
            raise InvalidArgumentError(f"score is {shown(score)}; expected a function")
        bank = score(self.features, videos).astype(np.float64)  # [B, V]
        peak = bank.max(axis=0)
        norm = peak + np.log(np.exp(bank - peak).mean(axis=0))
        calibrated: npt.NDArray[np.float32] = (logits - norm).astype(np.float32)
        return calibrated
