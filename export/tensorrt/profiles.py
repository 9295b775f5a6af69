"""Make optimisation profiles: the ranges of the dynamic axes that an engine is built for."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.engine_set import ShapeRange
from xclip_deploy.runtime.manifest import Graph, GraphSpec


@dataclass(frozen=True)
class BatchRange:
    """Smallest, best and largest size of one dynamic axis.

    Raises InvalidArgumentError unless 1 <= min <= opt <= max. TensorRT itself accepts a disordered
    range silently.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InvalidArgumentError(f"batch range {self}: expected 1 <= min <= opt <= max")

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """Read ``MIN:OPT:MAX``, or one number for all three. Raises InvalidArgumentError."""
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
            raise InvalidArgumentError(
                f"batch range {text!r}: expected MIN:OPT:MAX, such as 1:8:32, or one number"
            )
        sizes = [int(part) for part in parts]
        return cls(*(sizes if len(sizes) == 3 else sizes * 3))

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


_ONE = BatchRange(1, 1, 1)


@dataclass(frozen=True)
class EngineShapes:
    """Ranges of the dynamic axes of the three graphs.

    The defaults suit a GPU of 8 GB. By TensorRT-RTX's report, the FP16 video encoder of ViT-L/14
    needs 1.7 GB for its largest batch. The sidecar of an engine set records what it needs.
    """

    videos: BatchRange = field(default_factory=lambda: BatchRange(1, 8, 32))
    """Videos in one run of the video encoder."""
    texts: BatchRange = field(default_factory=lambda: BatchRange(1, 32, 128))
    """Texts in one run of the text encoder."""
    scored_texts: BatchRange = field(default_factory=lambda: BatchRange(1, 32, 64))
    """Texts in one run of the scorer."""
    scored_videos: BatchRange = field(default_factory=lambda: BatchRange(1, 256, 1024))
    """Videos in one run of the scorer: a chunk of the gallery."""
    query_profile: bool = True
    """True gives text encoder and scorer a further profile for exactly one text. It precedes the
    profile of the whole range. A search has one text, and kernels chosen for that are faster."""

    def profiles(self, graph: Graph, spec: GraphSpec) -> tuple[dict[str, ShapeRange], ...]:
        """Return a graph's profiles in the engine's order: the range of every input, by name."""
        if graph is Graph.VIDEO_ENCODER:
            return (_profile(spec, {"batch": self.videos}),)
        if graph is Graph.TEXT_ENCODER:
            bulk, axis, rest = self.texts, "batch", {}
        else:
            bulk, axis, rest = self.scored_texts, "texts", {"videos": self.scored_videos}
        ranges = [bulk]
        if self.query_profile and bulk != _ONE:
            ranges.insert(0, _ONE)
        return tuple(_profile(spec, {axis: texts, **rest}) for texts in ranges)

    def options(self) -> dict[str, str]:
        """Return changed fields as options of ``build-trt``: name to value, empty for a flag."""
        names = {
            "videos": "video-batch",
            "texts": "text-batch",
            "scored_texts": "scored-texts",
            "scored_videos": "scored-videos",
        }
        default = EngineShapes()
        changed = {
            names[item.name]: str(getattr(self, item.name))
            for item in fields(self)
            if item.name in names and getattr(self, item.name) != getattr(default, item.name)
        }
        return changed if self.query_profile else {**changed, "no-query-profile": ""}


def _profile(spec: GraphSpec, axes: dict[str, BatchRange]) -> dict[str, ShapeRange]:
    def shape(sizes: tuple[int | str, ...], bound: str) -> tuple[int, ...]:
        return tuple(
            getattr(axes[size], bound) if isinstance(size, str) else size for size in sizes
        )

    return {
        tensor.name: ShapeRange(
            min=shape(tensor.shape, "min"),
            opt=shape(tensor.shape, "opt"),
            max=shape(tensor.shape, "max"),
        )
        for tensor in spec.inputs
    }
