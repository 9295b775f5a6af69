"""Calibration of scores with a bank of typical queries."""

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
    """A set of texts that corrects the scores of hubs, which score high for any text.

    A video's score s becomes ``s - logsumexp(b) + log(B)``, where b are its scores for the bank's
    B texts. This is the logarithm of the inverted softmax of querybank normalisation (Bogolin et
    al., CVPR 2022, equation 3, with exp(logit_scale) as temperature). A video that fits the query
    as well as it fits the bank on average gets 0. Calibration costs B more scores per candidate.
    Training captions or typical queries make a good bank.
    """

    def __init__(self, features: TextFeatures) -> None:
        """Keep ``features``, the bank's texts as the gallery's model encodes them."""
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
        """Calibrate one query's ``logits`` [V] for ``videos``; returns scores [V]."""
        as_instance("videos", videos, VideoFeatures, "VideoFeatures")
        count = len(videos)
        as_array("logits", logits, np.floating, (count,), f"decimal numbers [{count}]")
        if not callable(score):
            raise InvalidArgumentError(f"score is {shown(score)}; expected a function")
        return corrected(logits, score(self.features, videos))


def corrected(
    logits: npt.NDArray[np.float32], banked: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Calibrate ``logits`` [V] with a bank's scores ``banked`` [B, V]; see :class:`QueryBank`."""
    calibrated: npt.NDArray[np.float32] = (logits - bank_norm(banked)).astype(np.float32)
    return calibrated


def bank_norm(banked: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return what a bank's scores ``banked`` [B, V] take from each score: FP64 [V]."""
    bank = banked.astype(np.float64)
    peak = bank.max(axis=0)
    norm: npt.NDArray[np.float64] = peak + np.log(np.exp(bank - peak).mean(axis=0))
    return norm
