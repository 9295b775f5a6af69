"""The result of an evaluation, and the model that was evaluated."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.metrics import RetrievalResult
from xclip_deploy.runtime.presentation import brief, html_table
from xclip_deploy.runtime.video import FrameSampling


@dataclass(frozen=True)
class VideoProblem:
    """A video of a split that cannot be read, or only in part."""

    id: str
    path: str
    reason: str
    """One line."""


@dataclass(frozen=True)
class ModelIdentity:
    """The model that was evaluated, and how it ran."""

    kind: str
    """``bundle``, ``checkpoint``, or ``model`` for one in memory."""
    path: str | None = None
    identity: str | None = None
    """Fingerprint of a bundle, or SHA-256 of a checkpoint."""
    precision: str | None = None
    device: str | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Retrieval metrics of a model on a split, and what they were computed from."""

    split: str
    """Dataset and split."""
    model: ModelIdentity
    sampling: FrameSampling
    max_words: int
    """Most tokens of a caption, start and end token included. Longer captions were cut."""
    metrics: RetrievalResult
    dual_softmax: RetrievalResult | None
    """Metrics after re-scoring with the whole set of queries, or None. They are not comparable
    with ``metrics``, since a single query cannot be re-scored."""
    dual_softmax_temperature: float | None
    video_ids: tuple[str, ...]
    """Ids of the videos that were read, [V]: the columns of ``similarity``."""
    video_of_caption: npt.NDArray[np.int64] = field(repr=False)
    """Column of each caption's video, [T]."""
    similarity: npt.NDArray[np.float32] = field(repr=False)
    """Logits of every caption with every video, [T, V]; 4 bytes each."""
    missing: tuple[str, ...]
    """Ids of annotated videos without a file. They and their captions are left out."""
    unreadable: tuple[VideoProblem, ...]
    """Videos of which no frame could be read. They and their captions are left out."""
    damaged: tuple[VideoProblem, ...]
    """Videos that were evaluated although they are truncated or corrupt."""
    truncated_captions: int = 0
    """Number of the captions that are longer than ``max_words`` and were cut."""

    @property
    def num_videos(self) -> int:
        """Videos that were ranked."""
        return len(self.video_ids)

    @property
    def num_captions(self) -> int:
        """Captions that were ranked."""
        return len(self.video_of_caption)

    def __repr__(self) -> str:
        return brief(
            self,
            split=self.split,
            model=self.model.kind,
            num_videos=self.num_videos,
            num_captions=self.num_captions,
            text_to_video_recall_at_1=self.metrics.text_to_video.recall_at_1,
            video_to_text_recall_at_1=self.metrics.video_to_text.recall_at_1,
        )

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = []
        for scoring, metrics in (("", self.metrics), ("dual softmax", self.dual_softmax)):
            if metrics is not None:
                for direction, found in vars(metrics).items():
                    name = f"{direction.replace('_', ' ')} {scoring}".strip()
                    rows.append((name, *found.to_dict().values()))
        title = f"{self.split}: {self.num_videos} videos, {self.num_captions} captions"
        return html_table(title, ("", *self.metrics.text_to_video.to_dict()), rows, len(rows))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain dictionaries, lists and numbers for JSON, without the similarities."""
        rescored = None
        if self.dual_softmax is not None:
            temperature = self.dual_softmax_temperature
            rescored = {"temperature": temperature, **self.dual_softmax.to_dict()}
        return {
            "split": self.split,
            "model": asdict(self.model),
            "frames_per_second": self.sampling.frames_per_second,
            "max_frames": self.sampling.max_frames,
            "max_words": self.max_words,
            "num_videos": self.num_videos,
            "num_captions": self.num_captions,
            "truncated_captions": self.truncated_captions,
            **self.metrics.to_dict(),
            "dual_softmax": rescored,
            "missing": list(self.missing),
            "unreadable": [asdict(video) for video in self.unreadable],
            "damaged": [asdict(video) for video in self.damaged],
        }
