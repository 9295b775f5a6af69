"""The result of an evaluation of moments."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from xclip_deploy.runtime.datasets.moments import MomentQuery
from xclip_deploy.runtime.evaluation.moments.didemo import DidemoMetrics
from xclip_deploy.runtime.evaluation.moments.metrics import MomentRecall
from xclip_deploy.runtime.evaluation.moments.predictions import Ranking
from xclip_deploy.runtime.presentation import brief, html_table


@dataclass(frozen=True, eq=False)
class MomentEvaluation:
    """Metrics of moments on a split, and the predictions that they were computed from."""

    split: str
    """Dataset and split."""
    num_videos: int
    """Videos that were ranked."""
    k: int
    """Most predictions for a query."""
    corpus: MomentRecall
    """Recall of moments among all videos (VCMR)."""
    videos: MomentRecall
    """Recall of videos, each ranked by its best moment (VR)."""
    within: MomentRecall
    """Recall of moments within the right video (SVMR)."""
    mean_iou: float
    """Mean IoU of the first prediction within the right video, in percent."""
    boundary_error_s: float
    """Median distance of its boundaries from the annotated ones, in seconds; infinite where
    most queries find nothing there."""
    found_boundary_error_s: float
    """The same over the queries whose first prediction there has an IoU of at least 0.5."""
    didemo: DidemoMetrics | None
    """DiDeMo's metrics; None for other datasets."""
    didemo_chance: DidemoMetrics | None
    """DiDeMo's metrics of random rankings; None for other datasets."""
    missing: tuple[str, ...]
    """Ids of annotated videos without a file. They and their queries are left out."""
    queries: tuple[MomentQuery, ...] = field(repr=False)
    corpus_rankings: tuple[Ranking, ...] = field(repr=False)
    """Predictions among all videos, for each query."""
    within_rankings: tuple[Ranking, ...] = field(repr=False)
    """Predictions within the right video, for each query."""

    @property
    def rows(self) -> list[tuple[str, MomentRecall, int]]:
        """Rows of a table: name, recall, and the number of its row."""
        rows = []
        for name, recall in (("moment", self.corpus), ("in its video", self.within)):
            for number, threshold in enumerate(recall.thresholds):
                rows.append((f"{name}, IoU {threshold:g}", recall, number))
        rows.insert(len(self.corpus.thresholds), ("video", self.videos, 0))
        return rows

    def __repr__(self) -> str:
        return brief(
            self,
            split=self.split,
            num_videos=self.num_videos,
            num_queries=len(self.queries),
            **{"r1 at IoU 0.5": self.corpus.value(1, 0.5)},
        )

    def _repr_html_(self) -> str:
        at = sorted({k for _, recall, _ in self.rows for k in recall.at})
        rows = [
            (name, *(dict(zip(recall.at, recall.percent[row], strict=True)).get(k) for k in at))
            for name, recall, row in self.rows
        ]
        title = f"{self.split}: {self.num_videos} videos, {len(self.queries)} queries"
        return html_table(title, ("", *(f"R@{k}" for k in at)), rows, len(rows))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain dictionaries, lists and numbers for JSON, without predictions."""
        chance = self.didemo_chance
        return {
            "split": self.split,
            "task": "moments",
            "num_videos": self.num_videos,
            "num_queries": len(self.queries),
            "k": self.k,
            "VCMR": self.corpus.to_dict(),
            "VR": self.videos.to_dict(),
            "SVMR": self.within.to_dict(),
            "mean_iou": self.mean_iou,
            "boundary_error_s": _finite(self.boundary_error_s),
            "found_boundary_error_s": _finite(self.found_boundary_error_s),
            "didemo": None if self.didemo is None else self.didemo.to_dict(),
            "didemo_chance": None if chance is None else chance.to_dict(),
            "missing": list(self.missing),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
