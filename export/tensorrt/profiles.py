"""Optimisation profiles: the range of each dynamic axis that an engine is built for."""

from __future__ import annotations

from dataclasses import dataclass, field

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.engine_set import ShapeRange
from xclip_deploy.runtime.manifest import Graph, GraphSpec


@dataclass(frozen=True)
class BatchRange:
    """Smallest, best and largest size of one dynamic axis.

    Raises InvalidArgumentError unless 1 <= min <= opt <= max: TensorRT takes a disordered
    range without a word.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InvalidArgumentError(
                f"batch range {self.min}:{self.opt}:{self.max}: expected 1 <= min <= opt <= max"
            )


@dataclass(frozen=True)
class EngineShapes:
    """Ranges of the dynamic axes of the three graphs."""

    videos: BatchRange = field(default_factory=lambda: BatchRange(1, 8, 32))
    """Videos in one run of the video encoder."""
    texts: BatchRange = field(default_factory=lambda: BatchRange(1, 1, 64))
    """Texts in one run of the text encoder: tuned for a single query."""
    scored_texts: BatchRange = field(default_factory=lambda: BatchRange(1, 1, 64))
    """Texts in one run of the scorer."""
    scored_videos: BatchRange = field(default_factory=lambda: BatchRange(1, 256, 1024))
    """Videos in one run of the scorer: a chunk of the gallery."""

    def profile(self, graph: Graph, spec: GraphSpec) -> dict[str, ShapeRange]:
        """The range of every input of a graph, by name."""
        axes = {
            Graph.VIDEO_ENCODER: {"batch": self.videos},
            Graph.TEXT_ENCODER: {"batch": self.texts},
            Graph.SCORER: {"texts": self.scored_texts, "videos": self.scored_videos},
        }[graph]
        return {
            tensor.name: ShapeRange(
                min=tuple(
                    axes[size].min if isinstance(size, str) else size for size in tensor.shape
                ),
                opt=tuple(
                    axes[size].opt if isinstance(size, str) else size for size in tensor.shape
                ),
                max=tuple(
                    axes[size].max if isinstance(size, str) else size for size in tensor.shape
                ),
            )
            for tensor in spec.inputs
        }
