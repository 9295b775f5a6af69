"""Checks of a model's outputs before they are used."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.arrays import AnyArray, Float32Array
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.manifest import AnyGraph, Graph
from xclip_deploy.runtime.sessions import GraphLoader


class OutputCheck:
    """Refuses NaN and infinity: an overflow in half precision would corrupt every ranking."""

    def __init__(self, loader: GraphLoader, *, is_on: bool) -> None:
        """Check outputs of the graphs of ``loader`` if ``is_on``."""
        self._loader = loader
        self._is_on = is_on

    def outputs(self, graph: AnyGraph, outputs: Mapping[str, AnyArray]) -> None:
        """Check a graph's outputs by name. Raises SessionError."""
        for name, array in outputs.items():
            # The check costs little beside the encoding.
            if self._is_on and not np.isfinite(array).all():
                raise self._not_finite(graph, name, array)

    def scores(
        self, scores: dict[str, Float32Array], texts: TextFeatures, videos: VideoFeatures
    ) -> Scores:
        """Check the scorer's outputs, and return them as scores. Raises SessionError."""
        # Logits are means of all grains: one that is not finite makes the logit so.
        logits = scores.pop("logits")
        if self._is_on and not np.isfinite(logits).all():
            for name, array in {**vars(texts), **vars(videos)}.items():
                if not np.isfinite(array).all():
                    raise SessionError(f"the features to score hold NaN or infinity in {name}")
            raise self._not_finite(Graph.SCORER, "logits", logits)
        return Scores(logits, scores)

    def _not_finite(self, graph: AnyGraph, name: str, array: AnyArray) -> SessionError:
        rows = int((~np.isfinite(array.reshape(len(array), -1)).all(axis=1)).sum())
        placement = self._loader.placement
        return SessionError(
            f"{graph.value} gave NaN or infinity in {name}, in {rows} of {len(array)} rows, in "
            f"{placement.arithmetic.name} on {placement.device_name}; "
            f"use precision='fp32', and run: xclip-deploy verify {self._loader.bundle.path}"
        )
